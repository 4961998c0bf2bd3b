"""What the scripts beside this file share: `ftrain`'s own commands, asked for JSON, and errors in one line.

Run them with the Python that ftrain is installed in. Exit codes: 0 done; 1 not done, the last line says what; 2 bad
input, no such job, or it has ended; 6 the controller did not answer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

EXIT_NOT_DONE = 1
EXIT_USAGE = 2
COMMAND_SECONDS = 60.0
POLL_SECONDS = 0.5


class Failed(Exception):
    """In one line; ``code``: what to exit with."""

    def __init__(self, text: str, code: int = EXIT_NOT_DONE) -> None:
        super().__init__(" ".join(text.split()))
        self.code = code


def ask(*words: str, timeout_seconds: float = COMMAND_SECONDS, may_fail: bool = False) -> Any:
    """The JSON of a command. ``may_fail``: exit code 1 is an answer, too. Raises Failed."""
    command = [sys.executable, "-m", "ftrain_launcher", *words, "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"ftrain {words[0]} did not end within {timeout_seconds:g} s") from None
    if done.returncode and not (may_fail and done.returncode == EXIT_NOT_DONE and done.stdout):
        said = (done.stderr.strip().splitlines() or [f"ftrain {words[0]} ended with {done.returncode}"])[-1]
        raise Failed(said.removeprefix("ftrain: error: "), done.returncode)
    return json.loads(done.stdout)


class Job:
    """The job that ``--job`` names, or the newest that runs: found once, so that all questions are about the same."""

    def __init__(self, name: str | None) -> None:
        self._words = [] if name is None else ["--job", name]
        self.name: str = self.ask("status")["job"]
        self._words = ["--job", self.name]

    def ask(self, *words: str, timeout_seconds: float = COMMAND_SECONDS, may_fail: bool = False) -> Any:
        """The JSON of a command about the job; see `ask`."""
        return ask(*words, *self._words, timeout_seconds=timeout_seconds, may_fail=may_fail)

    def nodes(self) -> list[dict[str, Any]]:
        """All nodes that are there. Raises Failed if the job has ended: then there are none."""
        found = [node for node in self.ask("nodes")["nodes"] if node["state"] not in ("lost", "released")]
        if not found:
            raise Failed(f"job {self.name} has ended: it has no nodes any more", EXIT_USAGE)
        return found

    def node(self, word: str) -> dict[str, Any]:
        """The node of a name, a position or a host's name."""
        nodes = self.nodes()
        for key in ("name", "position", "hostname"):
            found = [node for node in nodes if str(node[key]) == word]
            if len(found) == 1:
                return found[0]
        raise Failed(f"no node {word}: nodes are {', '.join(node['name'] for node in nodes)}", EXIT_USAGE)

    def drain(self, node: dict[str, Any], reason: str, timeout_seconds: float) -> None:
        """Move a node's ranks at the end of a step. Raises Failed if they have not moved in time."""
        words = ("drain", node["name"], "--reason", reason, "--timeout-seconds", str(timeout_seconds))
        after = self.ask(*words, timeout_seconds=timeout_seconds + COMMAND_SECONDS, may_fail=True)
        if after["position"] is not None and after["state"] not in ("lost", "released"):
            if not after["cordon"]["leaves"]:
                raise Failed(f"{node['name']} keeps its ranks: without it too little of the state would be left")
            why = after["cordon"]["hindrance"]
            said = f"still holds its ranks after {timeout_seconds:g} s" + (f": {why}" if why else "")
            raise Failed(f"{node['name']} {said}; the drain goes on")

    def wait(self, is_so: Callable[[], bool], what: str, timeout_seconds: float) -> None:
        """Raises Failed if it is not so in time."""
        deadline = time.monotonic() + timeout_seconds
        while not is_so():
            if time.monotonic() >= deadline:
                raise Failed(f"not within {timeout_seconds:g} s: {what}")
            time.sleep(POLL_SECONDS)


def run_for(command: str, node: dict[str, Any], timeout_seconds: float) -> None:
    """A shell's command about a node, which finds NODE and HOST in its environment. Raises Failed."""
    environment = {**os.environ, "NODE": node["name"], "HOST": node["hostname"]}
    try:
        code = subprocess.run(["sh", "-c", command], env=environment, timeout=timeout_seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        raise Failed(f"the command for {node['name']} did not end within {timeout_seconds:g} s") from None
    if code:
        raise Failed(f"the command for {node['name']} ended with {code}")


def parser(about: str) -> argparse.ArgumentParser:
    """A script's command line, which has ``--job``."""
    made = argparse.ArgumentParser(description=about, allow_abbrev=False)
    made.add_argument("--job", metavar="NAME", help="which job; default: the newest that runs")
    return made


def add_times(made: argparse.ArgumentParser, *times: tuple[str, float, str]) -> None:
    """Flags that are waits in seconds: each with its default, and what it is about."""
    for flag, default, about in times:
        made.add_argument(flag, type=seconds, default=default, metavar="S", help=f"{about}; default {default:g}")


def seconds(word: str) -> float:
    """A time that can be waited for; for argparse."""
    value = float(word)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def say(text: str) -> None:
    """What is done, as it is done."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(run: Callable[[], None]) -> None:
    """Run the script; say in one line why it failed."""
    name = os.path.basename(sys.argv[0])
    try:
        run()
    except Failed as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)
