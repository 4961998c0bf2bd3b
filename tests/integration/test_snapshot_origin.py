"""Real daemons whose world changes: what the old one captured is read, byte by byte, until the new one is safe."""

import threading

import pytest
from certificates import make_certificates
from old_worlds import Elastic
from snapshot_nodes import Node, cluster_root, content, wait_until

from ftrain_snapshot import arena
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.errors import SnapshotIncomplete
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.read_plan import Wanted
from ftrain_snapshot.words import SnapshotId

SIZE = 2_300_000
root = pytest.fixture(cluster_root)


@pytest.fixture
def elastic(root):
    made: list[Elastic] = []

    def make(nodes: int, groups_=(), **options) -> Elastic:
        cluster = Elastic(root, nodes, **options)
        made.append(cluster)
        cluster.everybody = list(cluster.nodes)
        cluster.begin(groups_)
        return cluster

    yield make
    for cluster in made:
        for node in {*cluster.everybody, *cluster.nodes}:
            node.stop()


def first_snapshot(cluster: Elastic, version: int = 5) -> SnapshotId:
    cluster.reserve(SIZE)
    snapshot = cluster.snapshot(version, SIZE)
    cluster.wait_protected(version)
    return snapshot


def test_three_nodes_read_all_that_four_had_captured_although_one_is_lost(elastic):
    cluster = elastic(4, lanes=2)
    snapshot = first_snapshot(cluster)
    old = cluster.world
    lost, *left = cluster.nodes
    lost.lose()
    cluster.nodes = left
    cluster.reform(left, snapshot, old)
    for node in left:
        assert node.agent.status().restored
        assert cluster.check_origin(node, SIZE) > 8 * SIZE * 0.99
    assert cluster.status().exposed_seconds > 0
    assert {held.position for held in cluster.held(snapshot).values()} == {1, 2, 3}
    cluster.reserve(SIZE * 4 // 3)
    assert cluster.check_origin(left[0], SIZE) > 0
    newer = cluster.snapshot(6, SIZE * 4 // 3)
    cluster.wait_protected(6)
    cluster.wait_let_go(snapshot)
    wait_until(lambda: cluster.status().exposed_seconds == 0)
    cluster.check(newer, SIZE * 4 // 3)
    with DaemonClient(left[0].dir, role="worker") as client, pytest.raises(SnapshotIncomplete, match="not kept"):
        client.units(snapshot)


def test_a_node_without_a_position_gives_what_it_holds_and_may_have_one_later(elastic):
    """Two of four go on, one is lost, and with parity 1 the third one's bytes are needed; its daemon dies, too."""
    cluster = elastic(4)
    snapshot = first_snapshot(cluster)
    old = cluster.world
    lost, first, second, guest = cluster.nodes
    lost.lose()
    cluster.nodes = [first, second, guest]
    for killed in (False, True):
        if killed:
            guest.kill_daemon()
            guest.start(guest.port)
            guest.ready()
        cluster.reform([first, second], snapshot, old, guests=[guest])
        assert cluster.check_origin(first, SIZE) > 4 * SIZE * 0.99
        assert cluster.check_origin(second, SIZE) > 4 * SIZE * 0.99
    cluster.reserve(2 * SIZE)
    newer = cluster.snapshot(6, 2 * SIZE)
    cluster.wait_protected(6)
    pair = cluster.world
    cluster.reform([first, second, guest], newer, pair)
    assert cluster.check_origin(guest, 2 * SIZE) > 4 * SIZE * 0.99
    cluster.reserve(SIZE)
    cluster.snapshot(7, SIZE)
    cluster.wait_protected(7)
    cluster.wait_let_go(newer)
    assert guest.agent.status().generation == cluster.generation


def newcomer(cluster: Elastic) -> Node:
    node = cluster._node().ready()
    cluster.everybody.append(node)
    return node


def go_on_without(cluster: Elastic, position: int, snapshot: SnapshotId) -> None:
    """That node is lost, and a newcomer is there in its stead."""
    old = cluster.world
    old.nodes[position].lose()
    cluster.nodes = [node for node in old.nodes if node is not old.nodes[position]]
    cluster.reform([*cluster.nodes, newcomer(cluster)], snapshot, old)


def log_of(node: Node) -> str:
    return (node.dir.parent / f"{node.name}.log").read_text()


def test_four_nodes_read_what_three_had_captured_and_the_newcomer_has_nothing_of_it(elastic):
    cluster = elastic(3)
    snapshot = first_snapshot(cluster)
    old = cluster.world
    cluster.reform([*cluster.nodes, newcomer(cluster)], snapshot, old)
    assert cluster.nodes[3].name not in {peer.node for peer in cluster.origin.holders}
    for node in cluster.nodes:
        assert cluster.check_origin(node, SIZE) > 0
    cluster.reserve(SIZE * 3 // 4)
    before = parity_bytes(cluster.nodes[0])
    cluster.snapshot(6, SIZE * 3 // 4)
    cluster.wait_protected(6)
    cluster.wait_let_go(snapshot)
    assert parity_bytes(cluster.nodes[0]) < before
    cluster.snapshot(7, SIZE * 3 // 4)  # and on, in the slot that is free again
    cluster.snapshot(8, SIZE * 3 // 4)
    cluster.wait_protected(8)


def parity_bytes(node: Node) -> int:
    return sum(map(arena.allocated, node.dir.glob("slot*.parity*")))


def test_two_groups_each_with_a_lost_node_are_read_by_nodes_of_either(elastic):
    cluster = elastic(6, ((0, 1, 2), (3, 4, 5)))
    snapshot = first_snapshot(cluster)
    old = cluster.world
    left = [node for position, node in enumerate(cluster.nodes) if position not in (0, 4)]
    for position in (0, 4):
        old.nodes[position].lose()
    cluster.reform(left, snapshot, old, parity=2)
    assert {held.position for held in cluster.held(snapshot).values()} == {1, 2, 3, 5}
    for node in left[::2]:
        assert cluster.check_origin(node, SIZE) > 0


def flip(node: Node, snapshot: SnapshotId, chunk: int) -> None:
    lane = Lane(node.dir, 0)
    lane.regions[snapshot.slot].chunk(chunk)[77] ^= 1
    lane.close()


def test_damaged_bytes_of_a_holder_are_never_handed_out(elastic):
    cluster = elastic(4)
    snapshot = first_snapshot(cluster)
    cluster.reform([*cluster.nodes[:3], newcomer(cluster), cluster.nodes[3]], snapshot, cluster.world)
    flip(cluster.nodes[1], snapshot, 1)
    for reader in (cluster.nodes[3], cluster.nodes[1]):  # a far one, and the damaged one itself
        assert cluster.check_origin(reader, SIZE) > 0
    wait_until(lambda: "event=chunk_damaged" in log_of(cluster.nodes[1]))
    (held,) = [h for h in cluster.nodes[1].agent.inventory().holdings if h.snapshot == snapshot]
    assert len(held.damage) == 1


def test_a_damaged_source_of_what_is_decoded_is_found_and_done_without(elastic):
    cluster = elastic(4, parity=2)
    snapshot = first_snapshot(cluster)
    old = cluster.world
    old.nodes[0].lose()
    cluster.reform(old.nodes[1:], snapshot, old)
    flip(old.nodes[1], snapshot, 0)  # of the same stripe as the first chunk of the lost node
    # Two sources are enough: if the damaged one were the last to be connected, it would not be asked.
    wait_until(lambda: log_of(old.nodes[3]).count("event=origin_linked") == 2)
    assert cluster.check_origin(old.nodes[3], SIZE) > 0
    wait_until(lambda: "event=chunk_damaged" in log_of(old.nodes[1]))


def test_what_cannot_be_decoded_is_said_and_not_made_up(elastic):
    cluster = elastic(4)
    snapshot = first_snapshot(cluster)
    old = cluster.world
    for node in old.nodes[:2]:
        node.lose()
    cluster.reform(old.nodes[2:], snapshot, old)
    with DaemonClient(cluster.nodes[0].dir, role="worker") as client:
        assert client.read(snapshot, 3, 0, 100, 200) == content(5, 3, 0, SIZE)[100:200]
        with pytest.raises(SnapshotIncomplete, match=r"positions \[0, 1\]"):
            client.read(snapshot, 0, 0, 0, 100)


def test_a_holder_that_is_killed_while_it_is_read_is_done_without(elastic):
    size = 20_000_000
    cluster = elastic(4)
    cluster.reserve(size)
    snapshot = cluster.snapshot(5, size)
    cluster.wait_protected(5)
    old, reader, victim = cluster.world, newcomer(cluster), cluster.nodes[2]
    cluster.reform([*cluster.nodes, reader], snapshot, old)
    into = [bytearray(size - 100 * position) for position in range(4)]
    with DaemonClient(reader.dir, role="worker") as client:
        client.units(snapshot)
        wanted = [Wanted(position, 0, 0, memoryview(into[position])) for position in (2, 0, 1, 3)]
        reading = threading.Thread(target=client.read_many, args=(snapshot, wanted))
        reading.start()
        wait_until(lambda: into[2][0] != 0 or into[2][3] != 0, every_seconds=0)
        victim.kill_daemon()
        reading.join(30)
    assert "event=origin_lost position=2" in log_of(reader)
    assert [bytes(data) == content(5, position, 0, size) for position, data in enumerate(into)] == [True] * 4
    cluster.resume(victim)  # and it serves again, what it had and what it is asked for
    wait_until(lambda: log_of(reader).count("event=origin_linked position=2") == 2)
    assert cluster.check_origin(victim, size) > 0


def test_with_parity_2_one_is_lost_before_and_another_one_while_it_is_read(elastic):
    """Five nodes; the three that are left read all, and go on from the same origin."""
    size = 20_000_000
    cluster = elastic(5, parity=2)
    cluster.reserve(size)
    snapshot = cluster.snapshot(5, size)
    cluster.wait_protected(5)
    old, victim = cluster.world, cluster.nodes[2]
    old.nodes[0].lose()
    cluster.reform(old.nodes[1:], snapshot, old)
    into = [bytearray(size - 100 * position) for position in range(5)]
    reader = cluster.nodes[3]
    with DaemonClient(reader.dir, role="worker") as client:
        client.units(snapshot)
        wanted = [Wanted(position, 0, 0, memoryview(into[position])) for position in (2, 0, 1, 3, 4)]
        reading = threading.Thread(target=client.read_many, args=(snapshot, wanted))
        reading.start()
        wait_until(lambda: any(into[2][:4]), every_seconds=0)
        victim.lose()
        reading.join(60)
    assert "event=origin_lost position=2" in log_of(reader)
    assert [bytes(data) == content(5, position, 0, size) for position, data in enumerate(into)] == [True] * 5
    left = [node for node in cluster.nodes if node is not victim]
    cluster.nodes = left
    cluster.reform(left, snapshot, old)
    for node in left:
        assert cluster.check_origin(node, size) > 0


def test_small_parts_of_all_units_are_read_by_all_nodes_at_once_although_one_is_lost(elastic):
    """What holders prove, and decode, for each other."""
    cluster = elastic(4)
    snapshot = first_snapshot(cluster)
    go_on_without(cluster, 2, snapshot)
    starts = [(position, start) for position in range(4) for start in range(7, SIZE - 50_000, 130_000)]

    def read(node: Node, into: list[bytearray]) -> None:
        with DaemonClient(node.dir, role="worker") as client:
            client.units(snapshot)
            pairs = zip(starts, into, strict=True)
            client.read_many(snapshot, [Wanted(p, 0, start, memoryview(data)) for (p, start), data in pairs])

    buffers = {node: [bytearray(50_000) for _ in starts] for node in cluster.nodes}
    readers = [threading.Thread(target=read, args=each) for each in buffers.items()]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    whole = [content(5, position, 0, SIZE) for position in range(4)]
    expected = [whole[position][start : start + 50_000] for position, start in starts]
    assert all([bytes(data) for data in into] == expected for into in buffers.values())


def test_holders_are_read_over_tls(elastic, tmp_path):
    cluster = elastic(4, flags=make_certificates(tmp_path).arguments())
    snapshot = first_snapshot(cluster)
    go_on_without(cluster, 1, snapshot)
    for node in (cluster.nodes[0], cluster.nodes[3]):
        assert cluster.check_origin(node, SIZE) > 0


def test_an_older_snapshot_is_kept_for_the_case_that_the_origin_is_doubtful(elastic):
    cluster = elastic(4)
    older = first_snapshot(cluster, 5)
    newer = cluster.snapshot(6, SIZE)
    cluster.wait_protected(6)
    old = cluster.world
    old.nodes[1].lose()
    left = [node for node in old.nodes if node is not old.nodes[1]]
    cluster.nodes = left
    cluster.reform(left, newer, old, older=older)
    assert cluster.check_origin(left[0], SIZE) > 0
    assert [held.position for held in cluster.held(older).values()] == [0, 2, 3]
    cluster.reform(left, older, old)
    for node in left:
        assert cluster.check_origin(node, SIZE) > 0
    assert not cluster.held(newer)
    cluster.reserve(SIZE)
    again = cluster.snapshot(6, SIZE)
    cluster.wait_protected(6)
    cluster.wait_let_go(older)
    cluster.check(again, SIZE)


def test_an_older_snapshot_gives_way_where_it_must(elastic):
    """With both kept, snapshots of the new world go on in the third slot, and then all is let go."""
    cluster = elastic(3)
    older = first_snapshot(cluster, 5)
    newer = cluster.snapshot(6, SIZE)
    cluster.wait_protected(6)
    cluster.reform(cluster.nodes[:2], newer, cluster.world, older=older)
    cluster.reserve(SIZE)
    cluster.snapshot(7, SIZE)
    cluster.wait_protected(7)
    cluster.wait_let_go(newer)
    cluster.wait_let_go(older)
    for version in (8, 9):
        cluster.snapshot(version, SIZE)
        cluster.wait_protected(version)


def test_a_world_that_captured_nothing_is_followed_by_another_from_the_same_origin(elastic):
    cluster = elastic(4)
    snapshot = first_snapshot(cluster)
    old = cluster.world
    cluster.reform([*old.nodes, newcomer(cluster)], snapshot, old, parity=2)
    cluster.reserve(SIZE)
    torn = cluster.take(6)
    for position in range(4):  # the last one is lost before it has captured its share
        cluster.write(position, 0, torn, bytes(SIZE))
    cluster.nodes[0].lose()
    cluster.reform(cluster.nodes[4:] + cluster.nodes[1:4], snapshot, old, parity=1)  # the shape of the first world
    assert not cluster.held(torn)
    for node in cluster.nodes[:2]:
        assert cluster.check_origin(node, SIZE) > 0
    cluster.reserve(SIZE)
    newer = cluster.snapshot(6, SIZE)
    cluster.wait_protected(6)
    cluster.wait_let_go(snapshot)
    cluster.check(newer, SIZE)


def test_a_sealed_snapshot_that_is_not_protected_and_the_origin_are_both_kept(elastic):
    cluster = elastic(3)
    snapshot = first_snapshot(cluster)
    cluster.reform(cluster.nodes[:2], snapshot, cluster.world)
    cluster.reserve(SIZE)
    sealed = cluster.take(6)
    cluster.nodes[1].kill_daemon()  # its parity cannot be stored by anybody now
    for position in range(2):
        cluster.write(position, 0, sealed, content(6, position, 0, SIZE))
    cluster.nodes[1].start()
    cluster.nodes[1].ready()
    assert set(cluster.held(snapshot)) == set(cluster.held(sealed)) == set(cluster.nodes)
    assert [held.position for held in cluster.held(snapshot).values()] == [0, 1]
    cluster.again(sealed)
    cluster.wait_restored()
    cluster.wait_let_go(snapshot)  # once the parity of the other one is made
    wait_until(lambda: cluster.protected() == 6)
    cluster.check(sealed, SIZE)


def test_a_world_without_parity_lets_go_of_the_origin_once_it_has_sealed(elastic):
    cluster = elastic(2)
    snapshot = first_snapshot(cluster)
    old = cluster.world
    old.nodes[1].lose()
    cluster.reform(old.nodes[:1], snapshot, old, parity=0)
    assert cluster.check_origin(cluster.nodes[0], SIZE) > 0
    cluster.reserve(2 * SIZE)
    assert cluster.held(snapshot)
    cluster.snapshot(6, 2 * SIZE)
    cluster.wait_let_go(snapshot)
    assert not list(cluster.nodes[0].dir.glob("slot*.parity*"))


def test_a_gate_that_is_restarted_after_it_let_go_does_not_keep_it_again(elastic):
    cluster = elastic(3)
    snapshot = first_snapshot(cluster)
    cluster.reform(cluster.nodes[:2], snapshot, cluster.world)
    cluster.reserve(SIZE)
    cluster.snapshot(6, SIZE)
    cluster.wait_let_go(snapshot)
    gate = cluster.nodes[0]
    gate.kill_daemon()
    cluster.resume(gate)
    cluster.snapshot(7, SIZE)
    cluster.wait_protected(7)
    assert not cluster.held(snapshot)
    assert cluster.status().exposed_seconds == 0
