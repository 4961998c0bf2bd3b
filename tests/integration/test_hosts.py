"""The tests' own hosts: what the chaos tests rely on holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Lab
from needs import require_lab

SILENT_SECONDS = 0.5
"""So long nothing is heard where something is cut; where nothing is, an answer may take `WAIT_SECONDS`."""
WAIT_SECONDS = 60.0
CONNECT = """
import socket, sys, time
began = time.monotonic()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])).close()
    print("connected")
except OSError as error:
    print(type(error).__name__)
print(time.monotonic() - began)
"""
LISTEN = """
import socket
server = socket.create_server(("", 0))
print(server.getsockname()[1], flush=True)
while True:
    line, _ = server.accept()
    while data := line.recv(1 << 20):
        line.sendall(data)
"""
ECHO = """
import socket, sys, time
line = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
began = time.monotonic()
sent = got = 0
while got < int(sys.argv[3]):
    if sent == got:
        sent += line.send(bytes(min(1 << 16, int(sys.argv[3]) - sent)))
    got += len(line.recv(1 << 20))
print(time.monotonic() - began)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    require_lab()
    with Lab(3, shm_bytes=8 << 20, private=("/mnt",)) as lab:
        yield lab


@pytest.fixture(autouse=True)
def _healed(lab: Lab) -> Iterator[None]:
    yield
    lab.heal()


@pytest.fixture(scope="module")
def port(lab: Lab) -> int:
    """Where host 2 sends back what it gets."""
    process = lab.popen(2, [sys.executable, "-S", "-c", LISTEN], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        return int(process.stdout.readline())


def connect(lab: Lab, host: int, port: int, to: int = 2, *, within: float = WAIT_SECONDS) -> tuple[str, float]:
    """How a connection from a host to another goes, and how long that took."""
    _, said = lab.run(host, [sys.executable, "-S", "-c", CONNECT, f"h{to}", str(port), str(within)], 2 * WAIT_SECONDS)
    outcome, seconds = said.split()
    return outcome, float(seconds)


def is_cut(lab: Lab, host: int, port: int, to: int = 2) -> bool:
    return connect(lab, host, port, to, within=SILENT_SECONDS)[0] == "TimeoutError"


def test_a_host_has_a_name_an_address_processes_and_folders_of_its_own(lab: Lab) -> None:
    code, said = lab.run(2, ["sh", "-c", "hostname; getent hosts h3; df -k --output=size /dev/shm | tail -1; ls /mnt"])
    assert code == 0
    assert said.split() == ["h2", "10.77.0.3", "h3", "8192"]
    lab.run(1, ["touch", "/dev/shm/mine", "/mnt/mine"])
    assert lab.run(2, ["ls", "/dev/shm", "/mnt"])[1].split() == ["/dev/shm:", "/mnt:"]
    reader = lab.popen(1, ["sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    reader.stdout.readline()  # No longer on its way from one program to the next.
    assert any("read line" in command for command in lab.processes(1).values())
    assert not any("read line" in command for command in lab.processes(3).values())
    reader.send_signal(signal.SIGTERM)
    reader.communicate(timeout=30)
    assert reader.returncode == -signal.SIGTERM


def test_a_cut_is_silent_on_both_sides_and_heals(lab: Lab, port: int) -> None:
    assert connect(lab, 1, port)[0] == "connected"
    assert connect(lab, 1, 1)[0] == "ConnectionRefusedError"
    lab.cut(2)
    assert is_cut(lab, 1, port)
    assert is_cut(lab, 2, 1, to=1)
    assert connect(lab, 1, 1, to=3)[0] == "ConnectionRefusedError"
    lab.heal(2)
    assert connect(lab, 1, port)[0] == "connected"


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_cut_can_be_one_way(lab: Lab, port: int, direction: str) -> None:
    lab.cut(2, direction=direction)
    assert is_cut(lab, 1, port)
    lab.heal()
    lab.cut(2, peer=3, direction=direction)
    assert connect(lab, 1, port)[0] == "connected"
    assert is_cut(lab, 3, port)


@pytest.mark.alone
def test_delay_loss_and_rate(lab: Lab, port: int) -> None:
    lab.delay(2, 0.05)
    assert 0.05 <= min(connect(lab, 1, port)[1] for _ in range(5)) < 0.3
    lab.heal()
    lab.loss(2, 0.05)
    code, _ = lab.run(1, [sys.executable, "-S", "-c", ECHO, "h2", str(port), str(1 << 20)])
    assert code == 0
    lab.heal()
    lab.slow(2, 4e6)
    code, said = lab.run(1, [sys.executable, "-S", "-c", ECHO, "h2", str(port), str(2 << 20)])
    assert code == 0, said
    assert float(said) > 0.3


def test_a_kill_says_goodbye_and_a_crash_does_not(lab: Lab) -> None:
    script = "import socket, sys\nline = socket.create_server(('', 7000)).accept()[0]\n"
    script += "print('up', flush=True)\nline.recv(1)"
    wait = "import socket, sys\nline = socket.create_connection(('h3', 7000), timeout=60)\nprint('up', flush=True)\n"
    wait += "line.settimeout(float(sys.argv[1]))\n"
    wait += "try:\n print(line.recv(1))\nexcept OSError as error:\n print(type(error).__name__)"
    for fault, sees, within in ((lab.kill, "b''", WAIT_SECONDS), (lab.crash, "TimeoutError", 3 * SILENT_SECONDS)):
        server = lab.popen(3, [sys.executable, "-S", "-c", script], stdout=subprocess.PIPE)
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            command = [sys.executable, "-S", "-c", wait, str(within)]
            client = lab.popen(1, command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            assert client.stdout is not None
            if client.stdout.readline() == b"up\n":
                break
            client.communicate()
            assert time.monotonic() < deadline
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"  # a connection that nobody has accepted is reset by a kill, too
        fault(3)
        assert server.wait(WAIT_SECONDS) == -signal.SIGKILL
        server.stdout.close()
        assert client.communicate(timeout=2 * WAIT_SECONDS)[0].decode().strip() == sees
        assert lab.processes(3) == {}
        lab.heal()


def test_nothing_outlives_the_labs_owner(tmp_path: Path) -> None:
    """Not even if it is killed."""
    require_lab()
    owner = "import sys\nfrom hosts import Lab\nlab = Lab(2).__enter__()\nsleeper = lab.popen(1, ['sleep', '100'])\n"
    owner += "print(sleeper.pid, lab._init_pids[2], flush=True)\nsys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.communicate(timeout=WAIT_SECONDS)
    deadline = time.monotonic() + WAIT_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
