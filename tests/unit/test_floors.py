"""The house rules that can be read off the source (DESIGN 3): arrows point down, and torch stays on the middle floor.

Nothing is imported here: each file is parsed once, and each import in it, at the top or in a function, is
looked at. What modules really load is the matter of tests/integration/test_floors_import.py.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {
    "ftrain_launcher": ROOT / "launcher" / "ftrain_launcher",
    "ftrain": ROOT / "ftrain",
    "ftrain_snapshot": ROOT / "snapshot" / "ftrain_snapshot",
}
MAY_IMPORT = {
    "ftrain_launcher": {"ftrain_launcher", "ftrain", "ftrain_snapshot"},
    "ftrain": {"ftrain", "ftrain_snapshot"},
    "ftrain_snapshot": {"ftrain_snapshot"},
}
WITHOUT_TORCH = ("ftrain_launcher", "ftrain_snapshot")
PICKLES = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve")


class Import(NamedTuple):
    """One import found in a source: the module it names, absolute or not."""

    line: int
    module: str
    relative: bool


def imports(tree: ast.AST) -> Iterator[Import]:
    """Every import statement, and every importlib.import_module or __import__ of a literal name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, False)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(node.lineno, f"{node.module or ''}.{alias.name}".lstrip("."), node.level > 0)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            yield from (
                Import(node.lineno, argument.value, argument.value.startswith("."))
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def top(module: str) -> str:
    return module.split(".")[0]


def upward(floor: str, found: Import) -> bool:
    return top(found.module) in FLOORS and top(found.module) not in MAY_IMPORT[floor]


def of_torch(found: Import) -> bool:
    return top(found.module) in {"torch", "torchvision", "functorch"}


def of_shared_memory(found: Import) -> bool:
    """Its resource tracker unlinks the daemon's memory when a worker ends (FACTS 11a)."""
    return found.module.startswith("multiprocessing.shared_memory")


def of_pickle(found: Import) -> bool:
    """No pickle crosses a socket, nor lies in a snapshot; without the module there is nothing to slip."""
    return top(found.module) in PICKLES


@cache
def sources() -> list[tuple[str, str, list[Import]]]:
    """(floor, path in the repository, imports) of each file of the three packages."""
    return [
        (floor, str(path.relative_to(ROOT)), list(imports(ast.parse(path.read_bytes()))))
        for floor, folder in FLOORS.items()
        for path in sorted(folder.rglob("*.py"))
    ]


def breaches(rule: Callable[[str, Import], bool]) -> list[str]:
    """Where a rule is broken, as ``path:line module``."""
    return [f"{path}:{i.line} {i.module}" for floor, path, found in sources() for i in found if rule(floor, i)]


def test_every_floor_has_modules() -> None:
    assert {floor for floor, _, _ in sources()} == set(FLOORS)


def test_an_arrow_only_points_down() -> None:
    assert breaches(upward) == []


def test_launcher_and_snapshot_never_load_torch() -> None:
    assert breaches(lambda floor, found: floor in WITHOUT_TORCH and of_torch(found)) == []


def test_imports_are_absolute() -> None:
    assert breaches(lambda _, found: found.relative) == []


def test_shared_memory_is_never_multiprocessings() -> None:
    assert breaches(lambda _, found: of_shared_memory(found)) == []


def test_nothing_is_pickled() -> None:
    """But for DCP's own description of a checkpoint: its format is a pickle, read with a restricted unpickler."""
    assert [b.partition(":")[0] for b in breaches(lambda _, found: of_pickle(found))] == ["ftrain/durable/metadata.py"]


def test_the_import_names_carry_the_prefix() -> None:
    """A user's own launcher.py or snapshot.py would shadow a package of that name."""
    assert not (ROOT / "launcher" / "__init__.py").exists()
    assert not (ROOT / "snapshot" / "__init__.py").exists()
    assert breaches(lambda _, found: top(found.module) in {"launcher", "snapshot"}) == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("import ftrain.context", lambda i: upward("ftrain_snapshot", i)),
        ("def f():\n    from ftrain_launcher import cli", lambda i: upward("ftrain", i)),
        ("import numpy, torch.distributed as dist", of_torch),
        ("importlib.import_module('torch._dynamo')", of_torch),
        ("from . import errors", lambda i: i.relative),
        ("from multiprocessing import shared_memory", of_shared_memory),
        ("if True:\n    from pickle import loads", of_pickle),
    ],
)
def test_a_breach_would_be_seen(source: str, rule: Callable[[Import], bool]) -> None:
    assert any(rule(found) for found in imports(ast.parse(source)))
