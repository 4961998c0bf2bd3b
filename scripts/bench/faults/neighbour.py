"""Another user of the machine: computes for a while and rests for a while, at random, until it is ended."""

from __future__ import annotations

import random
import sys
import time

SECONDS_MAX = 1.0


def main() -> None:
    chance = random.Random(int(sys.argv[1]))
    while True:
        end = time.monotonic() + chance.uniform(0, SECONDS_MAX)
        while time.monotonic() < end:
            pass
        time.sleep(chance.uniform(0, SECONDS_MAX))


if __name__ == "__main__":
    main()
