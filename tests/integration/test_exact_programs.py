"""Exact batches in what scripts do with them, in real process groups (exact_programs.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from integration.exact_result import result_of

RANKS = Path(__file__).with_name("exact_programs.py")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return result_of(RANKS, tmp_path_factory.mktemp("exact_programs"))


@pytest.mark.parametrize("freezes", [False, True], ids=["learning", "frozen"])
def test_two_models_that_learn_in_turn_do_so_at_any_world_size(result: Any, freezes: bool) -> None:
    assert torch.equal(result[3][True, freezes], result[1][True, freezes])
    torch.testing.assert_close(result[3][False, freezes], result[1][True, freezes])


def test_experts_whose_gradients_would_be_mixed_up_are_refused(result: Any) -> None:
    assert "gradients on some ranks only" in result[3]["experts"]
    assert "in some micro-batches of a step only" in result[1]["experts"]


def test_ranks_that_draw_from_different_streams_are_refused(result: Any) -> None:
    assert "not the same on all ranks" in result[3]["seeds"]


def test_gradients_that_would_be_summed_again_are_refused(result: Any) -> None:
    assert "gradients are left from the step before" in result[3]["steps"]


def test_a_static_graph_is_summed_in_the_bit_exact_mode_only(result: Any) -> None:
    assert torch.equal(result[3]["static True"], result[1]["static True"])
    assert "leave static_graph out" in result[3]["static False"]
