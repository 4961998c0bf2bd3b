"""States compared, bit by bit."""

from __future__ import annotations

from typing import Any

import torch


def assert_same(left: Any, right: Any, path: str = "") -> None:
    """Equal values in equal places; tensors by their bytes: -0.0 is not 0.0, and what is no number equals itself."""
    if isinstance(left, torch.Tensor):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        raw = [t.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (left, right)]
        assert torch.equal(*raw), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{path}[{index}]")
    else:
        assert left == right, path
