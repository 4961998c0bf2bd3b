"""ISA-L's erasure coding by ctypes: fifteen times zfec, no allocation, the GIL released.

The library (BSD) comes inside the ``pyeclib`` wheel (extra ``isal``), whose own API, which holds the GIL and copies, is
not used or imported; or from the system (Debian: libisal2). Tried in this order: $FTRAIN_ISAL_LIBRARY (a path;
nothing else is tried then), the wheel, the system. What it computes is compared with Python's own arithmetic at load.

Pitfalls: its ``gf_gen_rs_matrix`` is not always invertible, so matrices come from ``generator``; lengths are C ints,
so longer buffers are cut; an odd end is done by going over the last whole vector again, so what ``ec_encode_data``
writes may not be what it reads: shared pieces go through a copy.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import metadata

import numpy as np

from ftrain_snapshot.codec.base import Buffer, Engine, Rows, check_fits
from ftrain_snapshot.codec.generator import multiply
from ftrain_snapshot.errors import CodecUnsupported

LIBRARY_VARIABLE = "FTRAIN_ISAL_LIBRARY"
SYSTEM_LIBRARY = "libisal.so.2"
INSTALL_HINT = "pip install 'ftrain[isal]', or apt install libisal2"
CALL_BYTES_MAX = 1 << 30
PIECE_BYTES = 256 << 10

_SELF_TEST_LENGTHS = (1, 31, 64, 515)
_TABLE_BYTES = 32
"""What a coefficient's tables take."""


class IsalEngine(Engine):
    """ISA-L, found and tested when made. Raises CodecUnsupported if there is none that works."""

    name = "isal"

    def __init__(self) -> None:
        self.path, self._library = _load()
        self._tables = lru_cache(maxsize=1024)(self._make_tables)
        self._self_test()

    def combine(self, rows: Rows, sources: Sequence[Buffer], destinations: Sequence[memoryview]) -> None:
        """See Engine."""
        length = check_fits(rows, sources, destinations)
        if length == 0 or not rows:
            return
        if any(memoryview(d).readonly for d in destinations):
            raise ValueError("a destination is read-only")
        froms, intos = [_address(s) for s in sources], [_address(d) for d in destinations]
        shared = [j for j, place in enumerate(froms) if place in intos]
        if not sources:
            for place in intos:
                ctypes.memset(place, 0, length)
        elif not shared:
            self._encode(rows, froms, intos, length)
        elif len(rows) == 1 and shared == [0] and rows[0][0] == 1 and len(sources) == 2:
            self._add(rows[0][1], froms[1], intos[0], length)
        else:
            self._encode_shared(rows, froms, intos, shared, length)

    def _encode(self, rows: Rows, froms: list[int], intos: list[int], length: int) -> None:
        tables = self._tables(tuple(map(tuple, rows)))
        for start in range(0, length, CALL_BYTES_MAX):
            self._library.ec_encode_data(
                min(CALL_BYTES_MAX, length - start),
                len(froms),
                len(intos),
                tables,
                _moved(froms, start),
                _moved(intos, start),
            )

    def _add(self, coefficient: int, source: int, into: int, length: int) -> None:
        tables = self._tables(((coefficient,),))
        for start in range(0, length, CALL_BYTES_MAX):
            self._library.ec_encode_data_update(
                min(CALL_BYTES_MAX, length - start), 1, 1, 0, tables, source + start, _moved([into], start)
            )

    def _encode_shared(self, rows: Rows, froms: list[int], intos: list[int], shared: list[int], length: int) -> None:
        """Piece by piece, from copies of what will be overwritten."""
        copies = (ctypes.c_char * (PIECE_BYTES * len(shared)))()
        base = ctypes.addressof(copies)
        for start in range(0, length, PIECE_BYTES):
            size = min(PIECE_BYTES, length - start)
            pieces = [place + start for place in froms]
            for i, j in enumerate(shared):
                ctypes.memmove(base + i * PIECE_BYTES, pieces[j], size)
                pieces[j] = base + i * PIECE_BYTES
            self._encode(rows, pieces, [place + start for place in intos], size)

    def _make_tables(self, rows: tuple[tuple[int, ...], ...]) -> ctypes.Array[ctypes.c_char]:
        coefficients = bytes(c for row in rows for c in row)
        tables = (ctypes.c_char * (_TABLE_BYTES * len(coefficients)))()
        self._library.ec_init_tables(len(rows[0]), len(rows), coefficients, tables)
        return tables

    def _self_test(self) -> None:
        """Raises CodecUnsupported if a product is not what the field says."""
        rows = ((1, 2, 0x8E, 0), (255, 0x1D, 1, 77))
        for length in _SELF_TEST_LENGTHS:
            sources = [bytes((37 * i + j * 101 + 5) & 0xFF for i in range(length)) for j in range(4)]
            expected = [_slowly(row, sources) for row in rows]
            got = [bytearray(length) for _ in rows]
            self.combine(rows, sources, [memoryview(g) for g in got])
            grown = bytearray(sources[0])
            self.combine(((1, 2),), (grown, sources[1]), (memoryview(grown),))
            if list(map(bytes, got)) != expected or bytes(grown) != _slowly((1, 2), sources[:2]):
                raise CodecUnsupported(f"ISA-L ({self.path}) computes wrongly here: use --codec numpy")


def _slowly(row: Sequence[int], sources: Sequence[bytes]) -> bytes:
    out = bytearray(len(sources[0]))
    for c, source in zip(row, sources, strict=True):
        for i, value in enumerate(source):
            out[i] ^= multiply(c, value)
    return bytes(out)


def _address(buffer: Buffer) -> int:
    """Where the bytes are. ctypes, or numpy for read-only ones, which ctypes does not take: six times slower."""
    if isinstance(buffer, bytes) or memoryview(buffer).readonly:
        place: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
        return place
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _moved(places: Sequence[int], by: int) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(places))(*([place + by for place in places] if by else places))


def _load() -> tuple[str, ctypes.CDLL]:
    problems = []
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
            _declare(library)
        except (OSError, AttributeError) as error:
            problems.append(str(error))
        else:
            return path, library
    raise CodecUnsupported(f"no ISA-L here ({'; '.join(problems)}): {INSTALL_HINT}")


def _candidates() -> Iterator[str]:
    if LIBRARY_VARIABLE in os.environ:
        yield os.environ[LIBRARY_VARIABLE]
        return
    try:
        files = metadata.files("pyeclib") or []
    except metadata.PackageNotFoundError:
        files = []
    yield from (str(f.locate()) for f in files if f.name.startswith("libisal") and ".so" in f.name)
    yield SYSTEM_LIBRARY


def _declare(library: ctypes.CDLL) -> None:
    number, pointer = ctypes.c_int, ctypes.c_void_p
    signatures = {
        "ec_init_tables": [number, number, pointer, pointer],
        "ec_encode_data": [number, number, number, pointer, pointer, pointer],
        "ec_encode_data_update": [number, number, number, number, pointer, pointer, pointer],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = None
