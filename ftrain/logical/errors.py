"""What can be wrong with a logical state.

FtrainError
└── LogicalError
    ├── LayoutInvalid     a rule of the layout language is none, or does not fit the tensor that it names
    ├── StateUncovered    a world's ranks do not hold each element once, or as often as they say
    └── StateUnreadable   what a rank needs is not in the world that it is to be read from
"""

from __future__ import annotations

from ftrain.errors import FtrainError


class LogicalError(FtrainError):
    """Base of the errors of this package."""


class LayoutInvalid(LogicalError):
    """A layout that cannot be understood or does not fit; the message is one line that says what to write."""


class StateUncovered(LogicalError):
    """Elements that nobody holds, or that more ranks hold than declared; names tensor, box and ranks."""


class StateUnreadable(LogicalError):
    """A tensor that is needed is missing, or is of another dtype or shape."""
