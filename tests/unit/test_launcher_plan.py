"""``ftrain plan``, as people and scripts call it: a table, JSON, a plot, and one line for what cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ftrain_launcher.cli import main

SIZES = ["--params", "405B", "--nnodes", "2048"]


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *flags])
    return int(ended.value.code or 0), *capsys.readouterr()


def plan(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    code, out, _ = run(capsys, *flags, "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_people_get_a_table_with_the_rivals_and_the_source_of_the_failures(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *SIZES)
    assert (code, err) == (0, "")
    assert "4.86 TB of state on 2,048 nodes x 8 ranks" in out
    assert "a failure every 3.09 h" in out
    assert "arXiv 2407.21783" in out
    assert "assumed (docs/planning.md): 12 bytes a parameter, step 6 s" in out
    for words in ("ftrain 6+2", "2 copies in memory", "disk, every 30 min", "disk, best interval", "goodput"):
        assert words in out


def test_scripts_get_the_same_figures_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, *SIZES, "--failures", "rsc-1")
    assert found["job"]["state_bytes"] == 405e9 * 12
    assert found["mtbf_seconds"] == pytest.approx(1.803 * 3600, rel=1e-3)
    ours, copies, half_hours, best = found["schemes"]
    assert ours["name"] == "ftrain 6+2"
    assert ours["survival_per_month"] > copies["survival_per_month"]
    assert ours["goodput"] > best["goodput"] > half_hours["goodput"]


def test_without_parity_each_lost_node_loses_the_snapshots(capsys: pytest.CaptureFixture[str]) -> None:
    """Given parity 0, as ``ftrain run`` takes it, then a month survives as often as no node fails in it."""
    found = plan(capsys, "--params", "7B", "--nnodes", "8", "--parity", "0", "--failures", "0.001")
    ours = found["schemes"][0]
    assert (found["job"]["parity"], ours["name"]) == (0, "ftrain 8+0")
    assert ours["losses_per_month"] == pytest.approx(8 * 0.001 * 30, rel=0.01)


def test_without_parity_no_lost_node_is_survived(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--params", "7B", "--nnodes", "1", "--nproc-per-node", "1")
    assert code == 0
    assert "on 1 node x 1 rank, " in out
    (lag,) = [line for line in out.splitlines() if line.startswith("survives a node's loss after")]
    assert lag.split()[5] == "never"


def test_what_is_given_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--state", "96G", "--nnodes", "8", "--nproc-per-node", "4", "--parity", "1", "--group-size", "4"]
    rates = [
        "--copy-bandwidth",
        "10G",
        "--protect-bandwidth",
        "2G",
        "--storage-bandwidth",
        "500M",
        "--failures",
        "0.01",
    ]
    times = ["--step-seconds", "2", "--restart-seconds", "20", "--repair-seconds", "3600", "--stall-seconds", "0.5"]
    assert plan(capsys, *flags, *rates, *times)["job"] == {
        "state_bytes": 96e9,
        "nodes": 8,
        "nproc_per_node": 4,
        "parity": 1,
        "group_size": 4,
        "failures_per_node_day": 0.01,
        "step_seconds": 2,
        "restart_seconds": 20,
        "repair_seconds": 3600,
        "stall_seconds": 0.5,
        "copy_bytes_per_second": 10e9,
        "protect_bytes_per_second": 2e9,
        "storage_bytes_per_second": 5e8,
    }
    code, out, _ = run(capsys, *flags, *rates, *times)
    assert code == 0
    assert "assumed (docs/planning.md): nothing" in out


def test_the_copy_can_be_measured_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ftrain_launcher.planning.measure._BYTES", 2**20)
    monkeypatch.setattr("ftrain_launcher.commands.plan._ARENA_FOLDER", str(tmp_path))
    assert plan(capsys, *SIZES, "--measure")["job"]["copy_bytes_per_second"] > 1e6
    assert list(tmp_path.iterdir()) == []


def test_the_extremes_of_what_is_taken_are_still_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (
        ["--state", "1e18", "--nnodes", "1", "--protect-bandwidth", "1K", "--step-seconds", "0.001"],
        ["--state", "1", "--nnodes", "2000", "--failures", "1e6", "--repair-seconds", "1e9"],
        ["--state", "1", "--nnodes", "5", "--failures", "1e-9", "--stall-seconds", "1e9"],
    ):
        assert all(0 <= scheme["goodput"] <= 1 for scheme in plan(capsys, *flags)["schemes"])
        assert run(capsys, *flags)[0] == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--nnodes", "8"], "one of the arguments --params --state is required"),
        (["--params", "7B"], "--nnodes"),
        (["--params", "7B", "--state", "1G", "--nnodes", "8"], "not allowed with"),
        (["--params", "7B", "--nnodes", "0"], "--nnodes must be at least 1, not 0"),
        (["--params", "7B", "--nnodes", "-4"], "--nnodes must be at least 1, not -4"),
        (["--params", "7B", "--nnodes", "1000001"], "at most 1,000,000"),
        (["--params", "seven", "--nnodes", "8"], "--params seven: give a number, like 70B"),
        (["--params", "0", "--nnodes", "8"], "--params 0: give a number, like 70B, 1 to 1e+18"),
        (["--params=-7B", "--nnodes", "8"], "--params -7B"),
        (["--params", "nan", "--nnodes", "8"], "--params nan"),
        (["--params", "7B", "--bytes-per-param", "0", "--nnodes", "8"], "--bytes-per-param 0"),
        (["--state", "1B", "--nnodes", "8"], "--state 1B: give bytes, like 840G"),
        (["--state", "1G", "--bytes-per-param", "2", "--nnodes", "8"], "--state has all bytes"),
        (
            ["--params", "7B", "--nnodes", "8", "--nproc-per-node", "0"],
            "--nproc-per-node 0: give ranks of a node, 1 to 1024",
        ),
        (["--params", "7B", "--nnodes", "2", "--parity", "2"], "so at most 1"),
        (["--params", "7B", "--nnodes", "8", "--parity", "5"], "at most 4"),
        (["--params", "7B", "--nnodes", "8", "--group-size", "9"], "--group-size 9 with 8 nodes and parity 2"),
        (["--params", "7B", "--nnodes", "8", "--group-size", "2"], "so give 3 to 8"),
        (["--params", "7B", "--nnodes", "8", "--failures", "often"], "like 0.004, or one of llama3, rsc-1"),
        (["--params", "7B", "--nnodes", "8", "--failures", "0"], "--failures 0"),
        (["--params", "7B", "--nnodes", "8", "--failures=-1"], "--failures -1"),
        (["--params", "7B", "--nnodes", "8", "--repair-seconds", "0"], "--repair-seconds 0"),
        (["--params", "7B", "--nnodes", "8", "--step-seconds", "inf"], "--step-seconds inf"),
        (["--params", "7B", "--nnodes", "8", "--copy-bandwidth", "0"], "--copy-bandwidth 0: give bytes per second"),
        (["--params", "7B", "--nnodes", "8", "--copy-bandwidth", "1G", "--measure"], "give one of them"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], says: str) -> None:
    code, out, err = run(capsys, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("ftrain: error: ")
    assert says in err


def test_without_matplotlib_a_plot_is_refused_before_anything_is_computed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what an import of something missing finds
    code, out, err = run(capsys, *SIZES, "--out", str(tmp_path / "plan.png"))
    assert (code, out) == (2, "")
    assert err == "ftrain: error: --out: plots need matplotlib; pip install ftrain[plot]\n"
    assert run(capsys, *SIZES)[0] == 0
