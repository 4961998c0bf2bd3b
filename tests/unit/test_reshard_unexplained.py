"""Parameters that nothing explains: where ranks begin with unlike ones, no other world may take them over."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
import torch._dynamo  # the first optimizer would import it, for more than a second
from torch import nn

from ftrain.capture import Capturer
from ftrain.logical.errors import LayoutInvalid
from ftrain.logical.live import describe
from ftrain.logical.rules import NamedMesh, Rules
from ftrain.reshard import layouts, unexplained
from ftrain.reshard.describer import Describer
from ftrain.reshard.layouts import LayoutWatch
from ftrain.reshard.unexplained import judge, sums

RANKS = 4
Objects = Callable[[int], dict[str, Any]]


def verdict(objects: Objects, rules: Rules | None = None) -> str:
    """On what all ranks say of their objects."""
    ranks = [describe(objects(rank), rank, RANKS, rules, NamedMesh(("world",), (RANKS,), (rank,))) for rank in range(4)]
    return judge([(rank, list(sums(live))) for rank, live in enumerate(ranks)])


def linear(seed: int, width: int = 3) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(2, width)


def masters(seed: int, width: int = 3) -> torch.optim.Optimizer:
    """Plain tensors, as some libraries have them, that no module has."""
    clones = [each.detach().double().requires_grad_() for each in linear(seed, width).parameters()]
    return torch.optim.SGD(clones, lr=0.1)


def test_masters_that_ranks_have_unlike_are_named() -> None:
    assert verdict(lambda _: {"opt": masters(0)}) == ""
    said = verdict(lambda rank: {"opt": masters(rank // 3)})
    assert said.startswith("nothing tells what ranks have of opt.params.0, opt.params.1, and they hold unlike values: ")
    assert "by ctx.layout say" in said
    assert verdict(lambda rank: {"opt": masters(rank)}, Rules({"opt.params.*": "per_rank"})) == ""


def test_masters_of_pipeline_stages_by_number_are_of_no_whole_model() -> None:
    """Given a stage of another shape on each half of the ranks, or of the same one."""
    for widths in ((3, 5), (3, 3)):
        said = verdict(lambda rank, widths=widths: {"opt": masters(rank // 2, widths[rank // 2])})  # type: ignore[misc]
        assert "opt.params.0" in said
        assert "need the names of the whole model" in said

    def named(rank: int) -> dict[str, Any]:
        mine = nn.ParameterDict({f"stage{rank // 2}": nn.Parameter(linear(rank // 2).weight.detach())})
        return {"masters": mine, "opt": torch.optim.SGD(mine.parameters(), lr=0.1)}

    assert verdict(named) == ""


def test_parts_that_were_cut_by_hand_and_that_no_rule_is_about_are_named() -> None:
    """Of a module that nobody wraps, and the likes of it: a typo in a pattern, stages whose names do not tell them."""
    assert verdict(lambda _: {"net": linear(0)}) == ""
    assert "ranks have of net.weight, net.bias, and" in verdict(lambda rank: {"net": linear(rank)})
    assert "ranks have of net.weight, net.bias, and" in verdict(lambda rank: {"net": linear(0, 3 + rank // 2)})
    typo, right = (Rules({pattern: "world: shard(0)"}) for pattern in ("net.wieght", "net.*"))
    assert "net.weight" in verdict(lambda rank: {"net": linear(rank)}, typo)
    assert verdict(lambda rank: {"net": linear(rank)}, right) == ""


def test_what_is_each_ranks_own_anyway_is_not() -> None:
    def objects(rank: int) -> dict[str, Any]:
        norm = nn.BatchNorm1d(2)
        norm.running_mean.fill_(rank)  # type: ignore[union-attr]
        stages = nn.ModuleDict({f"stage{rank // 2}": linear(rank // 2)})
        return {"norm": norm, "noise": torch.tensor([rank]), "model": stages}

    assert verdict(objects) == ""


def test_it_is_said_at_once_and_kept_in_the_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given masters that another rank has otherwise, without a rule, when training begins."""
    other = describe({"opt": masters(1)}, 1, 2)
    theirs = msgspec.msgpack.encode((1, list(sums(other))))
    monkeypatch.setattr(unexplained, "gathered", lambda mine: [mine, theirs])
    monkeypatch.setattr(unexplained, "broadcast_text", lambda text: text)
    describer, objects = Describer(0, 2), {"opt": masters(0)}
    with pytest.warns(UserWarning, match=r"no other number of ranks can resume this state: nothing tells .* opt"):
        assert LayoutWatch(describer).begin(objects) is False
    assert said_in_snapshot(describer, objects) == describer.refused
    alike, same = Describer(0, 2), {"opt": masters(1)}
    LayoutWatch(alike).begin(same)
    assert alike.refused is None
    assert isinstance(said_in_snapshot(alike, same), list)


def test_all_ranks_know_what_rank_0_has_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is left when a node is lost has told the job, and has it in its snapshots."""
    monkeypatch.setattr(unexplained, "gathered", lambda _: [])
    monkeypatch.setattr(unexplained, "broadcast_text", lambda mine: mine or "rank 0's reason")
    describer, objects = Describer(1, 2), {"opt": masters(0)}
    LayoutWatch(describer).begin(objects)
    assert describer.refused == said_in_snapshot(describer, objects) == "rank 0's reason"


def test_one_description_serves_all_that_is_looked_at_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (layouts, unexplained):
        monkeypatch.setattr(module, "gathered", lambda mine: [mine])
        monkeypatch.setattr(module, "broadcast_text", lambda text: text)
    describer, calls = Describer(0, 1), []
    describer.rules = Rules({"net.*": "replicate"})
    real = describer.describe
    monkeypatch.setattr(describer, "describe", lambda objects: calls.append(1) or real(objects))
    LayoutWatch(describer).begin({"net": linear(0)})
    assert len(calls) == 1


def test_who_cannot_describe_its_state_still_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks wait for what it says; why it cannot, its first snapshot says. By rules it would have to."""
    said: list[Any] = []
    monkeypatch.setattr(unexplained, "gathered", lambda mine: said.append(msgspec.msgpack.decode(mine)) or [])
    monkeypatch.setattr(unexplained, "broadcast_text", lambda text: text)
    describer = Describer(1, 2)
    monkeypatch.setattr(describer, "describe", raising(LayoutInvalid("odd")))
    assert LayoutWatch(describer).begin({"net": linear(0)}) is False
    assert said == [[0, []]]
    describer.rules = Rules({"net.*": "replicate"})
    with pytest.raises(LayoutInvalid, match="odd"):
        LayoutWatch(describer).begin({"net": linear(0)})


def raising(error: Exception) -> Callable[[Any], Any]:
    def describe(_: Any) -> Any:
        raise error

    return describe


def said_in_snapshot(describer: Describer, objects: dict[str, Any]) -> Any:
    capturer = Capturer(0, 2, set, 0, Line(), describer)
    capturer.track(objects)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        return msgspec.msgpack.decode(capturer.collect(lambda _: {}).plan.logical)


class Line:
    """Nobody listens."""

    def captured(self, *_: object) -> None: ...

    def sealed(self, *_: object) -> None: ...

    def skip(self, *_: object) -> None: ...
