"""The conformance suite of ``Codec``; every codec runs it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain_snapshot.codec import codec_for
from ftrain_snapshot.codec.xor import PIECE_BYTES, XorCodec
from ftrain_snapshot.errors import CodecUnsupported

CODECS = [XorCodec()]


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_any_lost_chunk_is_the_combination_of_the_others(codec, data, length, seed):
    chunks = [bytearray(np.random.default_rng([seed, i]).bytes(length)) for i in range(data)]
    parity = bytearray(length)
    codec.combine(codec.rows(data), chunks, [memoryview(parity)])
    for lost in range(data):
        rebuilt = bytearray(length)
        others = [c for i, c in enumerate(chunks) if i != lost] + [parity]
        codec.combine([(1,) * len(others)], others, [memoryview(rebuilt)])
        assert rebuilt == chunks[lost]


@pytest.mark.parametrize("codec", CODECS)
def test_a_destination_may_be_a_source_so_that_parity_grows_chunk_by_chunk(codec):
    length = PIECE_BYTES + 8
    first, second = (bytearray(np.random.default_rng(i).bytes(length)) for i in range(2))
    whole, grown = bytearray(length), bytearray(first)
    codec.combine([(1, 1)], [first, second], [memoryview(whole)])
    codec.combine([(1, 1)], [grown, second], [memoryview(grown)])
    assert grown == whole


@pytest.mark.parametrize("codec", CODECS)
def test_no_sources_give_zeros_and_coefficient_zero_leaves_out(codec):
    out = bytearray(b"x" * 16)
    codec.combine([()], [], [memoryview(out)])
    assert out == bytes(16)
    codec.combine([(0, 1)], [b"a" * 16, b"b" * 16], [memoryview(out)])
    assert out == b"b" * 16


@pytest.mark.parametrize(
    ("rows", "sources"), [([(1,)], [b"long"]), ([(2,)], [b"xx"]), ([(1, 1)], [b"xx"]), ([], [b"xx"])]
)
def test_buffers_and_coefficients_that_do_not_fit_are_refused(rows, sources):
    with pytest.raises(ValueError):
        XorCodec().combine(rows, sources, [memoryview(bytearray(2))])


def test_more_parity_than_any_codec_computes_is_refused():
    assert codec_for(1).parity == 1
    with pytest.raises(CodecUnsupported, match="--parity 1"):
        codec_for(2)
