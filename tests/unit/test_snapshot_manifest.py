"""Headers and descriptors: whatever changes, they tell."""

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain_snapshot.errors import ChecksumMismatch, ProtocolError
from ftrain_snapshot.manifest import (
    CHUNK_BYTES,
    HEADER_BYTES,
    Catalog,
    Header,
    ParityDescriptor,
    State,
    UnitDescriptor,
    chunk_bytes,
    chunk_count,
    decode_record,
    encode_record,
    read_header,
    sum_at,
    write_header,
    write_state,
)
from ftrain_snapshot.words import SnapshotId

ID = SnapshotId(3, 2, 1)
REFERENCE = SnapshotId(2, 2, 0)


def page_of(header: Header, state: State = State.SEALED) -> memoryview:
    page = memoryview(bytearray(HEADER_BYTES))
    write_header(page, header)
    write_state(page, state)
    return page


@given(st.integers(0, 2**40), st.integers(0, 2**20), st.integers(0, 2**64 - 1))
def test_a_header_reads_as_written(data_bytes, manifest_bytes, digest):
    header = Header(ID, 1, 4, data_bytes, manifest_bytes, digest, 99, REFERENCE)
    assert read_header(page_of(header)) == (State.SEALED, header)
    assert header.unit_bytes % 64 == 0
    assert header.unit_bytes >= header.manifest_offset + manifest_bytes >= data_bytes + manifest_bytes
    assert header.chunks == chunk_count(header.unit_bytes)


@given(st.integers(0, 191), st.integers(1, 255))
def test_a_damaged_header_is_never_sealed_as_something_else(at, flip):
    header = Header(ID, 1, 4, 1000, 10, 5, 99, REFERENCE)
    page = page_of(header)
    page[at] ^= flip
    state, found = read_header(page)
    assert found in (None, header)
    assert state is not State.SEALED or found == header


def test_an_untouched_page_is_empty():
    assert read_header(memoryview(bytes(HEADER_BYTES))) == (State.EMPTY, None)


@given(st.integers(0, 3 * CHUNK_BYTES))
def test_chunks_cover_the_bytes(length):
    sizes = [chunk_bytes(length, chunk) for chunk in range(chunk_count(length))]
    assert sum(sizes) == length
    assert all(sizes)
    assert chunk_bytes(length, chunk_count(length)) == 0


def test_a_packed_row_of_checksums_is_read_one_by_one():
    sums = struct.pack("<3Q", 1, 2**64 - 1, 7)
    assert [sum_at(sums, chunk) for chunk in range(3)] == [1, 2**64 - 1, 7]


def test_a_catalog_keeps_one_descriptor_for_each_unit_and_each_parity():
    catalog = Catalog(ID, 1, [], [])
    for position, length in ((0, 64), (1, 64), (0, 128)):
        catalog.put(UnitDescriptor(position, 0, Header(ID, 0, 1, length, 0, 0, 0), b""))
        catalog.put_parity(ParityDescriptor(0, position, "xor", length, b"", b""))
    assert len(catalog.units) == len(catalog.parity) == 2
    found, parity = catalog.unit(0, 0), catalog.parity_of(0, 0)
    assert found is not None
    assert parity is not None
    assert (found.header.unit_bytes, found.snapshot, parity.parity_bytes) == (128, ID, 128)
    assert catalog.unit(2, 0) is None
    assert catalog.parity_of(1, 0) is None


@given(st.integers(0, 200))
def test_a_page_that_was_cut_short_holds_nothing_or_all(length):
    page = page_of(Header(ID, 0, 4, 5000, 70, 11, 12, REFERENCE))
    assert read_header(page[:length]) in ((State.EMPTY, None), read_header(page))
    assert read_header(page[:64]) == (State.EMPTY, None)


@given(st.data())
def test_a_record_is_what_was_written_or_an_error(data):
    decoder = msgspec.msgpack.Decoder(Catalog)
    catalog = Catalog(ID, 2, [UnitDescriptor(1, 0, Header(ID, 0, 4, 5000, 70, 11, 12), bytes(8))], [])
    kept = bytearray(encode_record(catalog))
    assert decode_record(bytes(kept), decoder) == catalog
    kept[data.draw(st.integers(0, len(kept) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(kept), encode_record(catalog)[: data.draw(st.integers(0, len(kept) - 1))]):
        with pytest.raises(ChecksumMismatch):
            decode_record(damaged, decoder)
    with pytest.raises(ProtocolError):
        decode_record(encode_record(ID), decoder)
