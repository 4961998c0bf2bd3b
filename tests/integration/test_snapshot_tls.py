"""TLS between daemons: the same frames inside, and nobody without a certificate of the job's authority."""

import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Certificates, make_certificates
from snapshot_lines import SECRET, Bench, bench, note

from ftrain_snapshot.handshake import Handshake
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.tls import Tls


@pytest.fixture
def line() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("others"))


def tls_of(c: Certificates) -> Tls:
    return Tls(c.certificate, c.key, c.authority)


@pytest.mark.parametrize("buffer_bytes", [0, 1 << 12])
def test_messages_and_bulk_go_both_ways(line: Bench, certificates: Certificates, buffer_bytes: int):
    lines = line.lines(tls=tls_of(certificates))
    ends = line.pair(lines, lines, buffer_bytes)
    lengths = [0, 1, 1000, 16_384, 70_000, CHUNK_BYTES]
    for end in ends:
        for number, length in enumerate(lengths):
            end.connection.send_bulk(note(number), memoryview(bytes([number]) * length))
        end.connection.on_proved = lambda c: c.send(note(99))
    line.until(lambda: all(len(end.heard) == len(lengths) + 1 for end in ends), turns_max=20_000)
    for end in ends:
        assert end.heard == [(99, 0), *enumerate(lengths)]
        assert end.bodies[1:] == [bytes([n]) * min(64, length) for n, length in enumerate(lengths)]


def test_messages_overtake_bulk_that_is_blocked_halfway(line: Bench, certificates: Certificates):
    lines = line.lines(tls=tls_of(certificates))
    dialler, acceptor = line.pair(lines, lines, buffer_bytes=1 << 12)
    line.until(lambda: dialler.connection.proved and acceptor.connection.proved)
    for number in range(4):
        dialler.connection.send_bulk(note(number), memoryview(bytes([number]) * CHUNK_BYTES))
    for number in range(10, 60):
        dialler.connection.send(note(number))
        line.turns(1)
    line.until(lambda: len(acceptor.heard) == 54, turns_max=20_000)
    order = [number for number, _ in acceptor.heard]
    assert sorted(order) == [*range(4), *range(10, 60)]
    assert order[0] == 0
    assert order.index(59) < order.index(2)


def test_a_certificate_of_another_authority_is_refused(line: Bench, certificates: Certificates, others: Certificates):
    dialler, acceptor = line.pair(line.lines(tls=tls_of(others)), line.lines(tls=tls_of(certificates)))
    line.until(lambda: dialler.reason is not None and acceptor.reason is not None)
    assert not dialler.connection.proved
    assert not acceptor.connection.proved


def test_who_shows_no_certificate_is_refused(line: Bench, certificates: Certificates):
    client_socket, server_socket = line.sockets()
    acceptor = line.end(server_socket, line.lines(tls=tls_of(certificates)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificates.authority)
    client = context.wrap_socket(client_socket, do_handshake_on_connect=False)
    with client:
        for _ in range(20):
            try:
                client.send(Handshake(SECRET, dialled=True).greeting)
            except ssl.SSLWantReadError:
                pass
            except (ssl.SSLError, ConnectionError):
                break
            line.turns(2)
    line.until(lambda: acceptor.reason is not None)
    assert "CERTIFICATE" in (acceptor.reason or "").upper()


@pytest.mark.parametrize("plain", ["dialler", "acceptor"])
def test_plain_and_tls_do_not_meet(line: Bench, certificates: Certificates, plain: str):
    secured = line.lines(tls=tls_of(certificates))
    lines = [line.lines(), secured] if plain == "dialler" else [secured, line.lines()]
    ends = line.pair(*lines)
    line.until(lambda: all(end.reason is not None for end in ends))
    assert not any(end.connection.proved for end in ends)


def test_the_secret_is_asked_for_inside(line: Bench, certificates: Certificates):
    tls = tls_of(certificates)
    dialler, acceptor = line.pair(line.lines(b"old", tls), line.lines(SECRET, tls))
    line.until(lambda: dialler.reason is not None and acceptor.reason is not None)
    assert any("secret" in (end.reason or "") for end in (dialler, acceptor))


def test_an_older_tls_is_refused(line: Bench, certificates: Certificates):
    client_socket, server_socket = line.sockets()
    acceptor = line.end(server_socket, line.lines(tls=tls_of(certificates)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificates.authority)
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with context.wrap_socket(client_socket, do_handshake_on_connect=False) as client:
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        line.until(lambda: acceptor.reason is not None)
    assert "UNSUPPORTED_PROTOCOL" in (acceptor.reason or "")


# The daemon's arguments.


def daemon(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    secret = folder / "secret"
    secret.write_text("00" * 32)
    command = [sys.executable, "-m", "ftrain_snapshot.daemon", "--node", "n", "--node-dir", str(folder / "n")]
    return subprocess.run(
        [*command, "--secret-file", str(secret), *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def test_files_that_will_not_do_are_one_line_and_exit_2(
    tmp_path: Path, certificates: Certificates, others: Certificates
):
    cert, key, ca = (str(p) for p in (certificates.certificate, certificates.key, certificates.authority))
    (tmp_path / "no.pem").write_text("nothing")
    bad = str(tmp_path / "no.pem")
    cases = {
        "all three or none": ["--tls-cert", cert, "--tls-key", key],
        "cannot read": ["--tls-cert", cert, "--tls-key", str(tmp_path / "away"), "--tls-ca", ca],
        "do not belong together": ["--tls-cert", cert, "--tls-key", str(others.key), "--tls-ca", ca],
        "holds no": ["--tls-cert", cert, "--tls-key", key, "--tls-ca", bad],
        f"{bad} and": ["--tls-cert", bad, "--tls-key", key, "--tls-ca", ca],
    }
    for said, arguments in cases.items():
        done = daemon(tmp_path, *arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""


def test_peers_link_over_tls_through_a_real_socket(line: Bench, certificates: Certificates):
    from ftrain_snapshot.transport import dial

    lines = line.lines(tls=tls_of(certificates))
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialled = dial(line.loop, "127.0.0.1", server.getsockname()[1], lines)
        sock, _ = server.accept()
        acceptor = line.end(sock, lines)
        dialled.on_proved = lambda c: c.send(note(1))
        line.until(lambda: acceptor.heard == [(1, 0)])
        dialled.close("done")
