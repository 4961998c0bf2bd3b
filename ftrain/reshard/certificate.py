"""Proof of a re-sharded state, before a step is taken with it (ElasWave's parameter consistency, arXiv 2510.00606).

Each rank says what it holds now, with a checksum of all that others hold too; rank 0 compares:

    coverage      every element is held as often as layouts say, and nothing of the snapshot is left out
    replicas      the same bytes wherever the same part is held
    counters      the optimizer's steps of a parameter, on all its ranks
    samplers      the same position on all ranks, and their next batches together are the global batch, each sample once

All ranks hear the verdict. Numbers only travel, never a pickle.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from ftrain.errors import FtrainError
from ftrain.exact.stream import ElasticStream
from ftrain.link import Certified
from ftrain.logical.coverage import findings
from ftrain.logical.live import Live
from ftrain.logical.placements import Scope
from ftrain.logical.state import LogicalTensor, RankState
from ftrain.replicas import pieces
from ftrain.reshard.saying import broadcast_text, gathered
from ftrain.sampler import ElasticSampler

SHOWN_MAX = 5


class NotCertified(FtrainError):
    """The state that was re-sharded is not what the snapshot held; training with it would go wrong."""

    certificate: Certified | None = None
    """On rank 0: what was found."""


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """Where a sampler is on one rank."""

    position: int
    global_batch: int
    place: tuple[int, int]
    """This rank's number among those that share the batches, and how many they are."""
    next: tuple[int, ...] | None = None
    """The samples that it gives this rank next; None: they are not numbered."""
    whole: int = 0
    """Checksum of all that it gives next, to all ranks."""


class Account(msgspec.Struct, frozen=True, array_like=True):
    """What one rank holds."""

    state: RankState
    objects: tuple[str, ...]
    """What it tracks."""
    sums: tuple[int, ...]
    """xxh3 of each tensor that other ranks hold too; 0 of the others."""
    steps: dict[str, float]
    """By optimizer and parameter."""
    samplers: dict[str, Sampling]
    hashed_bytes: int


def account_of(live: Live, objects: Mapping[str, Any]) -> Account:
    """This rank's."""
    sums, total = [], 0
    for tensor, memory in zip(live.state.tensors, live.tensors, strict=True):
        shared = _is_shared(tensor)
        sums.append(sum_of_bytes(memory) if shared else 0)
        total += memory.nbytes if shared else 0
    steps = {
        f"{name}.{parameter}": float(counted)
        for name, tracked in objects.items()
        if isinstance(tracked, torch.optim.Optimizer)
        for parameter, counted in _steps(tracked, live.state.parameters[name])
    }
    samplers = {
        name: _sampling(tracked)
        for name, tracked in objects.items()
        if isinstance(tracked, ElasticSampler | ElasticStream)
    }
    return Account(live.state, tuple(objects), tuple(sums), steps, samplers, total)


def judge(accounts: Sequence[Account], names: Iterable[str], snapshot: Iterable[RankState]) -> list[str]:
    """All that is wrong with what the ranks say, given the objects and tensors of the snapshot; nothing: go on."""
    states = [each.state for each in accounts]
    untracked = set(names).difference(*(each.objects for each in accounts))
    wrong = [f"the snapshot holds {name}, which no rank tracks" for name in sorted(untracked)]
    wrong += map(str, findings(states, are_kept=False))
    sums = [(each.state, each.sums) for each in accounts]
    return [*wrong, *_left_out(states, snapshot), *_unequal(sums, _is_shared), *_miscounted(accounts),
            *_missampled(accounts)]  # fmt: skip


def certify(
    live: Live, objects: Mapping[str, Any], names: Iterable[str], snapshot: Iterable[RankState], version: int
) -> Certified | None:
    """A collective. On rank 0 what was proved. Raises NotCertified, on all ranks."""
    begun = time.monotonic()
    account = account_of(live, objects)
    encoded = gathered(msgspec.msgpack.encode(account))
    accounts: list[Account] = []
    findings: tuple[str, ...] = ()
    if dist.get_rank() == 0:
        accounts = [msgspec.msgpack.decode(each, type=Account) for each in encoded]
        wrong = judge(accounts, names, snapshot)
        findings = shown(wrong)
    verdict = broadcast_text("; ".join(findings))
    certified = _certificate(accounts, version, findings, begun) if accounts else None
    if verdict:
        error = NotCertified(f"the state of step {version} could not be certified for this world: {verdict}")
        error.certificate = certified
        raise error
    return certified


def shown(wrong: Sequence[str]) -> tuple[str, ...]:
    """The first findings, and how many more there are."""
    more = [f"{len(wrong) - SHOWN_MAX} more"] * (len(wrong) > SHOWN_MAX)
    return (*wrong[:SHOWN_MAX], *more)


def _certificate(accounts: Sequence[Account], version: int, findings: tuple[str, ...], begun: float) -> Certified:
    return Certified(
        version=version,
        findings=findings,
        ranks=len(accounts),
        tensors=len({tensor.name for each in accounts for tensor in each.state.tensors}),
        compared_bytes=sum(each.hashed_bytes for each in accounts),
        counters=len({name for each in accounts for name in each.steps}),
        samplers={name: each.position for name, each in accounts[0].samplers.items()},
        samples={name: each.position * each.global_batch for name, each in accounts[0].samplers.items()},
        seconds=time.monotonic() - begun,
    )


def _left_out(states: Iterable[RankState], snapshot: Iterable[RankState]) -> Iterator[str]:
    taken = {name for state in states for name in (*state.by_name, *state.aliases)}
    lost: dict[str, None] = {}
    for state in snapshot:
        also = defaultdict(set)
        for alias, name in state.aliases.items():
            also[name].add(alias)
        lost |= dict.fromkeys(name for name in state.by_name if taken.isdisjoint({name, *also[name]}))
    return (f"{name}: the snapshot holds it, and no rank has taken it" for name in lost)


def _unequal(said: Iterable[tuple[RankState, Sequence[int]]], counts: Callable[[LogicalTensor], bool]) -> Iterator[str]:
    """Of the tensors that count, given each rank's checksums."""
    found: dict[tuple[str, object, object], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for state, sums in said:
        for tensor, hashed in zip(state.tensors, sums, strict=True):
            if counts(tensor):
                found[tensor.name, tensor.axes, tensor.strides][hashed].append(state.rank)
    for key, by_sum in found.items():
        if len(by_sum) > 1:
            ranks = " and ".join(str(ranks) for ranks in by_sum.values())
            yield f"{key[0]}: replicas are not equal: ranks {ranks} differ"


def _miscounted(accounts: Sequence[Account]) -> Iterator[str]:
    first: dict[str, tuple[int, float]] = {}
    for each in accounts:
        for name, steps in each.steps.items():
            rank, known = first.setdefault(name, (each.state.rank, steps))
            if known != steps:
                yield f"{name}: {known:g} steps on rank {rank}, {steps:g} on rank {each.state.rank}"


def _missampled(accounts: Sequence[Account]) -> Iterator[str]:
    by_name: dict[str, list[tuple[int, Sampling]]] = defaultdict(list)
    for each in accounts:
        for name, sampling in each.samplers.items():
            by_name[name].append((each.state.rank, sampling))
    for name, all_ranks in by_name.items():
        at = {sampling.position for _, sampling in all_ranks}
        if len(at) > 1:
            yield f"{name}: ranks are at positions {', '.join(map(str, sorted(at)))}"
            continue
        parts: dict[tuple[int, int], set[tuple[int, ...]]] = defaultdict(set)
        for _, sampling in all_ranks:
            if sampling.next is not None:
                parts[sampling.place].add(sampling.next)
        if any(len(each) > 1 for each in parts.values()):
            yield f"{name}: ranks with the same share of a batch would train on different samples"
        elif parts:
            yield from _misdealt(name, parts, {sampling.whole for _, sampling in all_ranks})


def _misdealt(name: str, parts: Mapping[tuple[int, int], set[tuple[int, ...]]], whole: set[int]) -> Iterator[str]:
    shares = {share for _, share in parts}
    if len(shares) > 1 or {place for place, _ in parts} != set(range(max(shares))):
        yield f"{name}: the batches are dealt to {sorted(shares)}, by ranks {sorted(place for place, _ in parts)} only"
        return
    dealt = [sample for part in parts.values() for each in part for sample in each]
    if whole != {sum_of(dealt)}:
        yield f"{name}: the ranks' shares together ({len(dealt)} samples) are not the next global batch"


def _steps(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for name, parameter in zip(names, parameters, strict=True):
        counted = optimizer.state.get(parameter, {}).get("step")
        if isinstance(counted, int | float) or (isinstance(counted, Tensor) and counted.numel() == 1):
            yield name, counted


def _sampling(sampler: ElasticSampler | ElasticStream) -> Sampling:
    place = sampler.place()
    if isinstance(sampler, ElasticStream):
        return Sampling(sampler.position, sampler.cut.global_batch, place)
    at = sampler.position
    return Sampling(at, sampler.global_batch, place, tuple(sampler.batch(at)), sum_of(sampler.whole_batch(at)))


def sum_of(samples: Iterable[int]) -> int:
    """In whatever order; a batch across the end of an epoch may have one twice."""
    return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(sorted(samples)))


def _is_shared(tensor: LogicalTensor) -> bool:
    return tensor.scope is Scope.SAME and tensor.copies != 1


def sum_of_bytes(tensor: Tensor) -> int:
    """xxh3 of all of them."""
    hasher = xxhash.xxh3_64()
    for piece in pieces(tensor):
        hasher.update(piece)
    return hasher.intdigest()
