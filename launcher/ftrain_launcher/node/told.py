"""What a node tells the controller; what it said of the present generation is told again to one that was away."""

from __future__ import annotations

from collections.abc import Callable

from ftrain_launcher.from_agent import FromAgent

Key = tuple[object, ...]
Tell = Callable[[FromAgent, Key], None]
"""Tells the controller something, and remembers it by its key."""


class Told:
    """One node's words; while nobody is connected, only those with a key are not lost."""

    def __init__(self, send: Callable[[FromAgent], None]) -> None:
        self._send = send
        self._said: dict[Key, FromAgent] = {}

    def tell(self, message: FromAgent, key: Key = ()) -> None:
        """Send it. With a key it is kept, in place of what had that key before."""
        if key:
            self._said[key] = message
        self._send(message)

    def __contains__(self, key: Key) -> bool:
        return key in self._said

    def again(self) -> list[FromAgent]:
        """All that was kept."""
        return list(self._said.values())

    def forget(self) -> None:
        """The generation is over."""
        self._said.clear()
