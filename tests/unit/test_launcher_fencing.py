"""Who may decide: quorums, terms, elections; the copies that commands wait for; where agents look."""

from __future__ import annotations

import pytest
from unit.coordinator_job import config

from ftrain_launcher.control.copies import ANSWER_SECONDS_MAX, Copies
from ftrain_launcher.from_agent import Join
from ftrain_launcher.job.fencing import Ask, Elected, Election, Fence, Nodes, Stale, is_quorum, next_term
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.jobs import Endpoint
from ftrain_launcher.search import Search
from ftrain_launcher.to_agent import Form
from ftrain_snapshot.membership import Peer

THREE = ("a", "b", "c")


def join(node: str, *, term: int = 1, stopped: int = 4, accepted: int = 4) -> Join:
    return Join(
        node=node,
        host=node,
        agent_pid=1,
        daemon_pid=1,
        daemon_port=1,
        term=term,
        stopped=stopped,
        accepted=accepted,
    )


@pytest.mark.parametrize(
    ("nodes", "here", "expected"),
    [
        ("abc", "ab", True),
        ("abc", "a", False),
        ("abc", "bcx", True),
        ("abcd", "ab", True),
        ("abcd", "bc", False),
        ("abcd", "bcd", True),
        ("ab", "a", True),
        ("ab", "b", False),
        ("a", "", False),
        ("", "", False),
    ],
)
def test_more_than_half_of_the_nodes_or_half_with_the_first(nodes: str, here: str, *, expected: bool) -> None:
    assert is_quorum(tuple(nodes), set(here)) is expected


def test_two_quorums_have_a_node_in_common() -> None:
    for size in range(1, 8):
        nodes = tuple("abcdefg"[:size])
        sets = [{n for i, n in enumerate(nodes) if mask >> i & 1} for mask in range(2**size)]
        quorums = [s for s in sets if is_quorum(nodes, s)]
        assert all(one & other for one in quorums for other in quorums)


def test_each_term_is_one_candidates_and_newer_than_the_newest() -> None:
    assert [next_term(1, candidate, 3) for candidate in range(3)] == [4, 2, 3]
    for newest in range(20):
        terms = [next_term(newest, candidate, 3) for candidate in range(3)]
        assert len(set(terms)) == 3
        assert all(newest < term <= newest + 3 for term in terms)
        assert [(term - 1) % 3 for term in terms] == [0, 1, 2]


def test_a_candidate_takes_over_once_a_quorum_has_come_and_promised() -> None:
    election = Election(1, 2, term=1)
    election.come(join("a"))
    assert election.poll([THREE], 4) is None
    election.come(join("b", stopped=5))
    assert election.poll([THREE], 4) == Ask(2, ("a", "b"))
    assert election.poll([THREE], 4) is None
    election.come(join("a", term=2))
    assert election.poll([THREE], 4) is None
    election.come(join("b", term=2, stopped=5))
    assert election.poll([THREE], 4) == Elected(2, 5)


def test_one_that_goes_counts_no_more_and_one_that_comes_late_is_asked_too() -> None:
    election = Election(1, 2, term=1)
    for node in "ab":
        election.come(join(node))
    assert election.poll([THREE], 4) == Ask(2, ("a", "b"))
    election.come(join("a", term=2))
    election.go("b")
    assert election.poll([THREE], 4) is None
    election.come(join("c"))
    assert election.poll([THREE], 4) == Ask(2, ("c",))
    election.come(join("c", term=2))
    assert election.poll([THREE], 4) == Elected(2, 4)


def test_who_has_promised_another_candidate_more_is_asked_for_more() -> None:
    election = Election(1, 3, term=1)
    for node in "ab":
        election.come(join(node))
    assert election.poll([THREE], 4) == Ask(2, ("a", "b"))
    election.come(join("a", term=3))
    assert election.poll([THREE], 4) == Ask(5, ("a", "b"))


def form(generation: int, *quorums: Nodes) -> Form:
    peers = tuple(Peer(i, node, "h", 1) for i, node in enumerate(quorums[-1]))
    return Form(
        generation=generation,
        position=0,
        peers=peers,
        store_host="h",
        store_port=1,
        restore=None,
        work=config().work,
        quorums=quorums,
    )


def test_until_a_generation_has_trained_a_quorum_of_the_one_before_is_needed_too() -> None:
    election = Election(1, 2, term=1)
    for node in "dea":
        election.come(join(node))
    assert election.poll([THREE, ("d", "e", "f")], 4) is None
    election.come(join("b"))
    assert election.poll([THREE, ("d", "e", "f")], 4) == Ask(2, ("d", "e", "a", "b"))


def test_a_copy_that_lacks_a_generation_must_not_take_over() -> None:
    election = Election(1, 2, term=1)
    for node in "abc":
        election.come(join(node, accepted=5))
    assert election.poll([THREE], 4) == Stale(4, 5, "a")


def test_what_it_lacks_it_learns_from_the_agents_and_needs_the_quorums_that_they_tell_of() -> None:
    election = Election(1, 2, term=1)
    for node in "de":
        election.come(join(node, accepted=5))
    assert election.poll([], 0) == Stale(0, 5, "d")
    election.learn(form(5, THREE, ("d", "e", "f")))
    assert election.poll([], 0) is None
    election.come(join("a"))
    election.come(join("b", accepted=6))
    assert election.poll([], 0) == Stale(5, 6, "b")
    election.come(join("b", accepted=4))
    assert election.poll([], 0) == Ask(2, ("d", "e", "a", "b"))
    for node in "deab":
        election.come(join(node, term=2, stopped=7))
    assert election.poll([], 0) == Elected(2, 7, form(5, THREE, ("d", "e", "f")))


def test_a_copy_that_knows_as_much_needs_no_word_of_the_agents() -> None:
    election = Election(1, 2, term=1)
    election.learn(form(4, ("x", "y", "z")))
    for node in "ab":
        election.come(join(node, accepted=4, term=2))
    assert election.poll([THREE], 4) == Ask(4, ("a", "b"))


def test_a_generation_is_told_with_the_quorums_that_the_next_one_needs() -> None:
    fence, before = Fence(active=True), Generation()
    assert fence.after(before, THREE) == [THREE]
    fence.begin([THREE])
    assert fence.after(before, ("d", "b", "c")) == [THREE, ("d", "b", "c")]
    assert fence.after(before, THREE) == [THREE]
    assert Fence(active=False).after(before, THREE) == []


def test_before_anything_was_formed_nobody_takes_over_and_of_the_end_anybody_may_tell() -> None:
    election = Election(1, 2, term=1)
    assert election.poll([()], 4) is None
    election.come(join("a", accepted=0))
    assert election.poll([], 0) is None
    assert election.poll([()], 4) == Ask(2, ("a",))


def test_commands_wait_for_all_followers_and_for_none_for_long() -> None:
    copies: Copies[str] = Copies(10)
    copies.hold(10, ["one"], 0.0)
    assert copies.ready() == ["one"]
    copies.follow("b", 10)
    copies.follow("c", 10)
    copies.hold(20, ["two"], 0.0)
    copies.hold(30, ["three"], 0.5)
    copies.write(20, 0.0)
    copies.write(30, 0.5)
    copies.follow("b", 30)
    assert copies.ready() == []
    assert copies.overdue(ANSWER_SECONDS_MAX / 2) == []
    copies.follow("c", 20)
    assert copies.ready() == ["two"]
    assert copies.overdue(0.5 + ANSWER_SECONDS_MAX) == ["c"]
    copies.leave("c")
    assert copies.ready() == ["three"]


def test_commands_wait_for_the_controllers_own_disk_for_as_long_as_it_takes() -> None:
    copies: Copies[str] = Copies(0)
    copies.hold(10, ["one", "two"], 0.0)
    copies.hold(20, ["three"], 0.1)
    assert copies.ready() == []
    copies.write(10, 99.0)
    assert copies.ready() == ["one", "two"]
    copies.write(20, 99.5)
    assert copies.ready() == ["three"]


def test_a_follower_has_its_time_from_when_the_controllers_disk_had_the_line() -> None:
    copies: Copies[str] = Copies(0)
    copies.follow("b", 0)
    copies.hold(10, ["one"], 0.0)
    assert copies.overdue(50.0) == []
    copies.write(10, 50.0)
    assert copies.overdue(50.5) == []
    assert copies.overdue(50.0 + ANSWER_SECONDS_MAX) == ["b"]


def test_an_agent_is_patient_and_then_looks_everywhere() -> None:
    one, two, three = (Endpoint(f"h{i}", 29400, None) for i in range(3))
    search = Search([one, two, three], Endpoint("h1", 29400, 7), 3.0)
    assert search.order(2.9) == [two]
    assert search.order(3.1) == [two, one, three]
    assert search.hear_of(2)
    assert not search.hear_of(2)
    assert search.order(9.0) == [three, one, two]
    assert not search.hear_of(None)
    assert search.order(9.0) == [one, two, three]
    search.found(two)
    assert search.order(0.0) == [two]
