"""How a job comes by its nodes: who gets which position, real hosts, and failure domains."""

from __future__ import annotations

import pytest
from simulation.checkers import state_of
from unit.coordinator_job import BOTH, Job, config

from ftrain_launcher.job.events import HostCame, Tick
from ftrain_launcher.job.membership import Node, NodeState, Phase
from ftrain_launcher.job.policy import EXIT_NODES, EXIT_USAGE
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.to_agent import Stop


def test_the_first_nodes_get_the_first_positions_in_whatever_order_they_come() -> None:
    job = Job()
    for node in reversed(job.started):
        job.join(node)
    assert job.members() == ["node-0", "node-1", "node-2"]
    assert job.coordinator.nodes["node-3"].state is NodeState.IDLE


def test_a_spare_takes_the_place_of_a_first_node_that_does_not_come() -> None:
    job = Job()
    for node in ("node-0", "node-2", "node-3"):
        job.join(node)
    assert job.coordinator.phase is Phase.GATHERING
    job.lose("node-1")
    assert job.members() == ["node-0", "node-2", "node-3"]


def test_ranks_go_out_once_all_have_acknowledged() -> None:
    job = Job(config(nodes=2, nproc=2))
    job.gather()
    assert [m.host_store for _, m in job.sent if isinstance(m, Stop)] == [True, False]
    job.stopped("node-1")
    assert not job.forms()
    job.stopped("node-0", port=42)
    assert {n: (m.position, m.store_host, m.store_port) for n, m in job.forms().items()} == {
        "node-0": (0, "node-0", 42),
        "node-1": (1, "node-0", 42),
    }
    assert {r: rank.node for r, rank in job.coordinator.ranks.items()} == {
        0: "node-0",
        1: "node-0",
        2: "node-1",
        3: "node-1",
    }


def test_an_answer_of_one_of_many_nodes_costs_no_look_at_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are as many answers as nodes: a look each would make a generation of 50,000 nodes take minutes."""
    looks: list[Roster] = []
    members = Roster.members

    def counted(roster: Roster) -> list[Node]:
        looks.append(roster)
        return members(roster)

    monkeypatch.setattr(Roster, "members", counted)
    costs = []
    for nodes in (10, 40):
        job = Job(config(nodes=nodes, spares=0))
        job.run()
        looks.clear()
        job.exit(1)
        job.stop_all()
        costs.append(len(looks))
    assert costs[0] == costs[1]


def test_nodes_that_do_not_start_are_replaced_but_not_for_ever() -> None:
    job = Job(config(nodes=4, spares=0))
    job.join("node-0")
    for node in ("node-1", "node-2"):
        job.lose(node)
    assert job.started == [f"node-{n}" for n in range(6)]
    job.lose("node-4")
    job.leave("node-0")
    assert job.end is not None
    assert job.end.exit_code == EXIT_NODES
    assert "node-4 (killed)" in job.end.message


@pytest.fixture
def hosts() -> Job:
    """Three hosts and a spare, that run."""
    job = Job(config(hosts=True))
    for number in range(4):
        job.come(f"h{number}")
    job.stop_all()
    job.step_all()
    job.sent.clear()
    return job


def test_hosts_are_not_asked_for_but_numbered_as_they_come() -> None:
    job = Job(config(hosts=True))
    assert job.started == []
    assert [job.come(f"h{number}") for number in range(4)] == ["node-0", "node-1", "node-2", "node-3"]
    assert job.members() == ["node-0", "node-1", "node-2"]
    assert job.coordinator.nodes["node-3"].state is NodeState.IDLE
    assert job.news[0] == "node-0 is h0 (node-0); 2 to come"


def test_a_host_that_did_not_hear_the_answer_gets_the_same_one() -> None:
    job = Job(config(hosts=True))
    for _ in range(2):
        job.tell(HostCame("mark", "h0"))
    assert job.started == ["node-0", "node-0"]


def test_a_host_gets_the_position_that_it_is_meant_for() -> None:
    job = Job(config(hosts=True))
    for launcher, position in (("a", 2), ("b", None), ("c", 0)):
        job.come(launcher, position=position)
    assert job.members() == ["node-2", "node-1", "node-0"]


def test_hosts_are_waited_for_but_not_for_ever() -> None:
    job = Job(config(hosts=True))
    job.come("h0")
    deadline = job.coordinator.next_deadline()
    assert deadline is not None
    assert deadline > job.now + 200
    job.tell(Tick(), after=deadline - job.now)
    job.leave("node-0")
    assert job.end is not None
    assert job.end.exit_code == EXIT_NODES
    assert job.end.message == "2 of 3 hosts did not come within 300 s (--join-timeout-seconds)"


def test_a_fresh_host_takes_the_place_of_a_lost_one(hosts: Job) -> None:
    for node in ("node-1", "node-3"):
        hosts.lose(node)
    assert hosts.started == [f"node-{n}" for n in range(4)]
    assert hosts.news[-1] == "waiting for a host: 1 of 3 are missing"
    assert hosts.come("fresh") == "node-4"
    hosts.stop_all(BOTH)
    assert hosts.forms()["node-4"].position == 1


def test_a_host_whose_node_is_gone_offers_itself_again(hosts: Job) -> None:
    """Its launcher may be quicker to say that it has room than to say why."""
    hosts.tell(HostCame("h1", "h1"))
    assert hosts.coordinator.nodes["node-1"].state is NodeState.LOST
    assert hosts.started[-1] == "node-4"
    assert hosts.members() == ["node-0", "node-3", "node-2"]


def test_waiting_for_a_host_survives_a_controller(hosts: Job) -> None:
    for node in ("node-1", "node-3"):
        hosts.lose(node)
    assert state_of(hosts.replayed()) == state_of(hosts.coordinator)
    assert hosts.replayed().next_deadline() == hosts.coordinator.next_deadline()


def labelled(*domains: str, parity: int = 1, nodes: int = 4) -> Job:
    job = Job(config(hosts=True, nodes=nodes, parity=parity))
    for number, domain in enumerate(domains):
        job.come(f"h{number}", domain)
    job.stop_all()
    return job


def test_groups_are_chosen_once_and_outlive_the_nodes() -> None:
    job = labelled("a", "a", "b", "b", "c")
    grouping = job.coordinator.groups
    assert all(len({"aabb"[p] for p in group}) == len(group) for group in grouping)
    assert {m.groups for m in job.forms().values()} == {grouping}
    job.step_all()
    job.lose("node-0")
    job.stop_all(BOTH)
    assert job.coordinator.formed == 2
    assert {m.groups for m in job.forms().values()} == {grouping}
    assert job.replayed().groups == grouping


def test_labels_that_cannot_protect_end_the_job_at_its_start() -> None:
    job = labelled("a", "a", "a", "b")
    assert job.coordinator.exit_code == EXIT_USAGE
    assert "domain" in job.coordinator.exit_message
    assert not job.forms()


def test_the_spare_of_another_failure_domain_is_preferred() -> None:
    job = labelled("a", "b", "c", "d", "b", "e")
    job.step_all()
    job.lose("node-0")
    assert job.members()[0] == "node-5"


def test_a_spare_of_the_same_failure_domain_is_better_than_none() -> None:
    job = labelled("a", "b", "c", "d", "b")
    job.step_all()
    job.lose("node-0")
    assert job.members()[0] == "node-4"
