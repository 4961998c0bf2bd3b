"""Words between controller, agents and engine survive the wire, and nothing else passes."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from unit.coordinator_job import config, raised, snapshot
from unit.test_health_judge import SOUND

from ftrain.health.words import CheckNode, Failed, Hosting, HostPair, JoinPair, PairFigures, RunPair
from ftrain.link import Certified, ReplicaDigest
from ftrain_launcher import engine_messages, from_agent, questions, to_agent
from ftrain_launcher.detect.records import (
    Channel,
    Collectives,
    CollectivesStep,
    Communicator,
    NodeReport,
    Operation,
    ProcessState,
    RankRecord,
    RankStep,
)
from ftrain_launcher.job import events
from ftrain_launcher.trace.records import NodeTrace, RankTrace, StepMark, TraceRecord
from ftrain_launcher.work import Durable
from ftrain_snapshot.inventory import Damage, Holding, Inventory
from ftrain_snapshot.membership import Peer
from ftrain_snapshot.messages import LaneReport, LinkFigure
from ftrain_snapshot.status import DaemonStatus, Levels
from ftrain_snapshot.storage import DurableId

RANKS = (from_agent.RankState(0, 0, 123, "running", 7), from_agent.RankState(1, 1, None, "exited"))
CHECKPOINT = DurableId(4, "s3://b/x/step-00000004", 2)
INVENTORY = Inventory((Holding(snapshot(5), 1, True, False, 10, 20),))
DAEMON = DaemonStatus(1, True, Levels(5, 4), 6, 1, True)
TRACE = NodeTrace(
    generation=1,
    read_ns=2**63,
    communicators=(Communicator("dp", (0, 1)),),
    ranks=(RankTrace(0, (TraceRecord(0, 1, 7, 64, 2**62, 0, -1, True),), (StepMark(-1, 2**62),)),),
    unrecorded=(1,),
)
CERTIFIED = Certified(
    version=41,
    ranks=6,
    tensors=12,
    compared_bytes=2**40,
    counters=4,
    samplers={"sampler": 42},
    samples={"sampler": 2688},
    seconds=0.1,
)
OPERATION = Operation(7, 1, 64, 6, 16, -1, 0.5, 0.1, None)
REPORT = NodeReport(
    node="n",
    generation=1,
    communicators=(Communicator("dp", (0, 1)),),
    ranks=(
        RankRecord(
            0,
            3,
            0.1,
            (Collectives(0, 7, 6, (OPERATION,), OPERATION),),
            (Channel(0, 1, 2, 1, 0, 0),),
            ProcessState("R", 1.5),
        ),
    ),
    steps=(RankStep(0, 2, 0.1, 0.05, (CollectivesStep(0, 2, 128, 0.05, 0.01),)),),
    unrecorded=(1,),
)
FROM_AGENT: list[from_agent.FromAgent] = [
    from_agent.Join(node="n", host="h", agent_pid=1, daemon_pid=None, daemon_port=2, generation=3, ranks=RANKS),
    from_agent.Heartbeat(node="n", generation=1, ranks=RANKS, daemon_pid=2, daemon=DAEMON, inventory=INVENTORY),
    from_agent.WorkerExit(node="n", generation=1, rank=0, pid=1, code=3, failure=raised("E"), last_lines=("a", "b")),
    from_agent.Stopped(node="n", generation=1, inventory=INVENTORY, store_port=None),
    from_agent.Stopped(node="n", generation=1, inventory=INVENTORY, durable=from_agent.DurableSearch(CHECKPOINT)),
    from_agent.DurableEnded("n", 1, 0, snapshot(5), "no space left"),
    from_agent.RankRestored("n", 1, 0, None, 0.1 + 0.2),
    from_agent.RankStepped("n", 1, 0, 8, 1e9),
    from_agent.StateCertified("n", 1, CERTIFIED),
    from_agent.StateUndescribed("n", 1, "unlike values"),
    from_agent.StateDescribed("n", 1, 7),
    from_agent.Held("n", 1, 2, 41),
    from_agent.RankHalted("n", 1, 0, 42, True, 1e9),
    from_agent.Trouble("n", 1, "store_lost", "why"),
    questions.Verified(node="n", request=1, lanes=(LaneReport(snapshot(5), 1, 0, 9, 1, 1, (Damage(0, 1, 2, 3),)),)),
    from_agent.ArenaShort("n", 1, 2**40, 2**30),
    REPORT,
    from_agent.ReplicaDigests("n", 1, 0, 99, (ReplicaDigest("parameters:ddp", 4, 2**63),)),
    questions.Inspected("n", 1, (questions.Finding(3, "stopped", "", "py-spy is not installed"),)),
    questions.ClockRead("n", 1, 0.1 + 0.2),
    questions.TracePart("n", 2, TRACE),
    questions.Probed(node="n", request=1, figures=(LinkFigure(1, 3e-4, 2e-4, 9e8, "", True), LinkFigure(2))),
    *(
        questions.Health(node="n", request=1, answer=a)
        for a in (SOUND, Hosting(7), PairFigures(0.1, True), Failed("no"))
    ),
]
FORM = to_agent.Form(
    generation=2,
    position=1,
    peers=(Peer(0, "n", "h", 1),),
    store_host="h",
    store_port=1,
    restore=snapshot(5),
    durable_start=CHECKPOINT,
    work=msgspec.structs.replace(config().work, durable=Durable(url="s3://b/x", every=10)),
)
FROM_AGENT.append(from_agent.Recalled("n", FORM))
TO_AGENT: list[to_agent.ToAgent] = [
    to_agent.Stand(3, leads=False, leader=1),
    to_agent.Elect(3),
    to_agent.Recall(),
    to_agent.Stop(2, True),
    FORM,
    to_agent.Shutdown("over", 1.5),
    to_agent.Inject("kill-worker", 3),
    questions.Verify(4),
    questions.Inspect(5, (0, 3)),
    to_agent.Hold(1, 2),
    to_agent.HaltAfter(1, 42),
    to_agent.GoOn(1),
    to_agent.WriteDurable(snapshot(5)),
    to_agent.PinDurable(1, 5),
    to_agent.Unpin(snapshot(5)),
    questions.ClockWanted(5),
    questions.TraceWanted(6, 20, 4096),
    questions.Probe(request=7, peers=(Peer(0, "n", "h", 1),), burst_bytes=1 << 20),
    *(questions.CheckHealth(8, task) for task in (CheckNode(), HostPair("h"), RunPair(), JoinPair("h", 7))),
]
OFFER = engine_messages.Offer(
    launcher="0f", hostname="h1", kind="script", argv=("t.py",), nodes=2, nproc_per_node=1, parity=1, node_rank=0
)
ENGINE: list[engine_messages.ToEngine | engine_messages.FromEngine] = [
    engine_messages.StartNode("n"),
    engine_messages.ReapNode("n"),
    engine_messages.JobEnded(3, "lost"),
    engine_messages.EngineHello(("n",)),
    engine_messages.EngineHello((), OFFER),
    engine_messages.Knock(OFFER),
    engine_messages.Welcome(b"{}"),
    engine_messages.NodeGone("n", "killed"),
    engine_messages.StopJob("SIGINT", 130),
    engine_messages.FlushJob("SIGTERM", 60.0),
    engine_messages.HostLeaves("n", "its host is to be switched off"),
]
EVENTS: list[events.Event] = [
    events.JobStarted(config()),
    events.HostCame("0f", "h1", 2),
    events.Joined(FROM_AGENT[0], 1),  # type: ignore[arg-type]
    events.Left("n", 1),
    events.Progress(1, 5, None),
    events.Progress(1, 5, 5, snapshot(5), True),
    events.NodeChecked("n", False, "slow"),
    events.ControllerRestarted(),
    events.ControllerRestarted(2, 5),
    events.ControllerRestarted(2, 5, FORM),
    events.StoodStill(2.5),
    events.Tick(),
]


@pytest.mark.parametrize(
    ("said", "union"),
    [
        *((m, from_agent.FromAgent) for m in FROM_AGENT),
        *((m, to_agent.ToAgent) for m in TO_AGENT),
        *((m, engine_messages.ToEngine | engine_messages.FromEngine) for m in ENGINE),
        *((e, events.Event) for e in EVENTS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_comes_back_as_it_was(said: Any, union: Any) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(said), type=union) == said
    assert msgspec.json.decode(msgspec.json.encode(said), type=union) == said


@pytest.mark.parametrize(
    "union", [from_agent.FromAgent, to_agent.ToAgent, engine_messages.ToEngine, engine_messages.FromEngine]
)
def test_each_message_of_a_line_is_tried_here(union: Any) -> None:
    tried = {type(m) for m in [*FROM_AGENT, *TO_AGENT, *ENGINE]}
    assert set(typing.get_args(union)) <= tried


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "join"},
        {"type": "unheard-of"},
        {"type": "left", "node": "n", "connection": 1},
        {"type": "stepped", "node": "n", "generation": "1", "rank": 0, "step": 0, "time": 0.0},
        {},
        7,
    ],
)
def test_what_is_no_message_is_refused(wrong: Any) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(wrong), type=from_agent.FromAgent)


def test_messages_cannot_be_changed_once_made() -> None:
    with pytest.raises(AttributeError):
        FORM.generation = 3  # type: ignore[misc]
