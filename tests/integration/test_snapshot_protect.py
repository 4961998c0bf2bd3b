"""What protecting takes: only what changed is copied, sent and coded, and before the seal."""

import pytest
from integration.four_nodes import SIZE, four_nodes, new_generation
from snapshot_nodes import Cluster, capture, content, edited, wait_until

from ftrain_snapshot import arena
from ftrain_snapshot.manifest import CHUNK_BYTES

nodes = pytest.fixture(four_nodes, scope="module")
cluster = pytest.fixture(new_generation)


def volumes(cluster: Cluster, name: str) -> list[int]:
    """That figure of the newest snapshot protected, by position."""
    return [getattr(cluster.status(p).last, name) for p in range(len(cluster.nodes))]


def test_what_did_not_change_is_neither_copied_nor_sent_nor_coded(cluster):
    def first(position, lane):
        return content(0, position, lane, SIZE)

    for version in range(2):
        snapshot = cluster.snapshot(version, SIZE, data=first)
        cluster.wait_protected(version)
    for name in ("copied_bytes", "sent_bytes", "received_bytes", "coded_bytes"):
        assert volumes(cluster, name) == [0] * 4
    # Two lanes of two stripes; five chunks make no fifth rotation.
    assert volumes(cluster, "kept_chunks") == [4, 4, 4, 2]
    cluster.nodes[1].lose()
    cluster.replace(1)
    cluster.configure(snapshot)
    cluster.wait_restored()
    cluster.check(snapshot, SIZE, first)


@pytest.mark.parametrize("who", [(0,), (1, 3), (0, 1, 2, 3)])
def test_parity_is_right_whoever_changes_and_only_what_it_takes_is_fetched(cluster, who):
    states = {(p, lane): content(0, p, lane, SIZE) for p in range(4) for lane in range(2)}
    cluster.snapshot(0, SIZE, data=lambda p, lane: states[p, lane])
    cluster.wait_protected(0)
    for version in range(1, 5):
        for position in who:
            states[position, 1] = edited(states[position, 1], (version % 3, 4), version)
        snapshot = cluster.snapshot(version, SIZE, data=lambda p, lane: states[p, lane])
        cluster.wait_protected(version)
        changed = [p in who for p in range(4)]
        assert [sent > 0 for sent in volumes(cluster, "sent_bytes")] == changed
        assert [copied > 0 for copied in volumes(cluster, "copied_bytes")] == changed
        assert sum(volumes(cluster, "coded_bytes")) <= 4 * sum(volumes(cluster, "sent_bytes"))
        assert sum(volumes(cluster, "kept_chunks")) > 4 * 2
    for position in (2, 1):
        cluster.nodes[position].lose()
        cluster.replace(position)
        cluster.configure(snapshot)
        cluster.wait_restored()
        cluster.check(snapshot, SIZE, lambda p, lane: states[p, lane])
        cluster.wait_protected(snapshot.version)


def test_chunks_are_sent_and_coded_before_the_seal(cluster):
    cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    snapshot, before = cluster.take(1), cluster.status(1).last
    captures = [
        capture(node.dir, lane, snapshot, content(1, p, lane, SIZE), b"manifest %d" % lane)
        for p, node in enumerate(cluster.nodes)
        for lane in range(2)
    ]
    for index, captured in enumerate(captures):
        captured.publish(3)
        cluster.nodes[index // 2].agent.captured(captured.number, snapshot)
    parity = arena.parity_path(cluster.nodes[1].dir, snapshot.slot, 0, 1)
    # In rotation 1 position 1 keeps parity; of position 0 it is the first chunk, of 2 and 3 the second.
    parts = [content(1, p, 0, SIZE)[(p > 0) * CHUNK_BYTES :][:100] for p in (0, 2, 3)]
    expected = bytes(a ^ b ^ c for a, b, c in zip(*parts, strict=True))
    wait_until(lambda: parity.read_bytes()[:100] == expected, what="parity of what is not sealed yet")
    assert cluster.protected() == 0
    assert cluster.status(1).last == before
    for index, captured in enumerate(captures):
        captured.finish()
        cluster.nodes[index // 2].agent.sealed(captured.number, snapshot)
        captured.lane.close()
    cluster.wait_protected(1)
    cluster.check(snapshot, SIZE)


@pytest.mark.parametrize("torn", [False, True])
def test_a_capture_that_dies_half_way_leaves_nothing_behind(cluster, torn):
    first = cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    dying = cluster.take(1)
    for position, node in enumerate(cluster.nodes):
        with capture(node.dir, 0, dying, content(1, position, 0, SIZE), b"") as captured:
            captured.publish(2 + position)
            node.agent.captured(0, dying)
    assert cluster.newest() == first
    if torn:
        cluster.nodes[2].agent.skip(dying)
    else:  # the workers died: a new generation
        cluster.configure(first)
        cluster.wait_restored()
    snapshot = cluster.snapshot(2, SIZE)
    cluster.wait_protected(2)
    assert {h.snapshot for held in cluster.holdings().values() for h in held} == {first, snapshot}
    cluster.check(first, SIZE)
    cluster.nodes[3].lose()
    cluster.replace(3)
    cluster.configure(snapshot)
    cluster.wait_restored()
    cluster.check(snapshot, SIZE)


def test_a_daemon_that_missed_a_snapshot_fetches_what_it_takes_to_protect_it(cluster):
    states = {(p, lane): content(0, p, lane, SIZE) for p in range(4) for lane in range(2)}
    cluster.snapshot(0, SIZE, data=lambda p, lane: states[p, lane])
    cluster.wait_protected(0)
    snapshot = cluster.take(1)
    cluster.nodes[2].kill_daemon()
    for position, lane in states:
        cluster.write(position, lane, snapshot, states[position, lane])
        if position != 2:
            cluster.nodes[position].agent.sealed(lane, snapshot)
    cluster.nodes[2].start()
    cluster.nodes[2].ready()
    cluster.configure(resumed=True)
    cluster.wait_restored()
    cluster.wait_protected(1)
    wait_until(lambda: cluster.status().exposed_seconds == 0)
