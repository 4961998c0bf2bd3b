"""Pure: the job's state machine. Events in, commands out; it reads no clock and opens no socket.

A job gathers its nodes, then goes from generation to generation, each formed in two steps:

1. ``Stop(g)`` to every member: end the workers of older generations, say what the daemon holds. A member that
   does not answer, or does not come back within its grace time, is lost, and a spare takes its position.
2. When all that are left have acknowledged ``g``, the newest snapshot that can be read or decoded from what they
   hold is chosen (`formation.py`), or the job ends (`policy.py`). When every position is held, ``Form(g)`` goes out.

A fault at any moment, also while forming, is just the next generation. Every event is journaled before its
commands are carried out, so replaying the journal rebuilds this object (`controller.py` is the shell). Whatever
was not carried out is said again when agents and engine reconnect.

Its parts, which `state.py` puts together: who is there (`roster.py`) and how more come (`recruiting.py`); what runs
(`running.py`) and what will (`forming.py`); what is written to storage (`durable.py`), what broke (`history.py`), who
is to be given no ranks (`quarantine.py`), and how all end (`ending.py`), at the end of a step if there is time for that
(`flushing.py`). Where another host may run the controller: who takes over, and who is left alone (`candidates.py`).
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from ftrain_launcher.engine_messages import FlushJob, HostLeaves, NodeGone, StopJob
from ftrain_launcher.from_agent import Held, Join, RankHalted, Stopped, Trouble
from ftrain_launcher.job.causes import GROWN, HANGS, HARMLESS, MISFIT, NOT_CERTIFIED, Sign, describe
from ftrain_launcher.job.events import (
    Command,
    ControllerRestarted,
    CordonNode,
    Diagnosed,
    Event,
    HostCame,
    JobStarted,
    Joined,
    Left,
    NodeChecked,
    StoodStill,
    Tick,
    UncordonNode,
)
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.job.membership import Node, NodeState, Phase, check_phase
from ftrain_launcher.job.policy import Action
from ftrain_launcher.job.running import Report
from ftrain_launcher.job.state import JobState
from ftrain_launcher.to_agent import Shutdown


class Coordinator(JobState):
    """The job: call `handle` with each event and the time it happened; carry out what it returns."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in one event; return what must be done, in order."""
        if self.phase is not Phase.ENDED:
            self._take_in(event, now)
            self._do_what_waited(now)
            forms = self.phase in (Phase.GATHERING, Phase.STOPPING)
            told = self.generation > 0 or bool(self._preflight.failures)
            self._recruiting.call(now, gathering=self.phase is Phase.GATHERING)
            self._recruiting.wait_for_hosts(now, wanted=forms, announce=told)
        elif isinstance(event, ControllerRestarted):
            self._ending.say()
        return self._orders.take()

    # ---- events

    def _take_in(self, event: Event, now: float) -> None:
        if isinstance(event, Report):
            self._hear_of_work(event, now)
            return
        match event:
            case JobStarted():
                self._recruiting.ask_for(self.config.nodes + self.config.spares, now)
            case HostCame():
                self._host_came(event, now)
            case Joined(join, connection):
                self._join(join, connection, now)
            case Left(name, connection):
                self._leave(name, connection, now)
            case NodeGone(name, reason):
                node = self.nodes.get(name)
                if node is not None and not node.gone:
                    self._lose(node, reason, now)
            case Stopped():
                if self.phase is Phase.STOPPING and self._forming.take(event):
                    self._form_if_ready(now)
            case Trouble():
                self._trouble(event, now)
            case Held() | RankHalted():
                self.halting.take(event, now)
            case CordonNode() | UncordonNode():
                self.quarantine.take(event, now)
                self._fill_positions(now)
            case NodeChecked():
                self._node_checked(event, now)
            case StopJob(reason, exit_code, number):
                self._ending.signal = number
                self._end(Action(False, reason, exit_code), now)
            case FlushJob():
                self.flushing.take(event, now)
                if self.phase is Phase.GATHERING:
                    self._end(Action(False, f"{event.reason}: ended before the first step"), now)
            case HostLeaves(name, reason):
                self.quarantine.let_leave(name, reason, now)
                self._fill_positions(now)
            case ControllerRestarted():
                self._resume(event, now)
            case StoodStill(seconds):
                self._roster.postpone(seconds)
            case Tick():
                self._tick(now)
            case _:
                assert_never(event)

    def _resume(self, event: ControllerRestarted, now: float) -> None:
        """A new controller: nobody is connected to it yet, and nobody could reach the one before."""
        if event.term:
            self._take_over(event, now)
        self._preflight.forget_asked()
        self._roster.leave_all(now, now + self._candidates.grace_seconds(taken_over=event.term > 0))
        if self.phase is Phase.ENDING:
            self._ending.extend(now)

    def _tick(self, now: float) -> None:
        if self._ending.deadline is not None and now >= self._ending.deadline:
            self._finish()
        self._end(self.flushing.tick(self._formed, now), now)
        self._end(self._running.tick(self._formed, now) or self._recruiting.tick(now, self._preflight.failures), now)
        if self._recruiting.is_called(now) or (self.phase is Phase.STOPPING and self._forming.is_overdue(now)):
            self._fill_positions(now)
        while (node := self._roster.overdue(now)) is not None:
            if self._candidates.gives_up(node, self._formed):
                self._lose(node, node.overdue, now)
                continue
            sign = self._candidates.wait_for(node, now)
            if self.phase is Phase.RUNNING:
                self._fault(sign, now)
        self._end(self._candidates.tick(self._formed, now), now)

    def _take_over(self, event: ControllerRestarted, now: float) -> None:
        """What the last controller began to form cannot be finished."""
        self._candidates.take_over(event.term, event.stopped)
        if event.recalled is not None and self.phase not in (Phase.ENDING, Phase.ENDED):
            if self.phase is not Phase.STOPPING:
                self.phase = check_phase(self.phase, Phase.STOPPING)
            self._drop_plans()
            generation = self._candidates.adopt(event.recalled, now)
            self.durable.started(generation.start)
            self._enter(generation)
        if self.phase is Phase.STOPPING:
            self._forming.announce(now, len(self.positions))

    # ---- nodes come and go

    def _host_came(self, event: HostCame, now: float) -> None:
        """A host has room for a node: it is new, or lost the one that it had, or did not hear the last answer."""
        node = self._roster.of_launcher(event.launcher)
        if node is not None and node.state is not NodeState.STARTING:
            self._lose(node, "its processes are gone", now)
        if self.phase not in (Phase.ENDING, Phase.ENDED):
            self._recruiting.take_host(event, now)

    def _join(self, join: Join, connection: int, now: float) -> None:
        """An agent is there, for the first time or again, perhaps before its old connection is seen to be closed."""
        node = self.nodes.get(join.node) or self._roster.add(join.node)
        node.connection = connection
        if node.gone:
            self._orders.send(node, Shutdown("the job goes on without this node", 0.0))
            return
        is_new = node.state is NodeState.STARTING
        self._roster.arrive(node, join)
        self._candidates.arrived(self._formed)
        if is_new:
            self._preflight.expect(node)
            self._recruiting.announce_host(node)
        self.quarantine.arrived(node)
        if self.phase is Phase.ENDING:
            self._ending.ask(node)
        elif node.position is None:
            self._fill_positions(now)
        elif self.phase is Phase.STOPPING:
            # Also if it has answered: its daemon or its store may have gone with its agent.
            self._forming.ask(node, now)
        else:
            self.halting.rejoined(node)
            if (sign := self._running.readopt(self._formed, node, node.position, join, now)) is not None:
                self._fault(sign, now)

    def _leave(self, name: str, connection: int, now: float) -> None:
        """A connection closed; of no matter if the agent has made a newer one since."""
        node = self.nodes.get(name)
        if node is None or node.gone or node.connection != connection:
            return
        node.connection = None
        if self.phase is Phase.ENDING:
            self._roster.remove(node, NodeState.RELEASED)
            self._finish_if_all_left()
        else:
            self._roster.leave(node, now, now + self.config.agent_grace_seconds)
            self._preflight.expect(node)

    def _lose(self, node: Node, reason: str, now: float) -> None:
        """Give a node up for good; a spare takes its position."""
        seen = now if node.away_since is None else node.away_since
        was_starting = node.state is NodeState.STARTING
        self._roster.remove(node, NodeState.RELEASED if self.phase is Phase.ENDING else NodeState.LOST)
        self._orders.reap(node)
        if self.phase is Phase.ENDING:
            self._finish_if_all_left()
            return
        if self.durable.finishing and node.position is not None:
            self._finish_without_checkpoint(f"{node.name} was lost", now)
            return
        runs = self.phase is Phase.RUNNING
        never_ran = not node.formed and node.cordon is None and (was_starting or not runs)
        if never_ran and not self._candidates.are_too_few(self._formed):
            action = self._recruiting.take_failure(node, reason)
            if action is not None and not runs and not (self.config.elastic and not self._roster.missing()):
                return self._end(action, now)
        if node.position is None:
            self._recruiting.replace_spares(now) if runs else self._fill_positions(now)
        elif not (runs and all(r.finished for r in self._formed.ranks.of(node.position))):  # Else nobody misses it.
            sign = Sign(kind="node_lost", node=node.name, time=seen, reason=reason)
            self._fault(sign, now, ask_again=0 < node.formed == self.formed)

    def _fill_positions(self, now: float) -> None:
        """Give vacant positions to idle nodes, and ask for more nodes where too few are on their way."""
        if self.phase is Phase.GATHERING:
            if not self._recruiting.gathered():
                self._recruiting.ask_for(self.config.nodes - self._roster.idle(), now)
            elif self._preflight.passed():
                self._roster.reshape(min(self.config.nodes, self._roster.idle()))
                self._roster.fill(self.groups)
                self._next_generation(now)
        elif self.phase is Phase.STOPPING:
            self._forming.fill(now)
            if self._roster.superfluous() < 0 or self.config.shrink_after_seconds:
                self._recruiting.ask_for(len(self._roster.vacant), now)
            if self.quarantine.readmit():
                self._forming.fill(now)
            self._form_if_ready(now)

    def _node_checked(self, event: NodeChecked, now: float) -> None:
        """It may come back, or is not wanted; before the first generation, all may be known now."""
        self.quarantine.checked(event, now)
        if (cordon := self._preflight.take(event)) is not None:
            self.quarantine.take(cordon, now)
        if self.phase is Phase.GATHERING:
            self._end(self._preflight.verdict(), now)
        self._fill_positions(now)

    # ---- what breaks

    def _hear_of_work(self, report: Report, now: float) -> None:
        if not self._concerns_formed(report.generation):
            if isinstance(report, Diagnosed) and self.phase is not Phase.ENDING:
                self._end(self._running.explain(self._formed, report, now), now)
            return
        match self._running.take(self._formed, report, now, stopping=self.phase is Phase.STOPPING):
            case Sign() as sign:
                self._fault(sign, now)
            case Action() as action:
                self._end(action, now)

    def _trouble(self, event: Trouble, now: float) -> None:
        node = self.nodes.get(event.node)
        if node is None or node.gone or self.phase not in (Phase.STOPPING, Phase.RUNNING):
            return
        sign = Sign(kind=event.kind, node=event.node, time=now, reason=event.reason)
        if event.kind == NOT_CERTIFIED:
            sign = msgspec.structs.replace(sign, step=self._formed.start.version)
            self.durable.doubt(self._formed.start.version)
        if event.kind in HARMLESS:
            self._orders.announce(self._history.take_harmless(sign, self.formed))
        elif self._concerns_formed(event.generation):
            self._fault(sign, now)
        elif event.generation == self.generation:
            # What was prepared for the generation that is being formed has broken again.
            self._begin_again(sign, now)

    def _concerns_formed(self, generation: int) -> bool:
        """A message about the workers that run, or, while they are being stopped, that ran."""
        return generation == self.formed and generation > 0 and self.phase in (Phase.RUNNING, Phase.STOPPING)

    def _fault(self, sign: Sign, now: float, *, ask_again: bool = False) -> None:
        """Something broke: the next generation, or, while one is being formed, one more thing to know before.

        ``ask_again``: the start depends on what the others hold, and that may have grown since they said it.
        """
        if self.durable.finishing:  # There is nothing left to be done again.
            self._finish_without_checkpoint(describe(sign), now)
        elif self.phase is Phase.STOPPING:
            self._history.take(sign, self.formed, again=False)
            if ask_again:
                self._forming.ask_again(now)
            self._fill_positions(now)
        else:
            self._recruiting.succeeded()
            self._begin_again(sign, now, planned=sign.kind == MISFIT)
            if sign.misses_a_peer or sign.kind in HANGS:
                self._history.recall(self._formed.ended)

    def _begin_again(self, sign: Sign, now: float, *, planned: bool = False) -> None:
        self._history.take(sign, self.formed, again=not planned)
        self._next_generation(now, self._growth.size() if sign.kind == GROWN else None)

    # ---- the next generation

    def _next_generation(self, now: float, size: int | None = None) -> None:
        """``size``: it has so many nodes, if they do not break meanwhile; None: as many as the one before."""
        self.phase = check_phase(self.phase, Phase.STOPPING)
        self._drop_plans()
        size = len(self.positions) if size is None else size
        self._forming.announce(now, max(size, self._roster.sizes.least))
        self._fill_positions(now)

    def _drop_plans(self) -> None:
        """What the workers were to stop for, or was being written of what they did, has come to nothing."""
        self.halting.forget()
        self.flushing.begin_again()
        self.durable.abandon()

    def _do_what_waited(self, now: float) -> None:
        """While nothing is being recovered: a generation for nothing but to move ranks; checks of nodes that came."""
        if self.phase is not Phase.RUNNING or self.durable.finishing:
            self._growth.forget()
            self._first_snapshot.forget()
            self.halting.forget()
            return
        self.quarantine.let_go(self._formed)
        grown = self._growth.due(self._formed, now)
        is_captured_now = self._first_snapshot.due(self._formed, now)
        if self.flushing.wanted:
            return self._end(self.flushing.decide(self._formed, now), now)
        if (sign := self.quarantine.due_now(self._formed, now)) is not None:
            self._begin_again(sign, now, planned=True)
        elif (sign := self.quarantine.due(self._formed, now) or grown) is not None:
            if self.halting.ready(self._formed, now, patient=sign.kind == GROWN):
                stopped_at = self.halting.stopped_at or now
                self._begin_again(msgspec.structs.replace(sign, time=stopped_at), now, planned=True)
        elif is_captured_now:
            self.halting.ready(self._formed, now, patient=True)  # Once that is safe, it is due no more.
        else:
            self.halting.release()
            if self._formed.ranks.in_training:
                self._preflight.passed()

    def _form_if_ready(self, now: float) -> None:
        match self._forming.decide(self._formed, now):
            case Generation() as generation:
                self._enter(generation)
                self._forming.tell(generation)
            case Sign() as sign:
                self._begin_again(sign, now)
            case Action() as action:
                self._end(action, now)

    def _enter(self, generation: Generation) -> None:
        assert generation.form is not None
        self.phase = check_phase(self.phase, Phase.RUNNING)
        self.fence.begin(generation.form.quorums)
        self._formed = generation
        self._recruiting.succeeded()
        self._forming.begun(generation)

    # ---- the end

    def _finish_without_checkpoint(self, why: str, now: float) -> None:
        self._end(Action(False, f"training finished ({why} before the last checkpoint was written)"), now)

    def _end(self, action: Action | None, now: float) -> None:
        """Ask everybody to end; nothing else is decided after this."""
        if action is None or self.phase is Phase.ENDING:
            return
        self.phase = check_phase(self.phase, Phase.ENDING)
        self.durable.abandon()
        self._ending.begin(action, now)
        self._finish_if_all_left()

    def _finish_if_all_left(self) -> None:
        if self.phase is Phase.ENDING and self._roster.all_gone():
            self._finish()

    def _finish(self) -> None:
        self.phase = check_phase(self.phase, Phase.ENDED)
        self._ending.finish()
