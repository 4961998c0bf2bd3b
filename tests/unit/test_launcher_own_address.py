"""A host whose own name says 127.0.1.1, as Debian has it; and candidates whose names are not known any more."""

from __future__ import annotations

import errno
import socket

import pytest

from ftrain_launcher.commands import checks, own_address
from ftrain_launcher.commands.own_address import EVERYWHERE, is_only_ours
from ftrain_launcher.errors import UsageError

NAMES = {"h1": "127.0.1.1", "h2": "10.77.0.2", "localhost": "127.0.0.1"}
PORT = 29400


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is h1, at 10.77.0.1; nobody knows h3."""

    def bind(host: str, port: int) -> str:
        if host == "h2":
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return NAMES.get(host, host)

    def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host == "h3":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return []

    monkeypatch.setattr(checks, "_bind", bind)
    monkeypatch.setattr(checks, "_claim", lambda address, port: None)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(own_address, "outward", lambda: "10.77.0.1")


@pytest.mark.parametrize(
    ("host", "address", "is_so"),
    [
        ("h1", "127.0.1.1", True),
        ("h1", "10.77.0.1", False),
        ("localhost", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.1", False),
    ],
)
def test_a_name_that_means_another_machine_elsewhere(host: str, address: str, is_so: bool) -> None:
    assert is_only_ours(host, address) is is_so


def test_the_controller_listens_where_others_can_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.address_if_ours("h1", PORT) == EVERYWHERE
    assert checks.address_if_ours("127.0.0.1", PORT) == "127.0.0.1"
    monkeypatch.setattr(own_address, "outward", lambda: None)
    assert checks.address_if_ours("h1", PORT) == "127.0.1.1"


def test_a_candidate_that_nobody_knows_is_another_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert checks.own_candidate(("h3:29400", "h2:29400", "h1:29400")) == (2, EVERYWHERE, PORT)
    assert "not known here, for now: h3:29400" in "".join(capsys.readouterr())
    with pytest.raises(UsageError, match="none of these hosts is known"):
        checks.own_candidate(("h3:29400",))
