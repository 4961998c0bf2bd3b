"""Jobs on Ray, without Ray: what is asked of a cluster, who may run where, what is shown, what is refused."""

from __future__ import annotations

import queue
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from ftrain_launcher import cli
from ftrain_launcher.engines.ray import driver, placing
from ftrain_launcher.engines.ray.audience import LISTENS_SECONDS, Audience
from ftrain_launcher.engines.ray.order import Order
from ftrain_launcher.engines.ray.placing import Next, Places
from ftrain_launcher.engines.ray.silence import LOST_SECONDS, TELL_SECONDS, Silence
from ftrain_launcher.engines.ray.window import Line, Window
from ftrain_launcher.errors import UsageError
from ftrain_launcher.jobs import Result

GPU_MACHINE = {"CPU": 32.0, "GPU": 8.0, "node:10.0.0.1": 1.0}
CPU_MACHINE = {"CPU": 4.0}


def order(**changes: object) -> Order:
    plain = Order(
        name="job",
        options=("--parity", "1"),
        script=("/x/train.py", "--epochs", "3"),
        least=2,
        most=2,
        spares=0,
        workers=2,
        share={"CPU": 2.0},
        secret="00" * 32,
        folder="/x",
        arena_folder="/dev/shm",
        variables={},
    )
    return msgspec.structs.replace(plain, **changes)


def test_a_job_of_fixed_size_is_one_group_spares_included() -> None:
    assert (placing.bundles(order(spares=1)), placing.extras(order(spares=1))) == (3, 0)


def test_an_elastic_job_begins_with_as_few_as_it_can_train_with() -> None:
    elastic = order(least=2, most=4, spares=1)
    assert (placing.bundles(elastic), placing.extras(elastic)) == (2, 3)


def test_a_worker_takes_a_gpu_where_enough_machines_have_them() -> None:
    machines = [GPU_MACHINE, GPU_MACHINE, CPU_MACHINE]
    assert placing.share(None, 8, machines, 2) == {"CPU": 8, "GPU": 8}
    assert placing.share(None, 8, machines, 3) == {"CPU": 8}
    assert placing.share({"CPU": 0.5, "GPU": 0.0, "TPU": 1.0}, 4, machines, 2) == {"CPU": 2, "TPU": 4}


@pytest.mark.parametrize("word", ["CPU", "CPU=", "=1", "CPU=-1", "CPU=nan", "CPU=inf", "CPU=0", "", "CPU=1,,"])
def test_resources_that_cannot_be_read_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="--ray-per-worker"):
        placing.per_worker(word)


def test_workers_are_a_number_or_the_gpus_that_every_gpu_machine_has() -> None:
    assert placing.per_worker("CPU=4, GPU=0.5") == {"CPU": 4, "GPU": 0.5}
    assert placing.workers("3", []) == 3
    assert placing.workers("gpu", [GPU_MACHINE, {"GPU": 4.0}, CPU_MACHINE]) == 4
    for word, machines in (("gpu", [CPU_MACHINE]), ("auto", [GPU_MACHINE]), ("0", []), ("-1", [])):
        with pytest.raises(UsageError, match="--nproc-per-node"):
            placing.workers(word, machines)


def test_room_is_counted_by_what_machines_have() -> None:
    assert placing.has_room([GPU_MACHINE, CPU_MACHINE], {"CPU": 4.0}) == 2
    assert placing.has_room([GPU_MACHINE, CPU_MACHINE], {"CPU": 4.0, "GPU": 1.0}) == 1


def test_only_machines_that_live_count() -> None:
    nodes = [{"NodeID": "a", "Alive": True, "Resources": CPU_MACHINE}, {"NodeID": "b", "Alive": False, "Resources": {}}]
    assert placing.machines(nodes) == {"a": CPU_MACHINE}


def test_of_two_members_on_one_machine_the_second_stands_aside_until_it_is_free() -> None:
    places = Places()
    assert places.claim("bundle 0", "a")
    assert not places.claim("bundle 1", "a")
    assert (places.aside, places.closed) == (1, ("a",))
    assert places.claim("bundle 0", "a"), "one that is started again where it was"
    places.leave("bundle 0")
    assert places.claim("bundle 1", "a")
    assert places.aside == 0


def test_one_that_ray_placed_anew_gives_its_old_machine_up() -> None:
    places = Places()
    places.claim("bundle 0", "a")
    places.claim("bundle 0", "b")
    assert places.claim("extra 1", "a")
    assert places.closed == ("a", "b")


def test_a_machine_that_refused_is_not_tried_by_another() -> None:
    places = Places()
    places.claim("extra 1", "a")
    places.leave("extra 1", useless=True)
    assert places.closed == ("a",)
    assert places.empty


@pytest.mark.parametrize(
    ("code", "meaning"),
    [(0, Next.LEFT), (2, Next.REFUSED), (1, Next.AGAIN), (5, Next.AGAIN), (6, Next.AGAIN), (137, Next.AGAIN)],
)
def test_what_a_launchers_end_means_for_its_machine(code: int, meaning: Next) -> None:
    assert placing.after(code) is meaning


def test_controller_and_nodes_run_the_users_own_command_with_the_clusters_addresses() -> None:
    words = order().join("10.0.0.1", 20001, "/s")
    assert words[:3] == ["run", "--parity", "1"]
    assert words[-4:] == ["--", "/x/train.py", "--epochs", "3"]
    chosen = cli.build_parser().parse_args(["run", "--engine", "ray", "--nproc-per-node", "gpu", *words[1:]])
    assert (chosen.engine, chosen.controller, chosen.nproc_per_node) == ("host", "10.0.0.1:20001", "2")
    assert (chosen.script, chosen.arguments, chosen.parity) == ("/x/train.py", ["--epochs", "3"], 1)
    assert cli.build_parser().parse_args(order().lead("h", 1, "/s")).engine == "none"


def test_a_job_of_the_same_name_is_the_same_job_or_it_is_told_in_what_it_differs() -> None:
    assert order().difference(order(secret="11" * 32, folder="/y")) is None
    assert order().difference(order(script=("/x/other.py",))) == "script"
    assert order().difference(order(script=("/x/train.py",))) == "its arguments"
    assert order().difference(order(most=3)) == "--nnodes"
    assert order().difference(order(workers=1)) == "--nproc-per-node"


def test_an_order_survives_the_way() -> None:
    assert msgspec.json.decode(msgspec.json.encode(order()), type=Order) == order()


def test_a_watcher_gets_what_is_new_and_hears_of_what_came_too_fast() -> None:
    window = Window(bytes_max=4)
    for number in range(3):
        window.add(Line(1, b"%d\n" % number))
    assert [line.text for line in window.after(0)] == [b"ftrain: lines are missing here: 1\n", b"1\n", b"2\n"]
    assert [line.text for line in window.after(2)] == [b"2\n"]
    assert window.after(window.end) == []


def test_an_actor_that_is_silent_for_a_moment_is_nobodys_matter() -> None:
    silence = Silence(0.0)
    assert not silence.begins(TELL_SECONDS - 0.1)
    assert not silence.answered(TELL_SECONDS - 0.1)
    assert not silence.begins(TELL_SECONDS)


def test_its_silence_is_told_once_and_so_is_its_end() -> None:
    silence = Silence(0.0)
    assert silence.begins(TELL_SECONDS)
    assert not silence.begins(TELL_SECONDS + 1)
    assert silence.told
    assert silence.answered(TELL_SECONDS + 2)
    assert not silence.told
    assert silence.begins(2 * TELL_SECONDS + 2), "the next silence"


def test_a_job_is_given_up_when_the_head_is_silent_too() -> None:
    silence = Silence(0.0)
    silence.begins(100.0)
    assert not silence.is_lost(100.0 + LOST_SECONDS, head_answers=True), "Ray will tell what became of the actor"
    assert not silence.is_lost(99.0 + 2 * LOST_SECONDS, head_answers=False)
    assert silence.is_lost(100.0 + 2 * LOST_SECONDS, head_answers=False)


class Cluster:
    """A Ray that is made up: nobody answers before ``answers_at``, then the job has ended. Time passes by waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, answers_at: float, head_answers: bool) -> None:
        self.now, self._answers_at = 0.0, answers_at
        self.sent: list[int] = []
        self.heard = self.signal = self.met = self
        self.exceptions = SimpleNamespace(ActorUnavailableError=ConnectionAbortedError)
        monkeypatch.setitem(sys.modules, "ray", self)
        monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(driver, "_answers", lambda head: head == "head:1" and head_answers)

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address="head:1")

    def remote(self, *arguments: object) -> str:
        self.sent += [number for number in arguments[:1] if len(arguments) == 1 and isinstance(number, int)]
        return "an answer"

    def wait(self, wanted: list[str], timeout: float) -> tuple[list[str], list[str]]:
        self.now += timeout
        return (wanted, []) if self.now >= self._answers_at else ([], wanted)

    def get(self, answer: str) -> object:
        return [], 1, (3, "training failed")


def test_a_driver_says_that_the_owner_is_silent_and_then_that_its_machine_is_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, answers_at=1e9, head_answers=False)
    assert driver._follow(cluster, "me", queue.SimpleQueue()).exit_code == driver.EXIT_CUT_OFF
    assert cluster.now == pytest.approx(TELL_SECONDS + LOST_SECONDS, abs=1.0)
    silent, lost = capsys.readouterr().err.splitlines()
    assert silent.startswith("ftrain: warning: the actor that owns the job does not answer")
    assert lost.startswith("ftrain: error: the actor that owns the job and the head of the Ray cluster do not answer")


def test_a_driver_waits_for_a_slow_owner_as_long_as_the_head_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, answers_at=600.0, head_answers=True)
    assert driver._follow(cluster, "me", queue.SimpleQueue()) == Result(3, "training failed")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[1] == "ftrain: the actor that owns the job answers again"


def test_who_does_not_want_to_wait_for_a_slow_owner_may_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, answers_at=1e9, head_answers=True)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    signals.put(2)
    assert driver._answer(cluster, order(), signals) is None
    for _ in range(2):
        signals.put(2)
    assert driver._follow(cluster, "me", signals).exit_code == 128 + 2
    assert cluster.sent == [2, 2], "the third lets go of it"


def test_the_owner_of_a_job_goes_when_all_who_listen_have_heard_its_end() -> None:
    audience = Audience()
    assert not audience.is_over(1000.0), "nobody has heard of it"
    audience.asks("a", 1000.0)
    audience.asks("b", 1000.0)
    audience.tell("a")
    assert audience.told
    assert not audience.is_over(1000.5)
    audience.tell("b")
    assert audience.is_over(1000.5)


def test_who_was_killed_while_it_listened_keeps_the_owner_for_seconds() -> None:
    audience = Audience()
    audience.asks("killed", 0.0)
    audience.tell("other")
    assert not audience.is_over(LISTENS_SECONDS - 0.1)
    assert audience.is_over(LISTENS_SECONDS)


class Owner:
    """An actor of a job, made up: it answers with what it was given, one after another."""

    def __init__(self, *answers: object) -> None:
        self.met, self._answers = self, list(answers)

    def remote(self, _: bytes) -> object:
        return self._answers.pop(0)


def meet(monkeypatch: pytest.MonkeyPatch, there: Owner, gone_after: int) -> tuple[Owner, Owner]:
    """Meet a job's owner, whose name is free after so many looks: what was met, what was made."""
    made, asked = Owner((False, None)), []

    def get_actor(name: str, namespace: str) -> Owner:
        asked.append(name)
        if len(asked) > gone_after:
            raise ValueError(name)
        return there

    def get(answer: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    options = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: made))
    ray = SimpleNamespace(
        exceptions=SimpleNamespace(RayActorError=ConnectionError),
        get_actor=get_actor,
        get=get,
        remote=lambda _: options,
        wait=lambda answers, timeout: (answers, []),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None))
    return driver._meet(order(), {}, queue.SimpleQueue()), made


def test_a_job_of_the_name_that_runs_is_attached_to(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Owner((False, None))
    assert meet(monkeypatch, there, gone_after=9)[0] is there


def test_a_job_that_is_over_and_was_told_of_is_waited_out_and_then_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Owner((True, "script"), (True, "script"), ConnectionError())
    met, made = meet(monkeypatch, there, gone_after=3)
    assert met is made


def test_another_job_of_the_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="script differs: choose another --name"):
        meet(monkeypatch, Owner((False, "script")), gone_after=9)


SCRIPT = str(Path(__file__))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--controller", "h:1"], "--controller h:1: with --engine ray the machines are Ray's choice"),
        (["--node-rank", "0"], "--node-rank 0"),
        (["--failure-domain", "r1"], "--failure-domain r1"),
        (["--local-nodes", "2"], "--local-nodes 2"),
        (["--nproc-per-node", "auto"], "--nproc-per-node auto"),
        (["--ray-per-worker", "x"], "--ray-per-worker x"),
        (["--parity", "9"], "--parity 9"),
        (["--ray-address", "nowhere"], "--ray-address nowhere: give HOST:PORT"),
        (["--ray-address", "h:99999"], "--ray-address h:99999: give HOST:PORT"),
        (["--ray-address", "ray://h:1"], "--ray-address ray://h:1: give HOST:PORT"),
    ],
)
def test_bad_input_is_one_line_before_any_cluster_is_asked(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    with pytest.raises(SystemExit) as exit:
        cli.main(["run", "--engine", "ray", *words, SCRIPT])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_without_ray_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as exit:
        cli.main(["run", "--engine", "ray", "--nnodes", "2", SCRIPT])
    assert exit.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "ftrain: error: --engine ray: Ray is not installed here: pip install 'ftrain[ray]'"
    ]
