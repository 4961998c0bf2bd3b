"""A round's answer (`shown`) as people read it: a line a node, the links as a matrix, and the verdicts."""

from __future__ import annotations

import io
from typing import Any

MATRIX_NODES_MAX = 8
_HEADS = [
    "node",
    "host",
    "GFLOP/s",
    "of a core",
    "memory GB/s",
    "disk MB/s",
    "shm free",
    "clock",
    "worst link",
    "state",
]
_TRAINING = "measured beside training: rates compete with it, and no node is bad for them"


def text(answer: dict[str, Any]) -> str:
    """Tables and sentences, one after the other."""
    nodes = answer["nodes"]
    parts = [_table(_HEADS, [_row(node, answer["links"]) for node in nodes])]
    if any(node["figures"] and node["figures"]["gpus"] for node in nodes):
        rows = [
            _gpu_row(node["node"], i, gpu)
            for node in nodes
            for i, gpu in enumerate((node["figures"] or {}).get("gpus", []))
        ]
        parts.append(_table(["node", "GPU", "kind", "TFLOP/s", "GB/s", "exact"], rows))
    if 1 < len(nodes) <= MATRIX_NODES_MAX and answer["links"]:
        names = [node["node"] for node in nodes]
        cells = {(link["source"], link["destination"]): _cell(link) for link in answer["links"]}
        rows = [[name, *(cells.get((name, other), "-") for other in names)] for name in names]
        parts.append(_table(["MB/s (ms) from \\ to", *names], rows))
    if answer["training"]:
        parts.append(_TRAINING)
    parts += [f"{node['node']}: {'; '.join([node['state'], *node['reasons']])}" for node in nodes]
    return "\n".join(parts)


def _row(node: dict[str, Any], links: list[dict[str, Any]]) -> list[str]:
    figures, offset = node["figures"], node["clock_offset_seconds"]
    measured = ["-"] * 5
    if figures is not None:
        disk = figures["disk_mb_per_second"]
        measured = [
            f"{figures['matmul_gflops']:.1f}",
            f"{figures['cpu_share']:.0%}",
            f"{figures['memory_gb_per_second']:.1f}",
            "-" if disk is None else f"{disk:.0f}",
            f"{figures['arena_free_bytes'] / 1e9:.1f} GB",
        ]
    clock = "-" if offset is None else f"{round(offset * 1e3):+d} ms"
    mine = [link for link in links if node["node"] in (link["source"], link["destination"])]
    return [node["node"], node["hostname"], *measured, clock, _worst(mine), node["state"]]


def _worst(links: list[dict[str, Any]]) -> str:
    if any(link["failure"] for link in links):
        return "cut"
    rates = [link["bytes_per_second"] for link in links if link["bytes_per_second"] is not None]
    return f"{min(rates) / 1e6:.0f} MB/s" if rates else "-"


def _gpu_row(node: str, index: int, gpu: dict[str, Any]) -> list[str]:
    rates = [gpu["matmul_tflops"], gpu["memory_gb_per_second"]]
    return [node, str(index), gpu["name"], *("-" if r is None else f"{r:.0f}" for r in rates), str(gpu["exact"])]


def _cell(link: dict[str, Any]) -> str:
    if link["failure"]:
        return "cut"
    rate, trip = link["bytes_per_second"], link["least_rtt_seconds"]
    return f"{'-' if rate is None else format(rate / 1e6, '.0f')} ({trip * 1e3:.2f})"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, highlight=False, width=max(80, 24 * len(heads))).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
