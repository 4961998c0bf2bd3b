"""What can go wrong in a worker, as one tree.

    FtrainError
    ├── NotTrackable         an object, a value or a tensor that cannot be kept in a snapshot
    ├── StateMismatch        the snapshot does not fit what the script tracks now
    │   ├── StateInconsistent   what is stored contradicts itself, whatever the script tracks
    │   └── StateUndescribed    no other number of ranks can take it over, as was said when training began
    ├── StepOrder            a step was committed out of order, or before ctx.track
    ├── EnvironmentInvalid   the variables that `ftrain run` sets are missing or malformed
    ├── ArenaFull            the node's memory cannot hold the job's snapshots
    ├── PeerSilent           another rank did not answer in time
    ├── OthersMissing        not all nodes wrote their part of a durable checkpoint (durable/attempt.py)
    ├── MeshImpossible       a device mesh does not fit the number of ranks that there are
    ├── NotCertified         a re-sharded state is not what the snapshot held (reshard/certificate.py)
    ├── LogicalError         the state of another world cannot be described or read (logical/errors.py)
    ├── ExactMisuse          exact batches were used in a way that would not be exact
    │   └── BatchTooSmall       there are more ranks than samples in a global batch
    └── LossNotFinite        the loss was infinite or no number, twice in a row
    GenerationEnded          (no Exception) the function is left, to run again from its top

This module imports nothing: everybody may read it.
"""

from __future__ import annotations


class FtrainError(Exception):
    """Base of all errors that ``ftrain`` raises."""


class GenerationEnded(BaseException):
    """Raised in the training function when its generation is over and its process stays (rejoin.py).

    No ``Exception``, so that ``except Exception`` lets it through: let it pass, and clean up in ``finally``.
    """


class NotTrackable(FtrainError):
    """Something handed to ``ctx.track`` cannot be kept: names its path, its type, and what to do."""

    def __init__(self, path: str, kind: str, reason: str) -> None:
        super().__init__(f"cannot track {path} ({kind}): {reason}")
        self.path = path
        self.kind = kind
        self.reason = reason


class StateMismatch(FtrainError):
    """The snapshot's contents and the script's objects differ: it was taken by another program."""


class StateInconsistent(StateMismatch):
    """What is stored is damaged or contradicts itself: an older snapshot or checkpoint may be whole."""


class StateUndescribed(StateMismatch):
    """The snapshot is for its own number of ranks only; the message says why, as the warning did that came with it."""


class StepOrder(FtrainError):
    """Steps must be committed once each, in rising order, and `Context.track` comes before the first."""


class EnvironmentInvalid(FtrainError):
    """A variable of the worker's environment is missing or malformed."""


class ArenaFull(FtrainError):
    """The node's shared memory cannot hold the job's snapshots; all sizes in bytes."""

    def __init__(self, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(
            f"snapshots need {needed_bytes} bytes of shared memory on this node, {available_bytes} are available: "
            "enlarge it, choose another place with --arena-dir, or run fewer ranks per node"
        )
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class PeerSilent(FtrainError):
    """Another rank did not do its part within the time allowed; a lost peer is the likely cause."""


class MeshImpossible(FtrainError):
    """The sizes that were asked for cannot be had from this number of ranks."""

    def __init__(self, needs: str, fixed: int, ranks: int, *, is_free: bool) -> None:
        """``needs``: in words, what mesh and of how many ranks: of ``fixed``, or, if ``is_free``, a multiple."""
        super().__init__(f"{needs}, the job has {ranks}")
        self.needs = needs
        self.fixed = fixed
        self.is_free = is_free


class ExactMisuse(FtrainError):
    """Exact batches were used in a way that would not be exact; says what to do instead."""


class BatchTooSmall(ExactMisuse):
    """There are more ranks than samples in a global batch. An elastic job goes on with as many as there are samples."""

    def __init__(self, global_batch: int, ranks: int, ranks_max: int) -> None:
        """``ranks``: among whom it is dealt; ``ranks_max``: so many may be in the job."""
        super().__init__(
            f"global_batch={global_batch} leaves some of {ranks} ranks without a sample, and a mean over none is no "
            "number: give a larger global_batch, or micro_batch=1 and use ctx.microbatches"
        )
        self.needs = f"a global batch of {global_batch} samples is for {ranks_max} ranks at most"
        self.ranks_max = ranks_max


class LossNotFinite(FtrainError):
    """The loss that was logged was infinite or no number, in two steps one after the other."""

    def __init__(self, steps: tuple[int, ...], version: int | None) -> None:
        newest = "there is no snapshot" if version is None else f"the newest snapshot is of step {version}"
        super().__init__(
            f"the loss of steps {', '.join(map(str, steps))} was not finite; {newest} "
            "(with --no-demote-after-nan training would have gone on)"
        )
        self.steps = steps
        self.version = version
