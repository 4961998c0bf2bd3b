"""``ftrain plan`` as a process of its own: the plot is a picture, and planning loads neither torch nor numpy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLAN = [sys.executable, "-m", "ftrain_launcher.cli", "plan", "--params", "70B", "--nnodes", "64"]


@pytest.mark.parametrize("nodes", ["64", "1"])
def test_out_writes_a_png(tmp_path: Path, nodes: str) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "plan.png"
    command = [*PLAN, "--nnodes", nodes, "--out", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{file}: the plot" in done.stdout
    picture = file.read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 10_000


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "missing" / "plan.png"
    done = subprocess.run([*PLAN, "--out", str(file)], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ftrain: error: --out {file}: No such file or directory\n"


def test_a_plan_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from ftrain_launcher.cli import main\n"
        "try: main(['plan', '--params', '70B', '--nnodes', '64', '--json'])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
