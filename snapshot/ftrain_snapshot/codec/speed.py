"""How fast an engine is on this machine: what ``ftrain doctor`` shows."""

from __future__ import annotations

from time import perf_counter

import msgspec

from ftrain_snapshot.codec import Engine, Rows
from ftrain_snapshot.codec.generator import decode_rows, name_for
from ftrain_snapshot.codec.generator import rows as parity_rows

CHUNK_BYTES = 1 << 20
REPEATS = 3


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """GB/s of data chunks (10^9 bytes) on one thread; the best of a few runs on buffers that are in memory already."""

    data: int
    parity: int
    encode_gb_per_second: float
    """All parity chunks of a stripe."""
    decode_gb_per_second: float
    """As many lost data chunks as there is parity, or all of them."""


def measure(engine: Engine, data: int, parity: int) -> Speed:
    """Code and decode stripes of ``data`` + ``parity`` chunks of 1 MiB: a few milliseconds."""
    name = name_for(parity)
    chunks = [bytearray(bytes(range(i, i + 64)) * (CHUNK_BYTES // 64)) for i in range(data + parity)]
    lost = tuple(range(min(data, parity)))
    present = tuple(range(data + parity))[len(lost) :][:data]
    return Speed(
        data=data,
        parity=parity,
        encode_gb_per_second=_best(engine, parity_rows(name, data, parity), chunks[:data], chunks[data:]),
        decode_gb_per_second=_best(
            engine,
            decode_rows(name, data, parity, present, lost),
            [chunks[p] for p in present],
            [chunks[j] for j in lost],
        ),
    )


def _best(engine: Engine, rows: Rows, sources: list[bytearray], destinations: list[bytearray]) -> float:
    outs = [memoryview(d) for d in destinations]
    seconds = []
    for _ in range(REPEATS + 1):  # the first run warms up
        start = perf_counter()
        engine.combine(rows, sources, outs)
        seconds.append(perf_counter() - start)
    return sum(map(len, sources)) / min(seconds) / 1e9
