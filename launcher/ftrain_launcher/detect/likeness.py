"""Pure: replicas that only their bytes tell of: plain tensors, whose gradients a program averages itself.

Nothing says of them who has the same ones: stages of a pipeline, or parts of a layer, may have tensors of the same
shapes. So who has equal bytes after a step, and has equal other bytes at the next check, is kept equal by the program.
Of more than two it is enough that most of them went on equally: that does not happen by chance. Two must have done so
twice. Where all differ, the program lets them go apart (local SGD between two averages): they are no replicas any more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import msgspec

CHANGES_MIN = 2
"""So often must two have changed equally."""


class Alike(msgspec.Struct):
    """Ranks that had the same bytes."""

    members: tuple[int, ...]
    digest: int
    """At the last check at which most had the same."""
    changes: int = 0
    """How often all of them have changed, and were equal again."""


class Likeness:
    """One generation's, by what is compared."""

    def __init__(self) -> None:
        self._sets: dict[str, list[Alike]] = defaultdict(list)

    def take(self, name: str, digests: Mapping[int, int]) -> list[Alike]:
        """What ranks have after a step; the sets of replicas among them, whether they are equal or not."""
        replicas, kept = [], []
        for alike in self._sets[name]:
            if not all(rank in digests for rank in alike.members):
                kept.append(alike)  # nothing is known of some
                continue
            digest, agreeing = Counter(digests[rank] for rank in alike.members).most_common(1)[0]
            if agreeing == len(alike.members):
                alike.changes += digest != alike.digest
            elif not self._went_on_equally(alike, digest, agreeing):
                continue
            alike.digest = digest
            kept.append(alike)
            if alike.changes or agreeing < len(alike.members):
                replicas.append(alike)
        known = {rank for alike in kept for rank in alike.members}
        equal: dict[int, list[int]] = defaultdict(list)
        for rank in sorted(digests.keys() - known):
            equal[digests[rank]].append(rank)
        kept += [Alike(tuple(ranks), digest) for digest, ranks in equal.items() if len(ranks) > 1]
        self._sets[name] = kept
        return replicas

    def _went_on_equally(self, alike: Alike, digest: int, agreeing: int) -> bool:
        """Whether those that are not equal any more are replicas all the same."""
        if len(alike.members) == 2:
            return alike.changes >= CHANGES_MIN
        return agreeing > 1 and (alike.changes > 0 or (2 * agreeing > len(alike.members) and digest != alike.digest))
