"""Fold: any order, each chunk once, shorter ones as if zeros followed, damaged ones not at all."""

from random import Random

import pytest

from ftrain_snapshot.codec import codec_for
from ftrain_snapshot.errors import ChecksumMismatch
from ftrain_snapshot.fold import Fold
from ftrain_snapshot.manifest import checksum

LENGTHS = (1000, 64, 700)


def chunks(seed):
    return [Random(seed + i).randbytes(length) for i, length in enumerate(LENGTHS)]


def padded(data):
    return data + bytes(max(LENGTHS) - len(data))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("parity", [1, 2, 3])
def test_what_comes_in_any_order_is_the_row_of_the_generator(order, parity):
    codec, sources = codec_for(parity, "numpy"), chunks(7)
    for row in codec.rows(len(sources)):
        expected = memoryview(bytearray(max(LENGTHS)))
        codec.combine((row,), [padded(s) for s in sources], (expected,))
        destination = memoryview(bytearray(b"\xff" * 1024))
        fold = Fold(codec)
        for column in order:
            body = memoryview(sources[column])
            assert fold.add(column, row[column], 5, body, checksum(body), destination)
        assert fold.came(5) == 0b111
        assert fold.sum(5) == checksum(expected)
        assert destination[: max(LENGTHS)] == expected
        assert not any(destination[max(LENGTHS) :])


def test_a_chunk_that_comes_twice_counts_once_and_stripes_are_apart():
    fold = Fold(codec_for(1, "numpy"))
    body, places = memoryview(b"a" * 64), [memoryview(bytearray(64)) for _ in range(2)]
    assert fold.add(0, 1, 0, body, checksum(body), places[0])
    assert not fold.add(0, 1, 0, body, checksum(body), places[0])
    assert fold.add(0, 1, 9, body, checksum(body), places[1])
    assert bytes(places[0]) == bytes(places[1]) == bytes(body)
    assert (fold.came(0), fold.came(1), fold.came(9)) == (1, 0, 1)


def test_a_damaged_chunk_leaves_the_stripe_as_it_was_and_may_come_again():
    fold = Fold(codec_for(1, "numpy"))
    body, place = memoryview(b"a" * 64), memoryview(bytearray(64))
    with pytest.raises(ChecksumMismatch, match="source 2"):
        fold.add(2, 1, 0, body, checksum(body) ^ 1, place)
    assert not any(place)
    assert fold.add(2, 1, 0, body, checksum(body), place)
    assert bytes(place) == bytes(body)


def test_a_forgotten_stripe_is_written_anew():
    fold = Fold(codec_for(1, "numpy"))
    place = memoryview(bytearray(64))
    for value in (b"a", b"b"):
        body = memoryview(value * 64)
        fold.add(0, 1, 0, body, checksum(body), place)
        fold.forget(0)
    assert bytes(place) == b"b" * 64
    assert fold.came(0) == 0


@pytest.mark.parametrize("coefficient", [1, 7])
def test_a_sum_that_is_damaged_begins_anew(coefficient):
    fold = Fold(codec_for(2, "numpy"))
    bodies, place = [memoryview(bytes([value]) * 64) for value in (1, 2)], memoryview(bytearray(64))
    fold.add(0, coefficient, 3, bodies[0], checksum(bodies[0]), place)
    place[9] ^= 1
    assert fold.add(1, 1, 3, bodies[1], checksum(bodies[1]), place)
    assert fold.came(3) == 0b10
    assert bytes(place) == bytes(bodies[1])
