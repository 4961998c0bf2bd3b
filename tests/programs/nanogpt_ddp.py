"""Trains a very small GPT with DDP, in the idiom of nanoGPT; written for torchrun, and knows nothing of ftrain.

Gradients are accumulated and summed in the last micro-batch only; rank 0 writes a checkpoint, from which all resume.

    torchrun --standalone --nproc_per_node=2 nanogpt_ddp.py --out /tmp/run
    python nanogpt_ddp.py --out /tmp/run
"""

import argparse
import hashlib
import math
import os
from pathlib import Path

import torch
from holding import add_argument, hold
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

VOCABULARY, WIDTH, HEADS, LENGTH, BATCH = 11, 16, 2, 8, 4
STEPS, WARMUP, RATE = 10, 3, 1e-2

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
add_argument(parser)
args = parser.parse_args()
torch.set_num_threads(1)

accumulation = 4
ddp = int(os.environ.get("RANK", -1)) != -1
if ddp:
    init_process_group(backend="gloo")
    rank, local_rank, world = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    device = "cpu" if not torch.cuda.is_available() else f"cuda:{local_rank}"
    assert accumulation % world == 0
    accumulation //= world
else:
    rank, world, device = 0, 1, "cpu"
master = rank == 0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.attention(self.norm(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).unbind(2)
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.token.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.token(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        return F.cross_entropy(self.head(self.blocks(x)).flatten(0, 1), targets.flatten())


def batch_of(step: int, micro: int) -> tuple[Tensor, Tensor]:
    """One micro-batch of this rank."""
    generator = torch.Generator().manual_seed((step * 100 + micro) * world + rank)
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    return ids[:, :-1].to(device), ids[:, 1:].to(device)


def rate_at(step: int) -> float:
    """Warm up, then a cosine."""
    return RATE * (step + 1) / WARMUP if step < WARMUP else RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))


torch.manual_seed(1337)
model: nn.Module = GPT().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
checkpoint = args.out / "ckpt.pt"
first = 0
if checkpoint.exists():
    saved = torch.load(checkpoint, map_location=device)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["step"]
    print(f"resuming at step {first}")
raw = model
if ddp:
    model = DDP(model)

for step in range(first, STEPS):
    hold(args, step)
    for group in optimizer.param_groups:
        group["lr"] = rate_at(step)
    for micro in range(accumulation):
        if ddp:
            model.require_backward_grad_sync = micro == accumulation - 1
        loss = model(*batch_of(step, micro)) / accumulation
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if master:
        print(f"step {step}: loss {loss.item() * accumulation:.4f}")
        torch.save(
            {"model": raw.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, args.out / "ckpt.new"
        )
        (args.out / "ckpt.new").rename(checkpoint)

digest = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in raw.parameters())).hexdigest()
(args.out / f"end-{rank}").write_text(digest)
if ddp:
    destroy_process_group()
