"""One process of the unit of protect.py: told by a line on stdin, it copies into warm shared memory.

Run as ``protect_copy.py FILE BYTES``; prints the seconds and the processor seconds of each copy, and ends when stdin
does.
"""

from __future__ import annotations

import mmap
import sys
import time

import numpy as np


def main() -> None:
    path, size = sys.argv[1], int(sys.argv[2])
    with open(path, "w+b") as file:
        file.truncate(size)
        into = np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
    source = np.ones(size, np.uint8)
    np.copyto(into, source)
    print("ready", flush=True)
    for _ in sys.stdin:
        start, spent = time.perf_counter(), time.process_time()
        np.copyto(into, source)
        print(time.perf_counter() - start, time.process_time() - spent, flush=True)


if __name__ == "__main__":
    main()
