"""``ftrain run --engine ray``: what was asked for, made an order for a Ray cluster (docs/ray.md)."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from ftrain_launcher.commands import checks

if TYPE_CHECKING:
    from ftrain_launcher.job.events import JobConfig

_VARIABLES = "PET_"
"""What `ftrain run` reads options from, as torchrun does."""


def add_options(add: Callable[..., object]) -> None:
    """Those that are for this engine only."""
    about = "with --engine ray: the cluster's head; default: $RAY_ADDRESS, or the cluster of this machine"
    add("--ray-address", metavar="HOST:PORT", help=about)
    about = "with --engine ray: what a worker takes, like CPU=4,GPU=1; default: a CPU, and a GPU where there are any"
    add("--ray-per-worker", metavar="NAME=N,...", help=about)


def run(chosen: argparse.Namespace, new_config: Callable[[], JobConfig]) -> int:
    """Run the job on the cluster, say how it ended. ``new_config``: checks all other options."""
    from ftrain_launcher.engines.ray import driver, placing
    from ftrain_launcher.engines.ray.order import Order

    word = chosen.nproc_per_node
    if word == "gpu":
        chosen.nproc_per_node = "1"  # Whatever the cluster has; the other options can be checked before it is asked.
    config = new_config()
    shared = checks.secret(chosen.secret_file)
    each = None if chosen.ray_per_worker is None else placing.per_worker(chosen.ray_per_worker)
    placing.workers("1" if word == "gpu" else word, ())
    cluster = driver.connect(chosen.ray_address)
    workers = placing.workers(word, cluster.values())
    order = Order(
        name=config.work.job,
        options=_options(chosen),
        script=config.work.argv,
        least=config.least,
        most=config.nodes,
        spares=config.spares,
        workers=workers,
        share=placing.share(each, workers, cluster.values(), config.nodes),
        secret=secrets.token_hex(32) if shared is None else shared.hex(),
        folder=os.getcwd(),
        arena_folder=str(chosen.arena_dir.absolute()),
        variables={name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)},
    )
    return driver.run(order, cluster).exit_code


def _options(chosen: argparse.Namespace) -> tuple[str, ...]:
    """The words between ``run`` and the script, as they were given."""
    options = chosen.words[chosen.words.index("run") + 1 : len(chosen.words) - 1 - len(chosen.arguments)]
    return tuple(options[:-1] if options[-1:] == ["--"] else options)
