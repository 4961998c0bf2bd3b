"""What TCP itself counts of one connection: segments it sent, and those of them that got lost on the way.

From Linux's TCP_INFO (``struct tcp_info`` of linux/tcp.h). What was sent again counts as lost, unless the peer reported
that it then had it twice (DSACK): so neither a late acknowledgement counts nor one that was lost on its way back.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_SENT_AGAIN = struct.Struct("=100xI")  # tcpi_total_retrans
_SENT = struct.Struct("=156xI")  # tcpi_data_segs_out, those that were sent again included
_TWICE = struct.Struct("=216xI")  # tcpi_dsack_dups
_BYTES = _TWICE.size


class Segments(NamedTuple):
    """Of one connection, or of a stretch of its life, in one direction."""

    sent: int = 0
    lost: int = 0

    def since(self, earlier: Segments) -> Segments:
        """What has come to it. A report of bytes that came twice may come late: no count is negative."""
        return Segments(max(0, self.sent - earlier.sent), max(0, self.lost - earlier.lost))


def segments(sock: socket.socket) -> Segments:
    """What this end has sent so far; nothing where it is not TCP, or the kernel does not count."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES)
    except (OSError, AttributeError):
        return Segments()
    if len(info) < _BYTES:
        return Segments()
    (sent,), (again,), (twice,) = (field.unpack_from(info) for field in (_SENT, _SENT_AGAIN, _TWICE))
    return Segments(sent, max(0, again - twice))
