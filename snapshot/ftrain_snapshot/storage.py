"""The durable tier's folders: which checkpoints a URL holds, which of them may go, and how files get there whole.

A checkpoint is the folder ``URL/step-00000123``. It exists from the moment its ``.metadata`` is there, which is
written last; without one it is half-written, and never listed. Each writer first *claims* its place in the folder with
a small record (``ftrain.part{position}.{number}``) that says until when it may still be writing: the number keeps the
files of two attempts apart, and the time tells a later writer which half-written folders are nobody's any more.
Folders without such a record are somebody else's, and are left alone.

fsspec is imported when a URL is opened, so that a job without durable storage does not need it.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import msgspec
import xxhash

from ftrain_snapshot.errors import SnapshotError

METADATA = ".metadata"
CLOCK_SKEW_SECONDS = 300.0
"""How far the clocks of two hosts may be apart: a claim counts for so long after its end."""
LIST_MAX = 1000
"""Checkpoints looked at under one URL, newest first."""
_STEP = re.compile(r"step-(\d{8,18})")
_PART = re.compile(r"ftrain\.part(\d{1,9})\.(\d{1,9})")
_DRAFT = "ftrain.draft."
_NEVER = float("inf")
BLOCK_BYTES = 4 << 20
"""What is longer has a checksum for each stretch of so many bytes, too: parts of it can be proved."""


class StorageError(SnapshotError):
    """The durable storage cannot be used, or refused something; the message names the URL and says why."""


class DurableId(NamedTuple):
    """A complete checkpoint."""

    step: int
    path: str
    """What ``torch.distributed.checkpoint.load(checkpoint_id=...)`` takes."""
    ranks: int = 0
    """How many ranks wrote it; 0: not looked up."""


class Claim(msgspec.Struct, frozen=True):
    """The first words of a part record: who writes here, and until when."""

    writer: str
    """The attempt: the same on all nodes of one snapshot, and on no other."""
    position: int
    started: float
    """Unix time in seconds."""
    expires: float
    """Unix time by which the writer has ended for certain; 0: it has."""
    ranks: int = 0
    """How many ranks the job has."""


class Folder(NamedTuple):
    """One step's folder, as retention sees it."""

    step: int
    complete: bool
    busy_until: float
    """Unix time after which nobody can be writing there."""


def surplus(folders: Iterable[Folder], keep: int, now: float) -> list[int]:
    """The steps whose folders may go: complete ones beyond the newest ``keep``, half-written ones that are older
    than the newest complete one; never the newest complete one, and none that somebody may still be writing."""
    folders = sorted(folders, reverse=True)
    complete = [folder for folder in folders if folder.complete]
    if not complete:
        return []
    half = [folder for folder in folders if not folder.complete and folder.step < complete[0].step]
    gone = complete[max(1, keep) :] + half
    return sorted(folder.step for folder in gone if now > folder.busy_until + CLOCK_SKEW_SECONDS)


def folder_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The way back; None for any other name."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found and folder_name(int(found[1])) == name else None


def part_name(position: int, number: int) -> str:
    """The record of a writer: the claim first, then what it wrote."""
    return f"ftrain.part{position}.{number}"


def data_name(position: int, number: int) -> str:
    """The data file of a writer, named as DCP names them."""
    return f"__{position}_{number}.distcp"


def part_of(name: str) -> tuple[int, int] | None:
    """(position, number) of a part record's name; None for any other name."""
    found = _PART.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def newest(url: str, below: int | None = None) -> DurableId | None:
    """The newest complete checkpoint under ``url``, ``below`` a step. Needs no torch. Raises StorageError."""
    storage = Storage(url)
    found = next(iter(storage.checkpoints(1, below)), None)
    return None if found is None else found._replace(ranks=storage.ranks(found.step))


class Marked(NamedTuple):
    """What was written between two marks."""

    offset: int
    length: int
    sum: int
    """xxh3 of all of it."""
    blocks: tuple[int, ...]
    """The same of each BLOCK_BYTES of it; none if it is no longer than one."""


class Stream:
    """A file that is being written: counts, and makes checksums of each stretch between two marks."""

    def __init__(self, file: Any, url: str) -> None:
        self.length = 0
        self.failure: StorageError | None = None
        """Why nothing more can be written."""
        self._file, self._url = file, url
        self._begin()

    def _begin(self) -> None:
        self._start, self._sum = self.length, xxhash.xxh3_64()
        self._block, self._blocks = xxhash.xxh3_64(), list[int]()

    def write(self, data: bytes | memoryview) -> int:
        """Append. Raises StorageError."""
        try:
            with _said(self._url):
                self._file.write(data)
        except StorageError as error:
            self.failure = error
            raise
        self._sum.update(data)
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            room = BLOCK_BYTES - (self.length - self._start) % BLOCK_BYTES
            piece = view[done : done + room]
            self._block.update(piece)
            done, self.length = done + len(piece), self.length + len(piece)
            if len(piece) == room:
                self._blocks.append(self._block.intdigest())
                self._block = xxhash.xxh3_64()
        return len(view)

    def flush(self) -> None:
        """Nothing: what is written counts once the file is closed."""

    def mark(self) -> Marked:
        """What was written since the last mark."""
        length, blocks = self.length - self._start, self._blocks
        if length % BLOCK_BYTES:
            blocks.append(self._block.intdigest())
        done = Marked(self._start, length, self._sum.intdigest(), tuple(blocks) if len(blocks) > 1 else ())
        self._begin()
        return done


class Storage:
    """The checkpoints under one URL: anything that fsspec knows. Every method raises StorageError."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise StorageError(f"--durable {url}: install fsspec") from None
        try:
            # Not the instance that others share: its listings would be cached.
            self._fs, root = url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            text = str(error)
            raise StorageError(f"--durable {url}: {text[:1].lower()}{text[1:]}") from None
        except Exception as error:  # drivers raise what they like
            raise StorageError(f"--durable {url}: {_line(error)}") from error
        self._root = str(root).rstrip("/")
        self._protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self._local = "file" in self._protocols

    # What there is.

    def checkpoints(self, count: int = LIST_MAX, below: int | None = None) -> list[DurableId]:
        """The newest ``count`` complete checkpoints, newest first; ``below``: of earlier steps only."""
        found: list[DurableId] = []
        for step in self._steps():
            if len(found) >= count:
                break
            if (below is None or step < below) and _is_complete(self.names(step)):
                found.append(DurableId(step, self.path(step)))
        return found

    def ranks(self, step: int) -> int:
        """How many ranks wrote a checkpoint, as its first position says; 0: it says nothing that can be read."""
        found = 0
        for name in sorted(self.names(step)):
            if (part_of(name) or (-1, 0))[0] == 0:
                with suppress(StorageError, msgspec.DecodeError):
                    found = msgspec.json.decode(self.read(step, name), type=Claim).ranks or found
        return found

    def path(self, step: int) -> str:
        """The folder as DCP and people name it."""
        folder = self._at(step)
        return folder if self._local else str(self._fs.unstrip_protocol(folder))

    def names(self, step: int) -> frozenset[str]:
        """The files in a step's folder; none if it is not there."""
        return frozenset(self._list(self._at(step)))

    def read(self, step: int, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """A file's bytes, or some of them."""
        with _said(self.url):
            return bytes(self._fs.cat_file(self._at(step, name), start, stop))

    def size(self, step: int, name: str) -> int:
        """A file's length in bytes."""
        with _said(self.url):
            return int(self._fs.size(self._at(step, name)) or 0)

    # Writing.

    def probe(self) -> None:
        """Leave a small file and take it away again: whether checkpoints can be written here."""
        if "memory" in self._protocols:
            raise StorageError(f"--durable {self.url}: that is the memory of one process, which ends with it")
        path = f"{self._root}/{_DRAFT}probe.{socket.gethostname()}.{os.getpid()}"
        with _said(self.url):
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(path, b"ftrain")
            self._fs.rm_file(path)

    def claim(self, step: int, claim: Claim) -> int:
        """Take a place in the step's folder: the number of this writer's files, which nobody else has."""
        record = msgspec.json.encode(claim)
        with _said(self.url):
            self._fs.makedirs(self._at(step), exist_ok=True)
            if self._local:
                _sync_folder(self._root)
            for number in range(LIST_MAX):
                if self._create(self._at(step, part_name(claim.position, number)), record):
                    return number
        raise StorageError(f"--durable {self.url}: {folder_name(step)} was begun {LIST_MAX} times and never finished")

    def write(self, step: int, name: str, data: bytes) -> None:
        """A small file, whole or not at all, in place of one that was there."""
        draft = f"{_DRAFT}{name.strip('.')}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            with self.stream(step, draft) as stream:
                stream.write(data)
        except StorageError:
            with suppress(StorageError):
                self.remove(step, [draft])
            raise
        with _said(self.url):
            self._fs.mv(self._at(step, draft), self._at(step, name))
            if self._local:
                _sync_folder(self._at(step))

    @contextmanager
    def stream(self, step: int, name: str) -> Iterator[Stream]:
        """A file to append to; on disk when the context ends."""
        with _said(self.url):
            file = self._fs.open(self._at(step, name), "wb")
        try:
            yield Stream(file, self.url)
            with _said(self.url):
                if self._local:
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException:
            with suppress(Exception):  # what matters is why
                file.close()
            raise
        with _said(self.url):
            file.close()

    def remove(self, step: int, names: Iterable[str]) -> None:
        """Delete files that are there no longer needed; one that is gone is no error."""
        for name in names:
            with _said(self.url), suppress(FileNotFoundError):
                self._fs.rm_file(self._at(step, name))

    # Retention.

    def retire(self, keep: int, now: float) -> list[int]:
        """Remove what `surplus` names, each time ``.metadata`` first; the steps that went."""
        gone = surplus([folder for step in self._steps() if (folder := self._folder(step))], keep, now)
        for step in gone:
            self.remove(step, [METADATA])
            with _said(self.url), suppress(FileNotFoundError):
                self._fs.rm(self._at(step), recursive=True)
        return gone

    def _folder(self, step: int) -> Folder | None:
        names = self.names(step)
        parts = [name for name in names if part_of(name)]
        if not parts:
            return None
        return Folder(step, METADATA in names, max(self._claimed_until(step, name) for name in parts))

    def _claimed_until(self, step: int, name: str) -> float:
        try:
            return msgspec.json.decode(self.read(step, name), type=Claim).expires
        except (StorageError, msgspec.DecodeError):
            pass
        try:  # its writer was killed while it was claiming: as old as the file
            return float(self._fs.modified(self._at(step, name)).timestamp())
        except FileNotFoundError:
            return 0.0
        except Exception:  # not every driver knows
            return _NEVER

    def _steps(self) -> list[int]:
        found = {step for name in self._list(self._root) if (step := step_of(name)) is not None}
        return sorted(found, reverse=True)[:LIST_MAX]

    def _list(self, folder: str) -> list[str]:
        with _said(self.url), suppress(FileNotFoundError, NotADirectoryError):
            return [str(entry).rstrip("/").rpartition("/")[2] for entry in self._fs.ls(folder, detail=False)]
        return []

    def _create(self, path: str, data: bytes) -> bool:
        if self._fs.exists(path):
            return False
        try:
            with self._fs.open(path, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        except (ValueError, NotImplementedError):  # this storage cannot tell; the file was not there a moment ago
            with self._fs.open(path, "wb") as file:
                file.write(data)
        return True

    def _at(self, step: int, name: str | None = None) -> str:
        folder = f"{self._root}/{folder_name(step)}"
        return folder if name is None else f"{folder}/{name}"


def _is_complete(names: frozenset[str]) -> bool:
    return METADATA in names and any(part_of(name) for name in names)


@contextmanager
def _said(url: str) -> Iterator[None]:
    """Whatever a driver raises (boto's errors, HTTP's, the system's) becomes one line that names the URL."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(f"--durable {url}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
