"""Headers and descriptors: whatever changes, they tell."""

from hypothesis import given
from hypothesis import strategies as st

from ftrain_snapshot.manifest import (
    CHUNK_BYTES,
    HEADER_BYTES,
    Catalog,
    Header,
    State,
    UnitDescriptor,
    checksums,
    chunk_spans,
    describe,
    read_header,
    sum_at,
    write_header,
    write_state,
)
from ftrain_snapshot.messages import SnapshotId

ID = SnapshotId(3, 2, 1)


def page_of(header: Header, state: State = State.SEALED) -> memoryview:
    page = memoryview(bytearray(HEADER_BYTES))
    write_header(page, header)
    write_state(page, state)
    return page


@given(st.integers(0, 2**40), st.integers(0, 2**20), st.integers(0, 2**64 - 1))
def test_a_header_reads_as_written(data_bytes, manifest_bytes, digest):
    header = Header(ID, 1, 4, data_bytes, manifest_bytes, digest, 99)
    assert read_header(page_of(header)) == (State.SEALED, header)
    assert header.unit_bytes % 64 == 0
    assert header.unit_bytes >= HEADER_BYTES + data_bytes + manifest_bytes
    assert header.manifest_offset >= data_bytes


@given(st.integers(0, 87), st.integers(1, 255))
def test_a_damaged_header_is_never_sealed_as_something_else(at, flip):
    header = Header(ID, 1, 4, 1000, 10, 5, 99)
    page = page_of(header)
    page[at] ^= flip
    state, found = read_header(page)
    assert found in (None, header)
    assert state is not State.SEALED or found == header


def test_an_untouched_page_is_empty():
    assert read_header(memoryview(bytes(HEADER_BYTES))) == (State.EMPTY, None)


@given(st.integers(0, 3 * CHUNK_BYTES))
def test_chunks_cover_the_bytes(length):
    spans = list(chunk_spans(length))
    assert sum(size for _, size in spans) == length
    assert all(0 < size <= CHUNK_BYTES for _, size in spans)


def test_a_descriptor_tells_in_which_segment_a_byte_changed():
    unit = bytearray(range(256)) * 40
    before = describe(ID, 0, 0, memoryview(unit), 3)
    unit[5000] ^= 1
    after = describe(ID, 0, 0, memoryview(unit), 3)
    assert [a == b for a, b in zip(before.sums, after.sums, strict=True)] == [True, False, True]
    assert sum_at(checksums(memoryview(unit)), 0) != sum_at(checksums(memoryview(unit[:-1])), 0)


def test_a_catalog_keeps_one_descriptor_for_each_unit():
    catalog = Catalog(ID, 1, [], [])
    catalog.put(UnitDescriptor(ID, 0, 0, 64, (b"",)))
    catalog.put(UnitDescriptor(ID, 1, 0, 64, (b"",)))
    catalog.put(UnitDescriptor(ID, 0, 0, 128, (b"",)))
    assert len(catalog.units) == 2
    found = catalog.unit(0, 0)
    assert found is not None
    assert found.unit_bytes == 128
    assert catalog.unit(2, 0) is None
