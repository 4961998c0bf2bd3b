"""What a durable URL holds, asked in a process of its own, which can be killed: storage may not answer for minutes.

    python -m ftrain_snapshot.search URL [--probe] [--below STEP]

prints the newest complete checkpoint (of an earlier step than STEP) as JSON, ``[step, path, ranks]`` or ``null``;
``--probe`` first sees whether one can be written there. Exit code 1, and one line on stderr, if the storage refuses.
"""

from __future__ import annotations

import argparse
import sys

import msgspec

from ftrain_snapshot.storage import Storage, StorageError, newest


def main() -> int:
    """Look."""
    parser = argparse.ArgumentParser(prog="python -m ftrain_snapshot.search", description="Look what is on storage.")
    parser.add_argument("url")
    parser.add_argument("--probe", action="store_true", help="see whether it can be written to")
    parser.add_argument("--below", type=int, metavar="STEP", help="count earlier ones only")
    given = parser.parse_args()
    try:
        if given.probe:
            Storage(given.url).probe()
        found = newest(given.url, given.below)
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1
    print(msgspec.json.encode(found).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
