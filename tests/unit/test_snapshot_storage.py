"""The durable tier's folders: names, which checkpoints exist, which may go, and claims; on storage made of memory."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator

import fsspec
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain_snapshot.storage import (
    CLOCK_SKEW_SECONDS,
    LIST_MAX,
    Claim,
    Folder,
    Storage,
    StorageError,
    data_name,
    folder_name,
    newest,
    part_name,
    part_of,
    step_of,
    surplus,
)

NOW = 1e9
DONE = Claim("attempt", 0, 0.0, 0.0)

folders = st.lists(
    st.builds(
        Folder, st.integers(0, 40), st.booleans(), st.sampled_from([0.0, NOW, NOW - 2 * CLOCK_SKEW_SECONDS, 2e9])
    ),
    unique_by=lambda folder: folder.step,
)


@pytest.fixture
def url() -> Iterator[str]:
    name = f"memory://{uuid.uuid4().hex}/checkpoints"
    yield name
    fs = fsspec.filesystem("memory")
    fs.rm(name.removeprefix("memory:/").rpartition("/")[0], recursive=True) if fs.exists(name) else None


def put(url: str, step: int, *, complete: bool = True, claim: Claim | None = DONE) -> Storage:
    storage = Storage(url)
    if claim is not None:
        number = storage.claim(step, claim)
        storage.write(step, data_name(claim.position, number), b"data")
    if complete:
        storage.write(step, ".metadata", b"metadata")
    return storage


@given(st.integers(0, 10**17))
def test_a_step_names_its_folder_and_back(step: int) -> None:
    assert step_of(folder_name(step)) == step


@pytest.mark.parametrize(
    "name", ["step-1", "step-000000001", "step-0000000x", "step-00000001.old", "step--0000001", "Step-00000001", "",
             "step-" + "9" * 19, "step-٠٠٠٠٠٠٠١"],
)  # fmt: skip
def test_other_names_are_no_checkpoints(name: str) -> None:
    assert step_of(name) is None


def test_parts_and_data_files_are_told_apart() -> None:
    assert part_of(part_name(12, 3)) == (12, 3)
    assert data_name(12, 3) == "__12_3.distcp"
    for name in (
        "ftrain.part1",
        "ftrain.part1.x",
        "ftrain.part.1.2",
        "ftrain.part1.2.tmp",
        ".metadata",
        "__0_0.distcp",
    ):
        assert part_of(name) is None


@settings(max_examples=60, deadline=None)
@given(folders, st.integers(-1, 4))
def test_retention_never_takes_what_is_needed_or_being_written(folders: list[Folder], keep: int) -> None:
    gone = surplus(folders, keep, NOW)
    complete = sorted(folder.step for folder in folders if folder.complete)
    by_step = {folder.step: folder for folder in folders}
    assert not set(gone) & set(complete[-max(1, keep) :])
    assert all(by_step[step].busy_until < NOW for step in gone)
    assert all(step < complete[-1] for step in gone)
    idle = {folder.step for folder in folders if folder.busy_until == 0.0}
    wanted = set(complete[: -max(1, keep)]) | {f.step for f in folders if not f.complete and complete[-1:] > [f.step]}
    assert set(gone) >= wanted & idle


def test_nothing_goes_while_nothing_is_complete() -> None:
    assert surplus([Folder(1, False, 0.0), Folder(2, False, 0.0)], 1, NOW) == []


def test_checkpoints_are_listed_newest_first(url: str) -> None:
    for step in (3, 20, 100_000_001):
        put(url, step)
    found = Storage(url).checkpoints()
    assert [each.step for each in found] == [100_000_001, 20, 3]
    assert found[1].path == f"memory://{url.removeprefix('memory:/')}/step-00000020"
    assert newest(url) == found[0]
    assert [each.step for each in Storage(url).checkpoints(2)] == [100_000_001, 20]


def test_what_is_not_complete_or_not_ours_is_not_listed(url: str) -> None:
    storage = put(url, 1)
    put(url, 2, complete=False)
    put(url, 3, claim=None)
    fsspec.filesystem("memory").pipe_file(f"{url}/step-00000004", b"a file")
    fsspec.filesystem("memory").pipe_file(f"{url}/step-x/.metadata", b"junk")
    assert [each.step for each in storage.checkpoints()] == [1]


def test_a_url_where_nothing_is_holds_nothing(url: str) -> None:
    assert newest(url) is None
    assert Storage(url).retire(2, NOW) == []


def test_listing_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(url)
    monkeypatch.setattr(storage, "_list", lambda folder: [folder_name(step) for step in range(5 * LIST_MAX)])
    looked: list[int] = []
    monkeypatch.setattr(storage, "names", lambda step: looked.append(step) or frozenset())
    assert storage.checkpoints() == []
    assert len(looked) == LIST_MAX
    assert looked[0] == 5 * LIST_MAX - 1


def test_each_attempt_has_a_number_of_its_own(url: str) -> None:
    storage = Storage(url)
    assert [storage.claim(5, Claim(name, 2, 0.0, NOW)) for name in "abc"] == [0, 1, 2]
    assert storage.claim(5, Claim("a", 1, 0.0, NOW)) == 0
    assert storage.names(5) == {part_name(2, 0), part_name(2, 1), part_name(2, 2), part_name(1, 0)}


def test_retention_removes_what_is_surplus(url: str) -> None:
    for step in (1, 2, 3, 4):
        put(url, step)
    put(url, 0, claim=None)  # somebody else's
    assert Storage(url).retire(2, NOW) == [1, 2]
    assert [each.step for each in Storage(url).checkpoints()] == [4, 3]
    assert Storage(url).names(1) == frozenset()
    assert Storage(url).names(0) == {".metadata"}


def test_retention_leaves_what_a_running_writer_claims(url: str) -> None:
    put(url, 1, claim=Claim("other job", 0, NOW, NOW + 60))
    put(url, 2, complete=False, claim=Claim("other job", 3, NOW, NOW + 60))
    put(url, 3)
    assert Storage(url).retire(1, NOW) == []
    assert Storage(url).retire(1, NOW + 60 + CLOCK_SKEW_SECONDS) == []
    assert Storage(url).retire(1, NOW + 61 + CLOCK_SKEW_SECONDS) == [1, 2]


def test_metadata_goes_first(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle, retention leaves no checkpoint that looks whole and is not; the next one goes on."""
    put(url, 1)
    storage = put(url, 2)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(storage._fs, "rm", fail)
        with pytest.raises(StorageError, match="pulled the plug"):
            storage.retire(1, NOW)
    assert [each.step for each in Storage(url).checkpoints()] == [2]
    assert Storage(url).names(1)
    assert Storage(url).retire(1, NOW) == [1]


def test_a_claim_that_was_cut_short_is_as_old_as_its_file(url: str) -> None:
    storage = put(url, 5)
    storage.write(2, part_name(0, 0), b'{"wri')
    assert storage.retire(2, time.time()) == []
    assert storage.retire(2, time.time() + CLOCK_SKEW_SECONDS + 60) == [2]


def test_a_part_record_reads_as_the_claim_that_it_began_as(url: str) -> None:
    storage = put(url, 5)
    record = msgspec.json.encode({"writer": "a", "position": 0, "started": 1, "expires": NOW, "items": [1, 2], "x": {}})
    storage.write(2, part_name(0, 0), record)
    assert storage.retire(2, NOW) == []


def test_small_files_replace_each_other_whole(url: str) -> None:
    storage = Storage(url)
    storage.write(1, ".metadata", b"first")
    storage.write(1, ".metadata", b"second")
    assert storage.read(1, ".metadata") == b"second"
    assert storage.names(1) == {".metadata"}


def test_a_stream_counts_and_sums_between_marks(url: str) -> None:
    storage = Storage(url)
    with storage.stream(1, "data") as stream:
        stream.write(b"abc")
        assert stream.mark()[:2] == (0, 3)
        stream.write(memoryview(b"defg"))
        offset, length, first, _ = stream.mark()
        stream.write(b"defg")
        assert stream.mark()[2] == first
    assert (offset, length, stream.length) == (3, 4, 11)
    assert storage.read(1, "data", 3, 7) == b"defg"
    assert storage.size(1, "data") == 11


def test_what_a_driver_raises_is_one_line_with_the_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(url)

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("403 Forbidden:\n  no such\n  key")

    monkeypatch.setattr(storage._fs, "open", fail)
    with pytest.raises(StorageError) as error:
        storage.write(1, "file", b"")
    assert str(error.value) == f"--durable {url}: 403 Forbidden: no such key"
    with pytest.raises(StorageError, match="step-00000009/none"):
        Storage(url).read(9, "none")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nosuch://x", "--durable nosuch://x: Protocol not known: nosuch"),
        ("oss://bucket/x", "--durable oss://bucket/x: install ossfs to access Alibaba Object Storage System"),
    ],
)
def test_a_url_that_nothing_here_can_open_says_what_to_install(url: str, said: str) -> None:
    with pytest.raises(StorageError) as error:
        Storage(url)
    assert str(error.value) == said


def test_without_fsspec_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(StorageError, match="--durable s3://x: install fsspec"):
        newest("s3://x")
