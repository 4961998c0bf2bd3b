"""A Ray driver that trains with ftrain, and goes on with what the training left.

    ray start --head                              # or on any cluster that is there, with ftrain[ray] on its machines
    python examples/ray_driver.py --nodes 2

One node runs on each machine: for more than one, the cluster needs as many.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ray

import ftrain.ray


@ray.remote
def size_of(path: str) -> int:
    """What a task after the training may do with its outcome."""
    return Path(path).stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", default="1", help="a number, or MIN:MAX")
    parser.add_argument("--spares", type=int, default=0, help="machines more than that, to take over from lost ones")
    parser.add_argument("--workers-per-node", default="1", help="a number, or gpu")
    parser.add_argument("--steps", default="100")
    parser.add_argument("--hash-file", default="/tmp/ray-char-gpt.json")
    args = parser.parse_args()

    script = Path(__file__).with_name("char_gpt.py").absolute()
    try:
        ray.init(address="auto")
        job = ftrain.ray.RayJob.start(
            *(script, "--steps", args.steps, "--hash-file", args.hash_file),
            nodes=args.nodes,
            spares=args.spares,
            workers_per_node=args.workers_per_node,
        )
    except (ConnectionError, ftrain.ray.RayJobInvalid) as error:
        parser.error(str(error))
    print(f"job {job.name}: ftrain status --job {job.name}")
    if (code := job.wait()) != 0:
        raise SystemExit(code)
    if Path(args.hash_file).exists():
        print(f"trained; a Ray task sees {ray.get(size_of.remote(args.hash_file))} bytes of {args.hash_file}")


if __name__ == "__main__":
    main()
