"""ftrain: keep a ``torch.distributed`` job training through crashes, hangs and lost nodes.

This is the whole public face. Names are looked up on first use (PEP 562), so that `import ftrain` costs nothing
and loads no torch: the launcher reads parts of this package too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftrain.capture import SnapshotDropped
    from ftrain.context import Context, NotProtected, resilient
    from ftrain.errors import (
        ArenaFull,
        EnvironmentInvalid,
        ExactMisuse,
        FtrainError,
        LossNotFinite,
        MeshImpossible,
        NotTrackable,
        PeerSilent,
        StateMismatch,
        StepOrder,
    )
    from ftrain.exact.keyed import KeyedRandom, derive_seed
    from ftrain.exact.loop import MicroBatch
    from ftrain.exact.stream import ElasticStream
    from ftrain.reshard.certificate import NotCertified
    from ftrain.sampler import ElasticSampler

__version__ = "0.1.0"

__all__ = [
    "ArenaFull",
    "Context",
    "ElasticSampler",
    "ElasticStream",
    "EnvironmentInvalid",
    "ExactMisuse",
    "FtrainError",
    "KeyedRandom",
    "LossNotFinite",
    "MeshImpossible",
    "MicroBatch",
    "NotCertified",
    "NotProtected",
    "NotTrackable",
    "PeerSilent",
    "SnapshotDropped",
    "StateMismatch",
    "StepOrder",
    "__version__",
    "derive_seed",
    "resilient",
]

_HOMES = {
    "Context": "ftrain.context",
    "ElasticSampler": "ftrain.sampler",
    "ElasticStream": "ftrain.exact.stream",
    "KeyedRandom": "ftrain.exact.keyed",
    "MicroBatch": "ftrain.exact.loop",
    "NotCertified": "ftrain.reshard.certificate",
    "NotProtected": "ftrain.context",
    "SnapshotDropped": "ftrain.capture",
    "derive_seed": "ftrain.exact.keyed",
    "resilient": "ftrain.context",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ftrain' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "ftrain.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
