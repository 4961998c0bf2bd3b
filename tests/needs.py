"""What some tests need of the machine; each call skips the test, visibly and with the reason, where that is missing.

A CI job that must not skip sets FTRAIN_REQUIRE to the names it must have (``FTRAIN_REQUIRE=root,lab``), or
FTRAIN_REQUIRE_NAME=1 for one of them: then the test fails instead.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess

import pytest


def require_root() -> None:
    """Running as root."""
    _require("root", None if os.geteuid() == 0 else "needs root")


def require_lab() -> None:
    """May make hosts of namespaces (`tests/hosts`). The name is ``lab``; FTRAIN_REQUIRE_LAB=1 asks for it, too."""
    from hosts import unavailable

    _require("lab", unavailable())


def require_loop_mounts() -> None:
    """May mount a file as a disk, and freeze it."""
    missing = [tool for tool in ("losetup", "mkfs.ext4", "fsfreeze", "mount") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        _require("loop", f"needs root and {', '.join(missing) or 'loop devices'}")
    else:
        done = subprocess.run(["losetup", "--find"], capture_output=True, text=True, timeout=10, check=False)
        _require("loop", None if done.returncode == 0 else f"no loop device: {done.stderr.strip()}")


def require_ray() -> None:
    """Ray is installed (``pip install ftrain[ray]``)."""
    _require("ray", None if importlib.util.find_spec("ray") else "needs ray (extra 'ray')")


def require_gpu(count: int = 1) -> None:
    """At least ``count`` CUDA devices; mark the test ``gpu`` as well."""
    import torch

    found = torch.cuda.device_count()
    _require("gpu", None if found >= count else f"needs {count} CUDA device(s), found {found}")


def _require(name: str, missing: str | None) -> None:
    if missing is None:
        return
    required = os.environ.get("FTRAIN_REQUIRE", "").split(",")
    if name in required or os.environ.get(f"FTRAIN_REQUIRE_{name.upper()}") == "1":
        pytest.fail(f"FTRAIN_REQUIRE has {name}, but: {missing}", pytrace=False)
    pytest.skip(missing)
