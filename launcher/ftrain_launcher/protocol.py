"""What holds for all lines to the controller, whoever is at the other end."""

from __future__ import annotations

PROTOCOL_VERSION = 2
MESSAGE_BYTES_MAX = 16 * 2**20
"""Longest message that either side takes."""
