"""A lab of pretend hosts on one Linux machine, and the faults that can be made in it.

    with Lab(4) as lab:
        server = lab.popen(2, ["python", "worker.py"])     # an ordinary Popen; .pid is the real one
        lab.run(1, ["ping", "-c1", "h2"])
        lab.cut(2); lab.heal()

Host N is made of kernel namespaces (net, pid, mount, uts, ipc): name hN, address 10.77.0.N on eth0, own processes, own
/dev/shm. `init.py` is its process 1; `switch.py` joins the hosts' cards. Nothing is made in the caller's network
namespace, so labs can run side by side; when the lab's owner ends, even by SIGKILL, all of it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CLONE_NEWPID = 0x20000000
START_SECONDS = 60.0
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(RuntimeError):
    """The lab could not do what was asked."""


def unavailable() -> str | None:
    """Why a lab cannot be made here, in one line; None: it can."""
    if not sys.platform.startswith("linux"):
        return "a lab of hosts needs Linux"
    if os.geteuid() != 0:
        return "a lab of hosts needs root"
    for program in ("unshare", "nsenter", "mount", "ip"):
        if not shutil.which(program):
            return f"a lab of hosts needs the program {program!r}"
    if not Path("/dev/net/tun").exists():
        return "a lab of hosts needs /dev/net/tun"
    try_it = ["unshare", *_NAMESPACES, "ip", "tuntap", "add", "dev", "eth0", "mode", "tap"]
    done = subprocess.run(try_it, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode != 0:
        return f"no namespaces or network cards for a lab of hosts: {done.stderr.strip() or done.returncode}"
    return None


_NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


class Lab:
    """``hosts`` hosts, numbered from 1.

    Args:
        shm_bytes: the size of each host's /dev/shm; 0: the kernel's own choice.
        private: folders of which each host has an empty one of its own.
    """

    def __init__(self, hosts: int, *, shm_bytes: int = 0, private: Sequence[str] = ()) -> None:
        self.hosts = range(1, hosts + 1)
        self._shm_bytes, self._private = shm_bytes, tuple(private)
        self._controls: dict[int, socket.socket] = {}
        self._holders: list[subprocess.Popen[bytes]] = []
        self._started: list[subprocess.Popen[Any]] = []
        self._switch: socket.socket | None = None
        self._init_pids: dict[int, int] = {}
        self._lost: dict[tuple[int, int], float] = {}
        self._delays: dict[int, float] = {}
        self._rates: dict[int, float] = {}
        self._flips: dict[str, Any] = {}
        self._flipped = 0

    def address(self, host: int) -> str:
        """The host's address."""
        return f"10.77.0.{host}"

    # ---- life

    def __enter__(self) -> Lab:
        try:
            self._switch = self._start("switch.py", [])
            names = json.dumps({f"h{h}": self.address(h) for h in self.hosts}).encode()
            for host in self.hosts:
                arguments = [f"h{host}", self.address(host), str(self._shm_bytes), *self._private]
                control = self._controls[host] = self._start("init.py", arguments, ["unshare", *_NAMESPACES])
                control.send(names)
            for host, control in self._controls.items():
                self._take_card(host, control)
        except BaseException:
            self.close()
            raise
        return self

    def _start(self, program: str, arguments: list[str], prefix: Sequence[str] = ()) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(START_SECONDS)
        command = [*prefix, sys.executable, "-I", "-S", str(HERE / program), str(theirs.fileno()), *arguments]
        with theirs:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
        self._holders.append(process)
        return ours

    def _take_card(self, host: int, control: socket.socket) -> None:
        message, cards, _, _ = socket.recv_fds(control, 16, 1)
        if message != b"ready" or self._switch is None:
            raise LabError(f"host {host} did not start")
        socket.send_fds(self._switch, [json.dumps({"port": host}).encode()], cards)
        self._switch.recv(64)
        os.close(cards[0])
        unshare = self._holders[host].pid
        self._init_pids[host] = int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all hosts and what runs in them."""
        for control in (*self._controls.values(), *([self._switch] if self._switch else [])):
            control.close()
        for process in (*self._started, *self._holders):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._controls.clear()
        self._holders.clear()
        self._started.clear()

    # ---- running things

    def popen(self, host: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """subprocess.Popen in a host; its pid is the process itself, seen from here."""
        result: list[Any] = []

        def start() -> None:  # In a thread of its own: joining a pid namespace only moves the thread's next children.
            try:
                result.append(self._popen(host, command, options))
            except BaseException as error:
                result.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        if isinstance(result[0], BaseException):
            raise result[0]
        self._started.append(result[0])
        return result[0]

    def _popen(self, host: int, command: Sequence[str], options: dict[str, Any]) -> subprocess.Popen[Any]:
        namespace = os.open(f"/proc/{self._init_pids[host]}/ns/pid", os.O_RDONLY)
        try:
            if _libc.setns(namespace, CLONE_NEWPID) != 0:
                raise LabError(f"setns: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(namespace)
        folder = options.pop("cwd", None) or os.getcwd()
        enter = ["nsenter", "-t", str(self._init_pids[host]), "--net", "--uts", "--ipc", "--mount", f"--wdns={folder}"]
        return subprocess.Popen([*enter, "--", *command], **options)

    def run(self, host: int, command: Sequence[str], timeout: float = 120.0, **options: Any) -> tuple[int, str]:
        """Run something in a host to its end: exit code, and what it said."""
        process = self.popen(
            host, command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
        )
        said, _ = process.communicate(timeout=timeout)
        return process.returncode, said.decode(errors="replace")

    def init_pid(self, host: int) -> int:
        """The host's process 1, seen from here."""
        return self._init_pids[host]

    def root(self, host: int) -> Path:
        """The host's files, seen from here: its own /dev/shm among them."""
        return Path(f"/proc/{self._init_pids[host]}/root")

    def processes(self, host: int) -> dict[int, str]:
        """What runs in a host: pid, as the host sees it, to command line."""
        self._controls[host].send(b"processes")
        found: dict[int, str] = dict(json.loads(self._controls[host].recv(1 << 20)))
        return found

    # ---- faults

    def kill(self, host: int) -> None:
        """SIGKILL all that runs in a host. Its kernel still says goodbye to its peers; for power loss, `crash`."""
        self._controls[host].send(b"kill")
        self._controls[host].recv(16)

    def crash(self, host: int) -> None:
        """Power loss: first the wire goes silent, then all dies. No goodbye reaches a peer."""
        self.cut(host)
        self.kill(host)

    def cut(self, host: int, peer: int | None = None, direction: str = "both") -> None:
        """Lose every frame, or those ``in`` to the host or ``out`` of it only; ``peer``: between these two only."""
        self.loss(host, 1.0, peer, direction)

    def loss(self, host: int, share: float, peer: int | None = None, direction: str = "both") -> None:
        """Lose this share of the frames (a frame may be 64 KiB of a stream)."""
        for other in self.hosts if peer is None else (peer,):
            if direction in ("both", "out"):
                self._lost[host, other] = share
            if direction in ("both", "in"):
                self._lost[other, host] = share
        self._tell_switch()

    def delay(self, host: int, seconds: float) -> None:
        """Hold every frame on its way into a host."""
        self._delays[host] = seconds
        self._tell_switch()

    def slow(self, host: int, bytes_per_second: float) -> None:
        """Limit what goes into, and what comes out of, a host."""
        self._rates[host] = bytes_per_second
        self._tell_switch()

    def flip(self, every_frames: int, ports: Sequence[int]) -> None:
        """Flip a bit of what each so-manieth large frame from or to these TCP ports carries. No checksum of TCP's
        tells: like a broken card, the switch has it made anew."""
        self._flips = {"every_frames": every_frames, "ports": list(ports)}
        self._tell_switch()

    @property
    def flipped(self) -> int:
        """How many bits were flipped so far."""
        self._tell_switch()
        return self._flipped

    def heal(self, host: int | None = None) -> None:
        """Take back every fault of the network (of one host)."""
        if host is None:
            self._lost, self._delays, self._rates, self._flips = {}, {}, {}, {}
        else:
            self._lost = {pair: share for pair, share in self._lost.items() if host not in pair}
            self._delays.pop(host, None)
            self._rates.pop(host, None)
        self._tell_switch()

    def _tell_switch(self) -> None:
        assert self._switch is not None
        pairs = [(a, b) for a in self.hosts for b in self.hosts if a != b]
        paths = [(a, b, self._lost.get((a, b), 0.0), self._delays.get(b, 0.0)) for a, b in pairs]
        table = {"paths": [p for p in paths if p[2] or p[3]], "rates": self._rates, "flips": self._flips}
        self._switch.send(json.dumps(table).encode())
        self._flipped = json.loads(self._switch.recv(64))["flipped"]
