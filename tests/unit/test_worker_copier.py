"""What CUDA is told of the arena's homes, by way of a stand-in for its runtime."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ftrain import copier
from ftrain.copier import Pins, address_of
from ftrain_snapshot.arena import Mapping

GPU = torch.device("cuda", 0)


class Runtime:
    """Refuses what CUDA refuses."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> None:
        assert address not in self.registered, "is registered already"
        self.registered[address] = size

    def cudaHostUnregister(self, address: int) -> None:
        del self.registered[address]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made = Runtime()
    monkeypatch.setattr(copier, "_cudart", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return made


def home(folder: Path, name: str, size_bytes: int) -> Mapping:
    path = folder / name
    path.write_bytes(bytes(size_bytes))
    return Mapping(path)


def test_homes_are_pinned_once_for_all_plans(tmp_path: Path, runtime: Runtime) -> None:
    homes, pins = [home(tmp_path, str(number), 4096) for number in range(3)], Pins()
    for _ in range(2):  # each plan has a copier of its own, and each capture begins by pinning
        pins.pin(homes, GPU)
    assert runtime.registered == {address_of(each): 4096 for each in homes}


def test_a_home_that_has_grown_takes_the_place_of_the_old_one(tmp_path: Path, runtime: Runtime) -> None:
    old, pins = home(tmp_path, "0", 4096), Pins()
    pins.pin([old], GPU)
    new = home(tmp_path, "0", 8192)
    pins.pin([new], GPU)
    assert runtime.registered == {address_of(new): 8192}


def test_nothing_stays_pinned_when_a_capturer_is_closed(tmp_path: Path, runtime: Runtime) -> None:
    """Its memory is unmapped next, and other memory may lie there then."""
    pins = Pins()
    pins.pin([home(tmp_path, "0", 4096)], GPU)
    pins.close()
    assert runtime.registered == {}
