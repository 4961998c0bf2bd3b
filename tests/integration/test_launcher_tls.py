"""``ftrain run --tls-*``: files that do not do are refused in one line; with good ones a job trains, over TLS alone."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Certificates, make_certificates
from jobs import Job

from ftrain_launcher import cli

HELD = 2
TLS_ALERT = 21
"""The first byte of the one thing that a TLS server says to who does not speak TLS."""


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", *flags, __file__])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    return err


def test_files_that_do_not_do(certificates: Certificates, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_certificates(tmp_path / "other")
    gone = replace(certificates, authority=tmp_path / "nowhere.pem")
    assert "give all three or none" in refused(capsys, "--tls-cert", str(certificates.certificate))
    assert f"cannot read {gone.authority}: No such file" in refused(capsys, *gone.arguments())
    swapped = replace(certificates, key=other.key)
    assert "do not belong together" in refused(capsys, *swapped.arguments())
    foreign = replace(certificates, authority=other.authority)
    assert f"is refused under --tls-ca {other.authority}" in refused(capsys, *foreign.arguments())
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    assert "no certificate of an authority" in refused(capsys, *replace(certificates, authority=empty).arguments())


def test_a_job_trains_over_tls_and_a_client_without_it_gets_nothing(certificates: Certificates, tmp_path: Path) -> None:
    job = Job(
        tmp_path / "job",
        *("--local-nodes", "2", *certificates.arguments()),
        program="heavy.py",
        arguments=("--steps", "4", "--mib", "2", "--hold", "1", str(HELD)),
    )
    try:
        job.wait_for(lambda s: s["snapshots"]["protected"] == 0, "a protected snapshot")
        for number in range(2):
            node = json.loads((job.arena / f"node-{number}" / "node.json").read_text())
            said = plain_talk(node["daemon_port"])
            assert not said or said[0] == TLS_ALERT, said
            assert tls_version(node["daemon_port"], certificates) == "TLSv1.3"
        (job.out / "go-1").touch()
        job.wait_for(lambda s: s["snapshots"]["protected"] == 1, "the next snapshot")
        (job.out / f"go-{HELD}").touch()
        assert job.wait() == 0, job.tail()
        assert len(job.ends()) == 2
        assert job.faults() == []
    finally:
        job.close()


def tls_version(port: int, certificates: Certificates) -> str | None:
    """What a daemon agrees on with a node of its job."""
    context = ssl.create_default_context(cafile=certificates.authority)
    context.check_hostname = False
    context.load_cert_chain(certificates.certificate, certificates.key)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20.0) as client,
        context.wrap_socket(client) as wrapped,
    ):
        return wrapped.version()


def plain_talk(port: int) -> bytes:
    """All that a daemon says to a client that speaks in the clear."""
    with socket.create_connection(("127.0.0.1", port), timeout=20.0) as client:
        client.sendall(b"\x00" * 64)
        said = b""
        try:
            while piece := client.recv(4096):
                said += piece
        except ConnectionResetError:
            pass
        return said
