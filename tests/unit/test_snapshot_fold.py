"""Fold: chunks of several sources, in any interleaving, sum up to the same bytes; damage and gaps never enter."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain_snapshot.codec.xor import XorCodec
from ftrain_snapshot.errors import ChecksumMismatch, ProtocolError
from ftrain_snapshot.fold import Fold
from ftrain_snapshot.manifest import CHUNK_BYTES, checksum, chunk_spans


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([0, 64, 1000, CHUNK_BYTES, CHUNK_BYTES + 640]), min_size=1, max_size=3), st.randoms())
def test_any_interleaving_of_unequal_sources_gives_their_sum(lengths, random):
    sources = [Random(i).randbytes(length) for i, length in enumerate(lengths)]
    chunks = [[(i, o, memoryview(s)[o : o + n]) for o, n in chunk_spans(len(s))] for i, s in enumerate(sources)]
    longest = max(lengths)
    destination = memoryview(bytearray(b"\xff" * longest))
    fold = Fold(XorCodec())
    while waiting := [c for c in chunks if c]:
        source, offset, body = random.choice(waiting).pop(0)
        assert not fold.is_complete(dict(enumerate(lengths)))
        for _ in range(random.choice([1, 1, 2])):  # a repeated chunk changes nothing
            fold.add(source, offset, body, checksum(body), destination)
    assert fold.is_complete(dict(enumerate(lengths)))
    expected = 0
    for source in sources:
        expected ^= int.from_bytes(source.ljust(longest, b"\0"), "little")
    assert bytes(destination) == expected.to_bytes(longest, "little")


def test_padding_beyond_the_destination_is_cut_off():
    destination = memoryview(bytearray(64))
    body = memoryview(Random(1).randbytes(128))
    Fold(XorCodec()).add(0, 0, body, checksum(body), destination)
    assert destination == body[:64]


def test_damaged_bytes_and_gaps_do_not_enter():
    destination = memoryview(bytearray(64))
    fold = Fold(XorCodec())
    with pytest.raises(ChecksumMismatch):
        fold.add(0, 0, memoryview(b"x" * 64), 1, destination)
    with pytest.raises(ProtocolError):
        fold.add(0, CHUNK_BYTES, memoryview(b"x" * 64), checksum(b"x" * 64), destination)
    assert destination == bytes(64)
    assert not fold.is_complete({0: 64})
