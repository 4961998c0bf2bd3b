"""Rules against what ranks hold: what is proved wrong ends the job, what only looks wrong is said once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pytest
import torch
from torch import Tensor, nn

from ftrain.logical.errors import LayoutInvalid
from ftrain.logical.live import Live, describe
from ftrain.logical.rules import NamedMesh, Rules
from ftrain.logical.state import LogicalTensor
from ftrain.reshard import layouts, unexplained
from ftrain.reshard.certificate import sum_of_bytes
from ftrain.reshard.describer import Describer
from ftrain.reshard.doubts import Look, doubts, grown_apart, look_at
from ftrain.reshard.layouts import LayoutWatch, check_layout

RANKS = 2


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_ranks(rule: str, *held: Tensor) -> list[Live]:
    """What each rank of ``tp`` has of one tensor, by that rule."""
    ranks = [NamedMesh(("tp",), (len(held),), (rank,)) for rank in range(len(held))]
    return [
        describe({"w": tensor}, rank, len(held), Rules({"w": rule}), mesh)
        for rank, (tensor, mesh) in enumerate(zip(held, ranks, strict=True))
    ]


def seen(rule: str, *held: Tensor) -> list[tuple[int, Mapping[str, Look]]]:
    return [
        (rank, {"w": look_at(live.state.tensors[0], live.tensors[0])})
        for rank, live in enumerate(of_ranks(rule, *held))
    ]


def test_a_norm_that_all_have_and_that_is_said_to_be_sharded() -> None:
    [doubt] = doubts(seen("tp: shard(0)", noise(32), noise(32)), is_new=True)
    assert doubt.startswith("w: by its layout ranks 0, 1 hold different parts of it, but these are equal: ")
    assert doubts(seen("tp: shard(0)", noise(32), noise(32, seed=1)), is_new=True) == []


@pytest.mark.parametrize("fresh", [torch.zeros(32), torch.ones(32)])
def test_what_is_new_says_nothing_whatever_is_claimed_of_it(fresh: Tensor) -> None:
    for rule in ("tp: shard(0)", "tp: replicate", "tp: average"):
        looks = seen(rule, fresh, fresh.clone())
        assert doubts(looks, is_new=True) == []
        assert grown_apart(looks) == []
        assert all(each["w"].is_open for _, each in looks)


def test_few_elements_may_be_equal_by_chance() -> None:
    assert doubts(seen("tp: shard(0)", torch.tensor([1.0, 2]), torch.tensor([1.0, 2])), is_new=False) == []


@pytest.mark.parametrize("zeros", [3, 5, 11])
def test_padding_that_no_rule_names(zeros: int) -> None:
    padded = torch.cat([noise(16 - zeros, 6), torch.zeros(zeros, 6)])
    [doubt] = doubts(seen("tp: shard(0)", *padded.chunk(2)), is_new=True)
    assert f"its last {zeros} of 16 along dimension 0 are zeros" in doubt
    assert f"'trim(0, {16 - zeros})'" in doubt
    assert doubts(seen(f"tp: shard(0); trim(0, {16 - zeros})", *padded.chunk(2)), is_new=True) == []


def test_zeros_that_are_no_padding() -> None:
    table = noise(16, 6)
    table[3] = 0.0  # an index for padding tokens
    table[:, 2] = 0.0
    assert doubts(seen("tp: shard(0)", *table.chunk(2)), is_new=True) == []
    halves = [part.chunk(2) for part in (noise(8), torch.zeros(8))]  # a fused bias, of which one part begins at zero
    fused = [torch.cat([part[rank] for part in halves]) for rank in range(RANKS)]
    assert doubts(seen("tp: shard(0, parts=2)", *fused), is_new=True) == []


def test_parts_that_are_to_be_averaged() -> None:
    [doubt] = doubts(seen("tp: average", noise(128), noise(128, seed=1)), is_new=True)
    assert "what ranks 0, 1 hold has nothing in common: " in doubt
    drifted = noise(128) + 0.5 * noise(128, seed=1)
    assert doubts(seen("tp: average", noise(128), drifted), is_new=True) == []
    assert doubts(seen("tp: average", noise(128), noise(128, seed=1)), is_new=False) == []


def test_replicas_that_steps_make_different() -> None:
    [apart] = grown_apart(seen("tp: replicate", noise(32), noise(32, seed=1)))
    assert "ranks 0, 1 hold the same, and training has made it different" in apart
    assert grown_apart(seen("tp: replicate", noise(32), noise(32))) == []


def test_any_tensor_can_be_looked_at() -> None:
    for tensor in (
        torch.tensor(3.0), torch.empty(0, 4), torch.tensor([True, False]), torch.tensor([1 + 2j, 3]),
        noise(8, 9).t(), torch.ones(3, dtype=torch.bfloat16), torch.tensor([float("nan")] * 3),
    ):  # fmt: skip
        assert doubts(seen("replicate", tensor, tensor.clone()), is_new=False) == []
        assert grown_apart(seen("replicate", tensor, tensor.clone())) == []


class Ranks:
    """All ranks in one process: what one says is kept, and rank 0's verdict, the last one's here, is everybody's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, others: Sequence[bytes] = ()) -> None:
        self.others = list(others)
        self.said: list[bytes] = []
        monkeypatch.setattr(layouts, "gathered", self._gathered)
        monkeypatch.setattr(layouts, "broadcast_text", lambda text: text)
        monkeypatch.setattr(unexplained, "refusal", lambda *_: "")

    def _gathered(self, content: bytes) -> list[bytes]:
        self.said.append(content)
        return [content, *self.others]


def check(monkeypatch: pytest.MonkeyPatch, *ranks: Live, rule: str) -> None:
    others = [msgspec.msgpack.encode((live.state, [sum_of_bytes(t) for t in live.tensors])) for live in ranks]
    Ranks(monkeypatch, others[1:])
    check_layout(ranks[0], Rules({"w": rule}))


def test_replicas_that_are_none_are_refused_as_the_job_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, *of_ranks("replicate", noise(5), noise(5)), rule="replicate")
    with pytest.raises(LayoutInvalid) as refused:
        check(monkeypatch, *of_ranks("replicate", noise(5), noise(5, seed=1)), rule="replicate")
    assert "layout 'w', tensor w: replicas are not equal: ranks [0] and [1] differ" in str(refused.value)
    assert "say 'MESH_DIM: shard(DIM)'" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_parts_that_do_not_make_the_whole_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = of_ranks("tp: shard(0)", noise(5), noise(5))
    with pytest.raises(LayoutInvalid, match=r"ctx\.layout .*: w at \[5\] of size \[5\]: held by nobody"):
        check(monkeypatch, first, rule="tp: shard(0)")


def test_a_new_bias_is_looked_at_until_steps_have_changed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a cut bias of zeros that a rule calls a replica, when a step has changed it, then no world may take it."""
    describer, model = Describer(0, RANKS), nn.Linear(2, 24)
    describer.rules = Rules({"*": "replicate"})
    objects = {"net": model}
    nn.init.zeros_(model.bias)
    ranks = Ranks(monkeypatch)
    monkeypatch.setattr(layouts, "findings", lambda *_, **__: [])
    watch = LayoutWatch(describer)
    watch.begin(objects)
    assert watch.after_step(objects)
    assert [msgspec.msgpack.decode(ranks.said[-1])[2], describer.refused] == [True, None]
    nn.init.normal_(model.bias)
    look = look_at(*_of(describer, objects, "net.bias"))
    other = msgspec.structs.replace(look, sample=noise(24).double().numpy().tobytes())
    ranks.others = [msgspec.msgpack.encode((1, {"net.bias": other}, False))]
    with pytest.warns(UserWarning, match=r"no other number of ranks can resume this state: net\.bias: by its layout"):
        assert not watch.after_step(objects)
    assert describer.refused is not None
    assert describer.refused.startswith("net.bias: by its layout ranks 0, 1 hold the same, and training")


def test_what_looks_wrong_is_said_by_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    describer, objects = Describer(0, RANKS), {"net": nn.Linear(2, 24)}
    describer.rules, describer.mesh = Rules({"*": "tp: shard(0)"}), NamedMesh(("tp",), (RANKS,), (0,))
    live = describer.describe(objects)
    same = {t.name: msgspec.structs.replace(look_at(t, m), tensor=_moved(t)) for t, m in _pairs(live)}
    Ranks(monkeypatch, [msgspec.msgpack.encode((1, same, False))])
    monkeypatch.setattr(layouts, "check_layout", lambda *_: None)
    with pytest.warns(UserWarning, match=r"ctx\.layout may be wrong: net\.weight: by its layout ranks 0, 1 hold"):
        LayoutWatch(describer).begin(objects)


def _pairs(live: Live) -> list[tuple[LogicalTensor, Tensor]]:
    return list(zip(live.state.tensors, live.tensors, strict=True))


def _of(describer: Describer, objects: Mapping[str, nn.Module], name: str) -> tuple[LogicalTensor, Tensor]:
    return next(pair for pair in _pairs(describer.describe(objects)) if pair[0].name == name)


def _moved(tensor: LogicalTensor) -> LogicalTensor:
    """As the other rank has it."""
    [span] = tensor.axes[0].spans
    axes = (msgspec.structs.replace(tensor.axes[0], spans=(span._replace(start=span.length),)), *tensor.axes[1:])
    return msgspec.structs.replace(tensor, axes=axes)
