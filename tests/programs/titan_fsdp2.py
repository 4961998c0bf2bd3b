"""Trains a small model with FSDP2 and distributed checkpoints, in the idiom of torchtitan; written for torchrun.

torchrun --standalone --nproc_per_node=2 titan_fsdp2.py --out /tmp/run
"""

import argparse
import hashlib
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from holding import add_argument, hold
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

WIDTH, STEPS, BATCH = 12, 8, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Trainer:
    """Model, optimizer and step; saved and loaded as one."""

    def __init__(self, out: Path) -> None:
        self.out, self.step = out, 0
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (self.world,), mesh_dim_names=("dp",))
        torch.manual_seed(7)
        self.model = nn.Sequential(Block(), Block(), nn.Linear(WIDTH, 1))
        for block in self.model:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def load(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        whole = [path.parent for path in self.out.glob("step-*/.metadata")]
        if not whole:
            return
        newest = max(whole, key=lambda path: int(path.name[5:]))
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state = {"model": model, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=newest)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.step = int(newest.name[5:])

    def save(self) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=self.out / f"step-{self.step}")

    def train(self, args: argparse.Namespace) -> None:
        while self.step < STEPS:
            hold(args, self.step)
            generator = torch.Generator().manual_seed(self.step * self.world + self.rank)
            x = torch.randn(BATCH, WIDTH, generator=generator)
            loss = (self.model(x).squeeze(-1) - x.sum(-1)).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            if self.step % 2 == 0:
                self.save()

    def digest(self) -> str:
        whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in self.model.parameters()]
        return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in whole)).hexdigest()


@record
def main() -> None:
    """Train to the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    trainer = Trainer(args.out)
    trainer.load()
    trainer.train(args)
    (args.out / f"end-{trainer.rank}").write_text(trainer.digest())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
