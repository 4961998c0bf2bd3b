"""Trains on a DataLoader with worker processes, forked for training and spawned for evaluation; written for torchrun.

torchrun --standalone --nproc_per_node=2 loader_ddp.py --out /tmp/run
"""

import argparse
import hashlib
import os
from pathlib import Path

import torch
import torch.distributed as dist
from holding import add_argument, hold
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset, DistributedSampler

EPOCHS, SAMPLES, WIDTH = 3, 24, 6


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Made where they are read: in a loader's process."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        assert torch.utils.data.get_worker_info() is not None
        x = torch.randn(WIDTH, generator=torch.Generator().manual_seed(index))
        return x, x.sum()


def evaluate(model: nn.Module) -> float:
    """The loss over all samples, read by processes that know nothing of this one."""
    loader = DataLoader(Samples(), batch_size=8, num_workers=1, multiprocessing_context="spawn")
    with torch.no_grad():
        return sum((model(x).squeeze(-1) - y).square().sum().item() for x, y in loader) / SAMPLES


def main() -> None:
    """Train to the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group()
    rank = dist.get_rank()
    torch.manual_seed(3)
    model = DDP(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sampler: DistributedSampler[tuple[Tensor, Tensor]] = DistributedSampler(Samples(), seed=1)
    loader = DataLoader(Samples(), batch_size=4, sampler=sampler, num_workers=2, persistent_workers=True)
    checkpoint, first = args.out / "epoch.pt", 0
    if checkpoint.exists():
        first, state, optimizer_state = torch.load(checkpoint)
        model.module.load_state_dict(state)
        optimizer.load_state_dict(optimizer_state)
    for epoch in range(first, EPOCHS):
        sampler.set_epoch(epoch)
        for batch, (x, y) in enumerate(loader):
            if batch == 1:
                hold(args, epoch)
            loss = (model(x).squeeze(-1) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0:
            torch.save((epoch + 1, model.module.state_dict(), optimizer.state_dict()), args.out / "epoch.new")
            os.replace(args.out / "epoch.new", checkpoint)
        dist.barrier()
    loss = evaluate(model.module)
    values = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    (args.out / f"end-{rank}").write_text(f"{hashlib.sha256(values).hexdigest()} {loss!r}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
