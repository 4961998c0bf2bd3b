"""``ftrain drain``: what it says, and what it returns, by what becomes of the node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ftrain_launcher import cli, query
from ftrain_launcher.commands import nodes
from ftrain_launcher.errors import ControllerAway
from ftrain_launcher.jobs import JobFolder

HOLDS = {
    "name": "node-1", "state": "active", "position": 1, "is_read": False, "cordon": {"leaves": True, "hindrance": ""}
}  # fmt: skip
HINDERED = HOLDS | {"cordon": {"leaves": True, "hindrance": "no other node is there to take them"}}
STAYS = HOLDS | {"cordon": {"leaves": False}}
LEFT = HOLDS | {"state": "cordoned", "position": None}
READ = LEFT | {"is_read": True, "cordon": {"leaves": False, "hindrance": ""}}
LOST = HOLDS | {"state": "lost"}
LET_IN = HOLDS | {"cordon": None}
AWAY = ControllerAway("it does not answer")


@pytest.mark.parametrize(
    ("answers", "flags", "code", "says"),
    [
        ([HOLDS, HOLDS, LEFT], [], 0, "node-1: holds no ranks; it may be switched off"),
        ([LEFT], [], 0, "it may be switched off"),
        ([HOLDS, AWAY, LEFT], [], 0, "it may be switched off"),
        ([HOLDS, READ, READ, LEFT], [], 0, "holds bytes: no snapshot of the new size is safe yet"),
        ([READ], ["--timeout-seconds", "0"], 1, "node-1: holds bytes of the state: no snapshot of the new size"),
        ([HOLDS, LOST], [], 0, "it may be switched off"),
        ([STAYS], [], 1, "node-1: keeps its ranks until the next fault"),
        ([HOLDS, STAYS], [], 1, "keeps its ranks until the next fault"),
        ([HOLDS], ["--timeout-seconds", "0"], 1, "node-1: still holds its ranks: no step has ended"),
        ([HINDERED], ["--timeout-seconds", "0"], 1, "node-1: still holds its ranks: no other node is there"),
        ([HINDERED, HINDERED, LEFT], [], 0, "node-1: still holds its ranks: no other node is there"),
        ([HOLDS, LET_IN], [], 2, "node-1 is not drained: it was let in again meanwhile"),
        ([HOLDS], ["--timeout-seconds", "-1"], 2, "--timeout-seconds must be 0 or more"),
    ],
)
def test_it_waits_until_the_node_can_be_switched_off(
    answers: list[Any],
    flags: list[str],
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = list(answers)

    def ask(folder: object, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if path == "/api/cordon" else {"nodes": [answer]}

    monkeypatch.setattr(query, "ask", ask)
    monkeypatch.setattr(nodes, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(nodes, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(JobFolder, "find", lambda name: SimpleNamespace(result=lambda: None))
    with pytest.raises(SystemExit) as ended:
        cli.main(["drain", "node-1", *flags])
    assert ended.value.code == code
    shown = capsys.readouterr()
    assert says in shown.out + shown.err
