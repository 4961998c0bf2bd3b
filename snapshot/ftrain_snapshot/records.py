"""Small files in which a daemon notes what a later one of its node must know, each with its checksum.

This daemon does not need them. So where memory is full, a record goes into the room of the old one, or is not kept.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ftrain_snapshot.errors import SnapshotError
from ftrain_snapshot.log import log
from ftrain_snapshot.manifest import Record, decode_record, encode_record


def keep(path: Path, record: msgspec.Struct) -> None:
    """Write it, whole or not at all. Never raises for want of memory: then there is none, rather than an old one."""
    draft = path.with_name(path.name + ".new")
    for last in (False, True):
        try:
            draft.write_bytes(encode_record(record))
            draft.rename(path)
            return
        except OSError as error:
            for file in (draft, path):
                file.unlink(missing_ok=True)
            if last:
                log("record_not_kept", file=path.name, reason=error)


def kept(path: Path, decoder: msgspec.msgpack.Decoder[Record]) -> Record | None:
    """What is in such a file; None if there is none, or it is damaged: then what it said is found out anew."""
    try:
        return decode_record(path.read_bytes(), decoder)
    except FileNotFoundError:
        return None
    except (OSError, SnapshotError) as error:
        log("record_damaged", file=path.name, reason=error)
        return None
