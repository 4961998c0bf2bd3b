"""What of the worker side needs processes of its own: the store, and loaders that fetch ahead."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.worker_node import Agent
from processes import environment
from torch._C._distributed_c10d import TCPStore
from torch.utils.data import DataLoader

from ftrain import ElasticSampler
from ftrain.link import StoreReady


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """Hears what the store tells it."""
    (tmp_path / "control").touch()
    made = Agent(tmp_path)
    yield made
    made.close()


@pytest.fixture
def store(agent: Agent, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], StoreReady]]:
    """The store's process and what it told its agent."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ftrain.store"],
        env=environment(FTRAIN_NODE_DIR=str(tmp_path), FTRAIN_GENERATION="3"),
    )
    try:
        with agent.arrived:
            assert agent.arrived.wait_for(lambda: agent.of(StoreReady), timeout=300)
        yield process, agent.of(StoreReady)[0]
    finally:
        process.kill()
        process.wait(timeout=300)


def test_the_store_serves_and_ends_when_asked(store: tuple[subprocess.Popen[bytes], StoreReady]) -> None:
    process, ready = store
    assert ready.generation == 3
    client = TCPStore("127.0.0.1", ready.port, is_master=False, wait_for_workers=False)
    client.set("a", "b")
    assert client.get("a") == b"b"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 0


def test_the_store_ends_with_its_node_and_not_while_its_agent_lives(
    store: tuple[subprocess.Popen[bytes], StoreReady], agent: Agent, tmp_path: Path
) -> None:
    (tmp_path / "control").unlink()
    with agent.arrived:
        assert agent.arrived.wait_for(lambda: len(agent.of(StoreReady)) > 1, timeout=300)  # it asks whether it is there
    assert store[0].poll() is None
    agent.close()
    assert store[0].wait(timeout=300) == 0


def test_batches_that_a_loader_holds_back_are_not_counted() -> None:
    """Given workers that fetch ahead, when the position is read, then it is that of the training loop."""
    sampler = ElasticSampler(40, global_batch=8, seed=1)
    loader = DataLoader(list(range(40)), batch_sampler=sampler, num_workers=2, prefetch_factor=3)
    batches = iter(loader)
    for count in range(1, 4):
        assert next(batches).tolist() == sampler.batch(count - 1)
        assert sampler.position == count
    resumed = ElasticSampler(40, global_batch=8, seed=1)
    resumed.load_state_dict(sampler.state_dict())
    assert next(iter(resumed)) == next(batches).tolist()
