"""The small parts: slots, probe, generators, environment, outcome, link, public face."""

from __future__ import annotations

import random
import socket
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import torch._dynamo  # the first optimizer would import it, for more than a second
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import ftrain
from ftrain import outcome, slots
from ftrain.environment import read_environment
from ftrain.errors import EnvironmentInvalid, PeerSilent
from ftrain.link import AgentLink, Finished, Hello, LinkMessage
from ftrain.probe import foreseen_bytes, missing_state_bytes
from ftrain.rng import rng_state, set_rng_state
from ftrain.slots import SlotChooser
from ftrain_snapshot.frames import bind_unix, recv_frame
from ftrain_snapshot.words import SnapshotId


class FakeStore(dict[str, bytes]):
    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def add(self, key: str, amount: int) -> int:
        self[key] = b"%d" % (int(self.setdefault(key, b"0")) + amount)
        return int(self[key])


class FakeGate:
    def __init__(self) -> None:
        self.word = (0, -1)

    def gate(self) -> tuple[int, int]:
        return self.word


def test_all_ranks_follow_rank_0_and_a_ticket_is_taken_once() -> None:
    store, gate = FakeStore(), FakeGate()
    first, other = SlotChooser(store, gate), SlotChooser(store, None)
    seen = []
    for version, word in enumerate([(0, -1), (1, 2), (1, 2), (2, 0), (2, -1)]):
        gate.word = word
        slot = first.choose(version)
        assert other.choose(version) == slot
        seen.append(slot)
    assert seen == [None, 2, None, 0, None]
    gate.word = (3, 1)
    assert first.choose(9, possible=False) is None
    assert first.choose(10) == 1  # not taken by the version that could not be captured


def test_with_patience_rank_0_waits_for_the_gate() -> None:
    class Opening(FakeGate):
        def gate(self) -> tuple[int, int]:
            word, self.word = self.word, (2, 1)
            return word

    gate = Opening()
    gate.word = (1, 0)
    chooser = SlotChooser(FakeStore(), gate)
    assert chooser.choose(0) == 0
    gate.word = (1, 0)  # taken already
    assert chooser.choose(1, patience_seconds=60.0) == 1
    assert chooser.choose(2, patience_seconds=0.01) is None


def test_rank_0_may_run_far_ahead() -> None:
    """Given ranks that wait for nothing, when the last comes to a version, then it does there what rank 0 did."""
    store, gate = FakeStore(), FakeGate()
    first, other = SlotChooser(store, gate), SlotChooser(store, None)
    gate.word = (1, 2)
    decided = [first.choose(version) for version in range(500)]
    assert decided == [2] + [None] * 499
    assert [other.choose(version) for version in range(400)] == decided[:400]
    gate.word = (2, 0)  # now all have captured version 0
    decided += [first.choose(version) for version in range(500, 600)]
    assert [other.choose(version) for version in range(400, 600)] == decided[400:]
    assert decided[500] == 0
    assert len(store) == 1


def test_one_rank_tells_that_ranks_lay_out_differently_what_they_share() -> None:
    """The gate drops such snapshots, each time; only captures of one version are compared."""
    store, gate = FakeStore(), FakeGate()
    ranks = [SlotChooser(store, gate), SlotChooser(store, None), SlotChooser(store, None)]
    layouts = {0: (7, 7, 7), 1: (8, 7, 8), 2: (8, 9, 9), 3: (8, 9, 9), 4: (8, 9, 9)}
    told = []
    for version, digests in layouts.items():
        gate.word = (version + 1, version % 3)
        for number, (rank, digest) in enumerate(zip(ranks, digests, strict=True)):
            slot = rank.choose(version)
            if slot is not None and (version, number) != (1, 1):  # once a rank has no memory for it
                told += [(version, number)] * rank.capture(version, digest)
    assert told == [(3, 1)]


def test_a_rank_that_rank_0_lets_wait_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "NOTE_SECONDS", 0.0)
    noted: list[int] = []
    with pytest.raises(PeerSilent):
        SlotChooser(FakeStore(), None, timeout_seconds=0.01, note_wait=lambda: noted.append(1)).choose(3)
    assert noted == [1]


def test_and_says_so_when_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "NOTE_SECONDS", 0.0)
    store, noted = FakeStore(), []
    first = SlotChooser(store, FakeGate())

    def wait() -> None:
        noted.append("waits")
        first.choose(0)

    other = SlotChooser(store, None, note_wait=wait, note_hold=lambda: noted.append("goes on"))
    assert other.choose(0) is None
    first.choose(1)
    assert other.choose(1) is None
    assert noted == ["waits", "goes on"]


def test_a_silent_rank_0_is_given_up() -> None:
    with pytest.raises(PeerSilent, match="rank 0"):
        SlotChooser(FakeStore(), None, timeout_seconds=0.0).choose(3)


class Strange(torch.optim.Optimizer):
    """Cannot be made again from its settings."""

    def __init__(self, parameters: object, token: object) -> None:
        assert token == "known to its maker"
        super().__init__(parameters, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (lambda p: torch.optim.AdamW(p), 2),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 3),
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 1),
        (lambda p: torch.optim.Adagrad(p), 0),  # makes its state at once
        (lambda p: torch.optim.RMSprop(p, momentum=0.1, centered=True), 3),
        (lambda p: torch.optim.LBFGS(p), 2),  # steps with a closure only: the fallback
        (lambda p: Strange(p, "known to its maker"), 2),
    ],
)
def test_optimizer_state_is_foreseen(make: object, factor: int) -> None:
    parameter = nn.Parameter(torch.zeros(10, 20))
    before = torch.get_rng_state()
    called: list[object] = []
    handle = register_optimizer_step_post_hook(lambda *a: called.append(a))
    optimizer = make([parameter])  # type: ignore[operator]
    missing = missing_state_bytes(optimizer)
    handle.remove()
    assert sum(missing.values()) == factor * 800
    assert called == []
    assert torch.equal(torch.get_rng_state(), before)
    alone, shared = (foreseen_bytes([optimizer], who, 4) for who in (set(), {parameter}))
    assert alone - shared == factor * 600


def test_state_that_exists_is_not_foreseen_again() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert missing_state_bytes(optimizer) == {}


def test_all_generators_go_back() -> None:
    state = rng_state()
    draws = [(random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(2).tolist()) for _ in range(3)]
    set_rng_state(state)
    assert draws == [(random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(2).tolist()) for _ in range(3)]


LAUNCHED = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "5"}


def test_the_environment_tells_who_launched() -> None:
    assert not read_environment({}).launched
    torchrun = read_environment(LAUNCHED)
    assert torchrun.launched
    assert torchrun.job is None
    assert (torchrun.rank, torchrun.world_size, torchrun.local_rank) == (3, 4, 1)
    ours = read_environment(
        {**LAUNCHED, "FTRAIN_NODE_DIR": "/d", "FTRAIN_GENERATION": "2", "FTRAIN_RESTORE": "7:1:2", "FTRAIN_JOB": "j"}
    )
    assert ours.job is not None
    assert ours.job.restore == SnapshotId(7, 1, 2)
    assert ours.job.snapshot_every == 1


@pytest.mark.parametrize(
    "wrong", [{"RANK": "x"}, {"RANK": "4"}, {"FTRAIN_RESTORE": "7"}, {"FTRAIN_GENERATION": ""}, {"MASTER_PORT": ""}]
)
def test_a_wrong_environment_is_refused_by_name(wrong: dict[str, str]) -> None:
    good = {**LAUNCHED, "FTRAIN_NODE_DIR": "/d", "FTRAIN_GENERATION": "2"}
    with pytest.raises(EnvironmentInvalid, match=next(iter(wrong))):
        read_environment({**good, **wrong})


@pytest.mark.parametrize(
    ("error", "communication"),
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), True),
        (torch.distributed.DistStoreError("wait timeout"), True),
        (PeerSilent("rank 0"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x4)"), False),
        (ConnectionError("could not download the data"), False),
        (ValueError("gloo"), False),
    ],
)
def test_a_lost_peer_is_told_from_a_users_error(error: Exception, communication: bool) -> None:
    assert outcome.is_communication_error(error) is communication
    wrapped = KeyError("x")
    wrapped.__cause__ = error
    assert outcome.is_communication_error(wrapped) is communication


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (3, 3), ("message", 1)])
def test_exit_codes_are_pythons(code: object, expected: int) -> None:
    assert outcome.exit_code_of(SystemExit(code)) == expected


def test_the_link_connects_again_when_its_agent_was_restarted(tmp_path: Path) -> None:
    hello = Hello(rank=1, local_rank=0, pid=5, generation=2)
    link = AgentLink(tmp_path / "agent.sock", hello)
    assert not link.send(Finished())
    for _ in range(2):
        listener = bind_unix(tmp_path / "agent.sock")
        assert link.send(Finished())
        line, _ = listener.accept()
        got = [msgspec.msgpack.decode(recv_frame(line), type=LinkMessage) for _ in range(2)]
        assert got == [hello, Finished()]
        line.shutdown(socket.SHUT_RDWR)
        line.close()
        listener.close()
    link.close()
    assert threading.active_count() >= 1


def test_every_public_name_is_there() -> None:
    for name in ftrain.__all__:
        assert getattr(ftrain, name) is not None
    assert dir(ftrain) == sorted(ftrain.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ftrain.nothing
