"""Pure: replicas that must be equal and are not.

Each rank sends digests of what it shares with others (`ftrain.replicas`), at the same steps. Equal digests are equal
bytes. Where a majority agrees, the others are named: their memory, processor or software has gone wrong without a
sound. Two that differ, or more without a majority, show that something is wrong and not where. If all differ at the
first look, they were never equal: the program keeps them apart on purpose, and nothing is said. Of plain tensors nobody
says who shares them: `likeness` finds out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from ftrain.link import ReplicaDigest
from ftrain_launcher.detect import wording
from ftrain_launcher.detect.likeness import Likeness
from ftrain_launcher.detect.verdict import Kind, Verdict

WAIT_SECONDS = 10.0
"""For digests of a step that have not come; then a majority of all decides."""
PENDING_MAX = 4096
"""Sets of digests that wait for more of them; beyond, the oldest goes."""
_STEPS_MAX = 64
"""So many steps wait for ranks; beyond, the oldest goes."""

_Set = tuple[int, str]
"""Step, name of the replica set."""


class _Pending(msgspec.Struct):
    size: int
    """How many ranks share it; 0: that is to be found out."""
    first: float
    """When the first digest came."""
    digests: dict[int, int] = {}
    """By rank."""


class Divergence:
    """The replicas of one generation. ``nodes`` says on which node each rank is."""

    def __init__(self, generation: int, nodes: Mapping[int, str]) -> None:
        self._generation, self._nodes = generation, nodes
        self._pending: dict[_Set, _Pending] = {}
        self._equal: set[str] = set()
        """Replica sets that were once seen to be equal."""
        self._told: dict[str, tuple[int, ...]] = {}
        self._likeness = Likeness()
        self._reported: dict[int, set[int]] = {}
        """By step: whose digests have come."""

    def take(self, rank: int, step: int, digests: Iterable[ReplicaDigest], now: float) -> list[Verdict]:
        """A rank's digests after a step have come; what is now known to differ and was not told before."""
        full: list[_Set] = []
        for digest in digests:
            key = step, digest.replicas
            pending = self._pending.setdefault(key, _Pending(digest.size, now))
            pending.digests[rank] = digest.digest
            if pending.size and len(pending.digests) >= pending.size:
                full.append(key)
        if self._all_have_reported(rank, step):
            full += [key for key, pending in self._pending.items() if key[0] == step and not pending.size]
        while len(self._pending) > PENDING_MAX:
            del self._pending[next(iter(self._pending))]
        return [*self._judge(full), *self.verdicts(now)]

    def verdicts(self, now: float) -> list[Verdict]:
        """The same for sets that have waited long enough."""
        return self._judge([key for key, pending in self._pending.items() if now >= pending.first + WAIT_SECONDS])

    def _all_have_reported(self, rank: int, step: int) -> bool:
        reported = self._reported.setdefault(step, set())
        reported.add(rank)
        if len(reported) < len(self._nodes):
            while len(self._reported) > _STEPS_MAX:
                del self._reported[next(iter(self._reported))]
            return False
        del self._reported[step]
        return True

    def _judge(self, keys: list[_Set]) -> list[Verdict]:
        judged: list[Verdict | None] = []
        for step, replicas in keys:
            found = self._pending.pop((step, replicas))
            sets = [(replicas, found)] if found.size else self._alike(replicas, found)
            judged += [self._judge_set(step, name, one) for name, one in sets]
        return [verdict for verdict in judged if verdict is not None]

    def _alike(self, name: str, found: _Pending) -> list[tuple[str, _Pending]]:
        """The sets of replicas that have turned out to be such."""
        sets = []
        for alike in self._likeness.take(name, found.digests):
            members = alike.members
            replicas = f"{name}, {len(members)} ranks from {members[0]}"
            if alike.changes:
                self._equal.add(replicas)
            sets.append((replicas, _Pending(len(members), found.first, {r: found.digests[r] for r in members})))
        return sets

    def _judge_set(self, step: int, replicas: str, found: _Pending) -> Verdict | None:
        counts = Counter(found.digests.values())
        if len(counts) < 2:
            if len(found.digests) >= found.size:
                self._equal.add(replicas)
                self._told.pop(replicas, None)
            return None
        digest, agreeing = counts.most_common(1)[0]
        if 2 * agreeing > found.size:
            minority = tuple(sorted(rank for rank, other in found.digests.items() if other != digest))
            return self._verdict(step, replicas, found, minority, agreeing)
        if len(found.digests) < found.size or replicas not in self._equal:
            return None
        return self._verdict(step, replicas, found, (), agreeing)

    def _verdict(
        self, step: int, replicas: str, found: _Pending, minority: tuple[int, ...], agreeing: int
    ) -> Verdict | None:
        if self._told.get(replicas) == minority:
            return None
        self._told[replicas] = minority
        ranks, different = sorted(found.digests), len(set(found.digests.values()))
        what = replicas.partition(":")[0]
        was_equal = replicas in self._equal
        if minority:
            unless = "" if was_equal else ", or the program treats it otherwise"
            has = "have" if len(minority) > 1 else "has"
            sentence = (
                f"{wording.ranks(minority, self._nodes)} {has} other {what} after step {step} than the {agreeing} "
                f"replicas that agree: silent corruption{unless}"
            )
        elif different == len(ranks) > 2:
            sentence = f"after step {step} all {len(ranks)} replicas have other {what}: likely an error of the program"
        else:
            which = wording.ranks(ranks, self._nodes)
            sentence = f"the {what} of {which} differ after step {step}, and no majority says which are right"
        return Verdict(
            kind=Kind.DIVERGENCE,
            generation=self._generation,
            ranks=minority,
            confidence=0.5 if not minority else 0.95 if was_equal else 0.7,
            sentence=sentence,
            step=step,
            details={
                "replicas": replicas,
                "digests": ", ".join(
                    f"rank {rank}: {found.digests[rank]:016x}" for rank in ranks[: wording.LISTED_MAX]
                ),
                "equal_before": "yes" if was_equal else "not seen",
                **({"cause": "program"} if different == len(ranks) > 2 else {}),
            },
        )
