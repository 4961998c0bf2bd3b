"""The conformance suite of ``Engine``: every engine gives the bytes of a slow reference, whatever it is given.

So all of them give the same bytes. An engine that is not installed is skipped, visibly.
"""

import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain_snapshot.codec import ENGINES, load
from ftrain_snapshot.codec.generator import decode_rows, multiply, name_for, rows
from ftrain_snapshot.codec.numpy_engine import PIECE_BYTES
from ftrain_snapshot.errors import CodecUnsupported

TABLES = [bytes(multiply(c, value) for value in range(256)) for c in range(256)]
STRIPES = [(k, m) for k in range(1, 9) for m in range(1, 5)]
LENGTHS = [1, 2, 7, 8, 15, 16, 31, 33, 63, 64, 65, 127, 255, 1000]
LONG = PIECE_BYTES + 77


@pytest.fixture(params=ENGINES)
def engine(request):
    try:
        return load(request.param)
    except CodecUnsupported as missing:
        pytest.skip(str(missing))


def reference(rows, sources, length):
    """The sums, by tables and long integers."""
    sums = []
    for row in rows:
        total = 0
        for c, source in zip(row, sources, strict=True):
            total ^= int.from_bytes(bytes(source).translate(TABLES[c]), "little")
        sums.append(total.to_bytes(length, "little"))
    return sums


def combined(engine, rows, sources, length):
    outs = [bytearray(b"\xaa" * length) for _ in rows]
    engine.combine(rows, sources, [memoryview(out) for out in outs])
    return [bytes(out) for out in outs]


def chunks(count, length, seed=0):
    drawn = random.Random(seed)
    return [drawn.randbytes(length) for _ in range(count)]


@pytest.mark.parametrize(("data", "parity"), [s for s in STRIPES if s[0] < 7 or s[1] < 4])
def test_every_loss_is_made_up_for(engine, data, parity):
    check_losses(engine, data, parity, list(combinations(range(data + parity), parity)))


@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("data", [7, 8])
def test_every_loss_of_four_is_made_up_for(engine, data, part):
    check_losses(engine, data, 4, list(combinations(range(data + 4), 4))[part::5])


def check_losses(engine, data, parity, losses, length=9):
    name = name_for(parity)
    stripe = chunks(data, length)
    stripe += combined(engine, rows(name, data, parity), stripe, length)
    assert stripe[data:] == reference(rows(name, data, parity), stripe[:data], length)
    for lost in losses:
        present = [i for i in range(data + parity) if i not in lost]
        found = decode_rows(name, data, parity, present, lost)
        assert combined(engine, found, [stripe[p] for p in present], length) == [stripe[w] for w in lost]


def test_every_coefficient(engine):
    source = bytes(range(256))
    for c in range(256):
        assert combined(engine, [(c,)], [source], 256) == [TABLES[c]]


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(0, 5), st.integers(0, 6), st.integers(0, 300), st.integers(0, 2**32))
@pytest.mark.parametrize("name", ENGINES)
def test_any_rows_over_any_buffers(name, data, outputs, inputs, length, seed):
    try:
        engine = load(name)
    except CodecUnsupported as missing:
        pytest.skip(str(missing))
    coefficients = [data.draw(st.lists(st.integers(0, 255), min_size=inputs, max_size=inputs)) for _ in range(outputs)]
    sources = chunks(inputs, length, seed)
    assert combined(engine, coefficients, sources, length) == reference(coefficients, sources, length)


@pytest.mark.parametrize("length", [*LENGTHS, LONG])
def test_any_length_and_alignment_and_not_a_byte_beyond(engine, length):
    coefficients = [(1, 1, 1), (1, 2, 4), (9, 0, 200)]
    for offset in (0, 1, 7) if length < LONG else (3,):
        room = [bytearray(offset + i) + bytearray(c) for i, c in enumerate(chunks(3, length))]
        sources = [memoryview(r)[offset + i :] for i, r in enumerate(room)]
        outs = [bytearray(b"\x5a" * (length + 80)) for _ in coefficients]
        parts = [memoryview(o)[offset + i : offset + i + length] for i, o in enumerate(outs)]
        engine.combine(coefficients, sources, parts)
        assert [bytes(p) for p in parts] == reference(coefficients, sources, length)
        for i, out in enumerate(outs):
            assert set(out[: offset + i] + out[offset + i + length :]) == {0x5A}


@pytest.mark.parametrize("length", [*LENGTHS, LONG])
@pytest.mark.parametrize("row", [(1, 1), (1, 2), (1, 0), (1, 200), (0, 1), (7, 1), (0, 0)])
def test_a_chunk_is_added_in_place(engine, row, length):
    total, chunk = chunks(2, length)
    grown = bytearray(total)
    engine.combine([row], [grown, chunk], [memoryview(grown)])
    assert [bytes(grown)] == reference([row], [total, chunk], length)


@pytest.mark.parametrize("length", [1, 33, 1000, LONG])
def test_several_chunks_are_added_to_what_is_not_the_first_source(engine, length):
    sources = chunks(4, length)
    for row in [(3, 1, 1, 5), (1, 1, 1, 1), (3, 5, 0, 1)]:
        held = [bytearray(s) for s in sources]
        engine.combine([row], held, [memoryview(held[1])])
        assert [bytes(held[1])] == reference([row], sources, length)


@pytest.mark.parametrize("length", [1, 33, 1000, LONG])
def test_several_sources_are_overwritten_by_what_all_of_them_give(engine, length):
    coefficients = [(1, 1, 1), (0, 3, 7)]
    sources = chunks(3, length)
    held = [bytearray(s) for s in sources]
    engine.combine(coefficients, held, [memoryview(held[1]), memoryview(held[0])])
    assert [bytes(held[1]), bytes(held[0])] == reference(coefficients, sources, length)
    assert bytes(held[2]) == sources[2]


def test_no_sources_give_zeros_and_no_rows_give_nothing(engine):
    out = bytearray(b"x" * 65)
    engine.combine([()], [], [memoryview(out)])
    assert out == bytes(65)
    engine.combine([], [b"abc"], [])
    engine.combine([], [], [])


def test_empty_buffers(engine):
    assert combined(engine, [(1, 3)], [b"", bytearray()], 0) == [b""]


@pytest.mark.parametrize(
    ("coefficients", "sources"),
    [
        ([(1,)], [b"long"]),
        ([(256,)], [b"xx"]),
        ([(-1,)], [b"xx"]),
        ([(1, 1)], [b"xx"]),
        ([], [b"xx"]),
        ([(1,)], [memoryview(b"x x ")[::2]]),
    ],
)
def test_buffers_and_coefficients_that_do_not_fit_are_refused(engine, coefficients, sources):
    out = bytearray(b"zz")
    with pytest.raises((ValueError, BufferError, TypeError)):
        engine.combine(coefficients, sources, [memoryview(out)])
    assert out == b"zz"


@pytest.mark.parametrize("coefficient", [1, 2])
def test_a_destination_that_is_read_only_is_refused(engine, coefficient):
    fixed = b"zz"
    with pytest.raises(ValueError, match="read-only"):
        engine.combine([(coefficient,)], [b"ab"], [memoryview(fixed)])
    assert fixed == b"zz"


def test_nothing_is_allocated_that_grows_with_the_data(engine):
    length = 8 * PIECE_BYTES
    sources = [bytes(length), bytearray(length)]
    outs = [memoryview(bytearray(length)) for _ in range(2)]
    tracemalloc.start()
    try:
        engine.combine([(1, 1), (1, 2)], sources, outs)
        engine.combine([(1, 2)], [outs[0], sources[0]], outs[:1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * PIECE_BYTES


def test_two_threads_do_not_disturb_each_other(engine):
    coefficients = [(7, 9), (1, 2)]
    inputs = [chunks(2, LONG, seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda sources: combined(engine, coefficients, sources, LONG), inputs))
    assert found == [reference(coefficients, sources, LONG) for sources in inputs]
