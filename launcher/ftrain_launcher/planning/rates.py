"""Figures that a plan takes where none are given: failures that others published, and what ftrain was measured to cost.

Each has its source here and in docs/planning.md. A failure is whatever interrupted training, so to take them all for
lost nodes errs on the safe side for memory: a worker that dies leaves its node's memory whole.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Failures of a job or of a cluster, as published."""

    failures: float
    nodes: int
    """Of 8 GPUs each."""
    days: float
    source: str

    @property
    def per_node_day(self) -> float:
        """Failures per node and day."""
        return self.failures / (self.nodes * self.days)


PUBLISHED = {
    "llama3": Published(
        failures=419,
        nodes=2048,
        days=54,
        source="Llama 3 405B, 16,384 H100: unexpected interruptions (arXiv 2407.21783, section 3.3.4 and table 5)",
    ),
    "rsc-1": Published(
        failures=6.50,
        nodes=1000,
        days=1,
        source="Meta's RSC-1, A100, 11 months: failures per thousand node-days (arXiv 2410.21680)",
    ),
    "rsc-2": Published(
        failures=2.34,
        nodes=1000,
        days=1,
        source="Meta's RSC-2, A100, 11 months: failures per thousand node-days (arXiv 2410.21680)",
    ),
    "opt-175b": Published(
        failures=100,
        nodes=124,
        days=61,
        source="OPT-175B, 992 A100: over 100 hosts replaced in 2 months (arXiv 2205.01068, section 2.5)",
    ),
}
FAILURES_DEFAULT = "llama3"

BYTES_PER_PARAM = 12.0
"""What FSDP2 or DDP with AdamW keeps: the parameter and two moments, float32; with bfloat16 parameters and a float32
copy of them it is 14 (ZeRO, arXiv 1910.02054, section 3.1, without the 2 for gradients)."""

COPY_BYTES_PER_SECOND = 8e9
"""One rank's copy into warm shared memory: 504 MB took 0.04 to 0.07 s, two ranks at once (two cores)."""

SNAPSHOT_COPIES = 0.5
"""What a snapshot costs training, in copies of the rank's bytes: 0.07 that it waits (scripts/bench/snapshot.py), and a
step of 0.45 s with 503 MB that takes 5 to 15 % longer where daemons share its cores."""

DISK_COPIES = 3.5
"""The same for DCP's ``async_save`` with cached staging, the best rival measured there; only what it waits."""

PROTECT_BYTES_PER_SECOND = 1e9
"""What a daemon sends or takes in, one core each; a tenth of a link of 100 Gbit/s."""

STORAGE_BYTES_PER_SECOND = 1e9
"""One node's share of storage: 2 TB/s sustained for 2,048 nodes (Llama 3, arXiv 2407.21783, section 3.3.1)."""

RESTART_SECONDS = 60.0
"""From a failure to training again, but for the moving of bytes: processes, imports, process groups, first step. An
assumption, the same for all; ftrain was measured at 0.5 to 0.7 s with 4 ranks on one machine."""

STEP_SECONDS = 6.0
"""Llama 3 405B: 6 x 405e9 FLOP a token, 16 M tokens a step, at 400 TFLOP/s on each of 16,384 GPUs (table 4)."""

DISK_EVERY_SECONDS = 1800.0
"""What is customary, and what in-memory checkpoints are compared with."""

REPLICAS = 2
"""Copies of each node's state, its own included, where rivals keep it in peers' memory (Gemini, SOSP'23)."""
