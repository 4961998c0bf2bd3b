"""Process 1 of a pretend host: sets the host up, hands its network card to the lab, then does what the lab asks.

    init.py CONTROL-FD NAME ADDRESS SHM-BYTES PRIVATE-FOLDERS...

It runs on the standard library alone. It ends with the lab (its end of the socket is closed), and with it, as
with every process 1, all that runs in its host.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

PF_EXITING = 0x4
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8
"""The kernel leaves checksums and cutting to the card: frames of 64 KiB reach the switch, a tenth of the work."""


def network_card() -> int:
    """Make eth0; what is written to the descriptor arrives there, what is sent there can be read from it."""
    card = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(card, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(card, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
    return card


def set_up(name: str, address: str, shm_bytes: str, private: list[str], hosts: dict[str, str]) -> None:
    """Folders, name, addresses. Neighbours are fixed: with ARP a cut would be told after 3 s, as no router would."""
    size = f",size={shm_bytes}" if shm_bytes != "0" else ""
    for folder in ("/dev/shm", *private):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=1777{size}", "lab", folder], check=True)
        size = ""
    socket.sethostname(name)
    with tempfile.NamedTemporaryFile("w", dir="/dev/shm") as file:
        file.write("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in hosts.items()))
        file.flush()
        subprocess.run(["mount", "--bind", file.name, "/etc/hosts"], check=True)
    with contextlib.suppress(OSError):
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    lines = ["link set lo up", f"link set eth0 address {mac(address)}", f"addr add {address}/24 dev eth0"]
    lines += ["link set eth0 up"]
    lines += [f"neigh replace {a} lladdr {mac(a)} dev eth0 nud permanent" for a in hosts.values() if a != address]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines).encode(), check=True)


def mac(address: str) -> str:
    """The card's own address: its last byte is the host's number."""
    return f"02:77:00:00:00:{int(address.rpartition('.')[2]):02x}"


def processes() -> list[tuple[int, str]]:
    """What runs here and is not about to end, process 1 left out: (pid, command line)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != "1":
            with contextlib.suppress(OSError):
                state, *numbers = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if state not in "ZX" and not int(numbers[5]) & PF_EXITING:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append((int(entry.name), command.strip()))
    return found


def bury() -> None:
    """Process 1 is the parent of all orphans."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def serve(control: socket.socket) -> None:
    """Do what the lab asks until it is gone."""
    while True:
        if select.select([control], [], [], 0.2)[0]:
            match control.recv(1 << 16):
                case b"":
                    return
                case b"kill":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(-1, signal.SIGKILL)  # In one go: nothing can fork and escape.
                    control.send(b"[]")
                case b"processes":
                    control.send(json.dumps(processes()).encode())
        bury()


def main() -> None:
    """Set up, hand over, serve."""
    descriptor, name, address, shm_bytes, *private = sys.argv[1:]
    control = socket.socket(fileno=int(descriptor))
    hosts = json.loads(control.recv(1 << 16))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    card = network_card()
    set_up(name, address, shm_bytes, private, hosts)
    socket.send_fds(control, [b"ready"], [card])
    os.close(card)
    serve(control)


if __name__ == "__main__":
    main()
