#!/usr/bin/env python3
"""Let a job train until shortly before a window ends, then flush it: it ends after a whole step, with exit code 0.

scripts/ops/flush_before.py 18:00                      # today, or tomorrow if that is over
scripts/ops/flush_before.py 2026-11-24T06:00 --margin-seconds 300
scripts/ops/flush_before.py +3600                      # in an hour
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from operators import EXIT_USAGE, Failed, Job, main, parser, say, seconds

MARGIN_SECONDS = 120.0
LOOK_SECONDS = 15.0
"""Between two looks whether the job has ended meanwhile."""
ENDED = ("finished", "failed")


def run() -> None:
    made = parser("Let a job train until shortly before a window ends, then flush it.")
    made.add_argument("end", metavar="TIME", help="HH:MM, YYYY-MM-DDTHH:MM (this machine's time), or +SECONDS")
    about = f"the job is flushed so long before, and has that long for it; default {MARGIN_SECONDS:g}"
    made.add_argument("--margin-seconds", type=seconds, default=MARGIN_SECONDS, metavar="S", help=about)
    chosen = made.parse_args()
    left = moment(chosen.end, datetime.now()) - chosen.margin_seconds
    if left < 0:
        raise Failed(f"{chosen.end} is less than --margin-seconds {chosen.margin_seconds:g} away", EXIT_USAGE)
    job = Job(chosen.job)
    begin = time.monotonic() + left
    say(f"{job.name} is flushed in {left:.0f} s, within {chosen.margin_seconds:g} s")
    while (wait := begin - time.monotonic()) > 0:
        if (ended := end_of(job)) is not None:
            say(f"{job.name} has ended by itself: {ended}")
            return
        time.sleep(min(wait, LOOK_SECONDS))
    margin = chosen.margin_seconds
    words = ("flush", "--deadline-seconds", str(margin), "--reason", "the window ends")
    answer = job.ask(*words, timeout_seconds=margin + 60.0, may_fail=True)
    if answer["exit_code"]:
        raise Failed(f"{job.name}: {answer['message']}")
    say(f"{job.name}: {answer['message']}")


def end_of(job: Job) -> str | None:
    """How the job has ended; None: it has not, as far as can be seen. Hours may pass until the window ends: that
    nobody answers just now is no reason not to flush the job then."""
    try:
        status = job.ask("status")
    except Failed as error:
        if error.code == EXIT_USAGE:
            raise
        return None
    return str(status["message"]) if status["state"] in ENDED else None


def moment(word: str, now: datetime) -> float:
    """Seconds from now until then. Raises Failed."""
    try:
        if word.startswith("+"):
            return seconds(word[1:])
        if len(word) <= len("HH:MM"):
            clock = datetime.strptime(word, "%H:%M")
            then = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
            return (then + timedelta(days=then < now) - now).total_seconds()
        return (datetime.fromisoformat(word) - now).total_seconds()
    except (ValueError, TypeError):
        raise Failed(f"{word}: give HH:MM, YYYY-MM-DDTHH:MM or +SECONDS", EXIT_USAGE) from None


if __name__ == "__main__":
    main(run)
