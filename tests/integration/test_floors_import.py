"""The launcher and the daemon really come up without torch: every module of theirs is imported and looked over."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
import ftrain, ftrain.errors, ftrain.link
names = ["ftrain", "ftrain.errors", "ftrain.link"]
for package in map(importlib.import_module, sys.argv[1:]):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith(".__main__"):
            importlib.import_module(found.name)
            names.append(found.name)
            assert "torch" not in sys.modules, f"{found.name} loads torch"
assert "torch" not in sys.modules
print(len(names))
"""


@pytest.mark.parametrize("package", ["ftrain_launcher", "ftrain_snapshot"])
def test_no_module_of_the_package_loads_torch(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, package], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3


def test_commands_that_ask_a_controller_do_not_load_what_one_is_made_of() -> None:
    """It would take most of their processor time, and on a busy machine an operator waits for that."""
    code = (
        "import sys; from ftrain_launcher import cli, query; from ftrain_launcher.commands import show\n"
        "assert not {'aiohttp', 'asyncio', 'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
