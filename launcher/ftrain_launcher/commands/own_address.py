"""Where other hosts reach this one, if its own name says 127.0.1.1: Debian writes that into /etc/hosts."""

from __future__ import annotations

import ipaddress
import socket

EVERYWHERE = "0.0.0.0"
_ELSEWHERE = "192.0.2.1", 9
"""An address for documentation (RFC 5737): which of our own is on the way there is asked, and nothing sent."""


def is_only_ours(host: str, address: str) -> bool:
    """Whether HOST is a name of this machine for itself, with an address that means another machine elsewhere."""
    return host not in ("localhost", address) and ipaddress.ip_address(address).is_loopback


def outward() -> str | None:
    """This machine's address on the way to others: its default route's, or the only one; None: who can tell?"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
            address: str = probe.getsockname()[0]
            return address
        except OSError:
            pass
    import psutil  # seldom needed, and a launcher starts with this module

    known = [a for addresses in psutil.net_if_addrs().values() for a in addresses if a.family == socket.AF_INET]
    found = [a.address for a in known if not ipaddress.ip_address(a.address).is_loopback]
    return found[0] if len(found) == 1 else None
