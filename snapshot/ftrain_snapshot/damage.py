"""Which of the chunks kept here are missing or damaged: found by reading them, and said in ranges."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from itertools import groupby

from ftrain_snapshot.inventory import Damage
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import Catalog, UnitDescriptor, checksum, chunk_bytes, chunk_count, sum_at
from ftrain_snapshot.placement import Group
from ftrain_snapshot.words import SnapshotId

SLICE_UNREAD_CHUNKS = 4096
"""Chunks to look up in the record before others get their turn."""

Place = tuple[int, int, int]
"""(lane, rotation, stripe): one chunk of this node, data or parity as the rotation says."""


def damages(places: Iterable[Place]) -> tuple[Damage, ...]:
    """The same, in ranges of neighbouring stripes."""
    found = []
    numbered = enumerate(sorted(places))
    for (lane, rotation, _), run in groupby(numbered, key=lambda item: (*item[1][:2], item[1][2] - item[0])):
        stripes = [place[2] for _, place in run]
        found.append(Damage(lane, rotation, stripes[0], stripes[-1] + 1))
    return tuple(found)


def bad_data(unit: UnitDescriptor, lane: Lane | None, group: Group) -> Generator[None, None, set[Place]]:
    """Chunks of an own unit whose bytes are missing or not those described; its header is not asked."""
    length = unit.header.unit_bytes
    bad = set()
    for chunk in range(unit.header.chunks):
        place = (unit.lane, group.rotation_of(unit.position, chunk), group.stripe_of(chunk))
        if lane is None or lane.capacity < length:
            bad.add(place)
            continue
        region, sum_ = lane.regions[unit.snapshot.slot], sum_at(unit.sums, chunk)
        on_record = region.sum(chunk) == sum_  # a spare's says nothing: then nothing need be read
        if not on_record or checksum(region.chunk(chunk, chunk_bytes(length, chunk))) != sum_:
            bad.add(place)
        if on_record or chunk % SLICE_UNREAD_CHUNKS == SLICE_UNREAD_CHUNKS - 1:
            yield  # after each that was read: who is asked for lost bytes answers in between
    return bad


def bad_parity(
    catalog: Catalog, parity: Callable[[SnapshotId, int, int, int], memoryview | None]
) -> Generator[None, None, set[Place]]:
    """Chunks of the parity on record whose bytes, as ``parity`` gives them, are missing or not as described."""
    bad = set()
    for described in catalog.parity:
        for stripe in range(chunk_count(described.parity_bytes)):
            view = parity(catalog.snapshot, described.lane, described.rotation, stripe)
            if view is None or checksum(view) != sum_at(described.sums, stripe):
                bad.add((described.lane, described.rotation, stripe))
            yield
    return bad
