"""Forks workers for tests: reads an order per line from stdin, runs it, answers with the exit codes."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from typing import Any

WAIT_SECONDS = 300.0


def run_child(order: dict[str, Any], environment: dict[str, str]) -> int:
    output = os.open(f"{order['output']}.{environment['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    sys.argv = [order["script"], *order["arguments"]]
    try:
        runpy.run_path(order["script"], run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork_child(order: dict[str, Any], environment: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = run_child(order, environment)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait_children(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + WAIT_SECONDS
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def main() -> None:
    for name in importlib.import_module("ftrain.preload").LATER:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        pids = [fork_child(order, environment) for environment in order["environments"]]
        print(json.dumps(wait_children(pids)), flush=True)


if __name__ == "__main__":
    main()
