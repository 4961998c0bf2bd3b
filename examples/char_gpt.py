"""A small GPT that learns Python, character by character, and survives what happens to its machines.

    ftrain run --local-nodes 4 --nproc-per-node 1 --spares 1 examples/char_gpt.py --steps 200
    ftrain inject kill-worker --rank 2          # in a second terminal, while it trains
    ftrain inject kill-node --node 1

    torchrun --nproc-per-node 4 examples/char_gpt.py      # trains as well: nothing protects it
    python examples/char_gpt.py                           # the same, alone

The text is what every machine with Python has: the source files of its standard library. Everything is a function
of --seed, so two runs of the same world size end with the same parameters to the last bit, however many faults
one of them had: compare what --hash-file wrote. All that ftrain needs is in train(): track, steps, sampler.
"""

import argparse
import hashlib
import json
import math
import os
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain

VOCABULARY = 128  # ASCII; the few other characters of the standard library are left out
HELD_OUT = 64  # the last samples of the text are for the final loss only

# B batch, T characters of context, C width, H heads, V vocabulary


class Block(nn.Module):
    """Causal self-attention, then a perceptron, each added to the stream."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        qkv = self.qkv(self.norm_attention(x_BTC)).view(B, T, 3, self.heads, C // self.heads)
        q_BHTc, k_BHTc, v_BHTc = qkv.permute(2, 0, 3, 1, 4)
        mixed_BHTc = F.scaled_dot_product_attention(q_BHTc, k_BHTc, v_BHTc, is_causal=True)
        x_BTC = x_BTC + self.dropout(self.merge(mixed_BHTc.transpose(1, 2).reshape(B, T, C)))
        x_BTC = x_BTC + self.dropout(self.mlp(self.norm_mlp(x_BTC)))
        return x_BTC


class CharGPT(nn.Module):
    """Characters in, the loss of predicting each next one out."""

    def __init__(self, width: int, layers: int, context: int, dropout: float) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, max(1, width // 32), dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        positions_T = torch.arange(inputs_BT.shape[1], device=inputs_BT.device)
        x_BTC = self.dropout(self.characters(inputs_BT) + self.positions(positions_T))
        logits_BTV = self.head(self.norm(self.blocks(x_BTC)))
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def standard_library_text(max_bytes: int) -> bytes:
    """The standard library's own source, in the order of file names, up to ``max_bytes``."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= max_bytes:
            break
    return bytes(byte for byte in text[:max_bytes] if byte < VOCABULARY)


def samples(text: bytes, context: int) -> Tensor:
    """The text as rows of ``context + 1`` characters: a sample is a row."""
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return ids[: len(ids) // (context + 1) * (context + 1)].view(-1, context + 1)


def batch(rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and, one character on, the targets."""
    rows = rows.to(device, torch.long)
    return rows[:, :-1], rows[:, 1:]


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    args = parse_arguments()
    if ctx.device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.use_deterministic_algorithms(True)  # atomics in a backward would end the promise of equal bits
    torch.manual_seed(args.seed)
    data = samples(standard_library_text(args.text_bytes), args.context)
    training, held_out = data[:-HELD_OUT], data[-HELD_OUT:]

    net = CharGPT(args.width, args.layers, args.context, args.dropout).to(ctx.device)
    model = DDP(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    sampler = ftrain.ElasticSampler(len(training), global_batch=args.batch, seed=args.seed)
    ctx.track(model=model, optimizer=optimizer, scheduler=scheduler, sampler=sampler)

    torch.manual_seed(args.seed + 1 + ctx.rank)  # dropout differs between ranks; a restore overrules this
    batches = iter(sampler)
    for step in ctx.steps(args.steps):
        loss = model(*batch(training[next(batches)], ctx.device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if ctx.rank == 0 and step % args.log_every == 0:
            ctx.log(loss=loss.item())

    if ctx.rank == 0:
        finish(net, *batch(held_out, ctx.device), args)


def finish(net: nn.Module, inputs_BT: Tensor, targets_BT: Tensor, args: argparse.Namespace) -> None:
    """Say how well it learned, and prove with what parameters."""
    net.eval()
    with torch.no_grad():
        loss = net(inputs_BT, targets_BT).item()
    digest = hashlib.sha256()
    for name, parameter in net.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    print(f"held-out loss {loss:.4f} (guessing: {math.log(VOCABULARY):.4f}), parameters {digest.hexdigest()[:16]}")
    if args.hash_file is not None:
        result = {"sha256": digest.hexdigest(), "steps": args.steps, "loss": loss}
        args.hash_file.write_text(json.dumps(result) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small character-level GPT on Python's standard library.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=64, help="a multiple of 32")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--context", type=int, default=64, help="characters that the model sees")
    parser.add_argument("--batch", type=int, default=32, help="samples per step, over all ranks")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text-bytes", type=int, default=2_000_000, help="how much of the standard library to read")
    parser.add_argument("--log-every", type=int, default=10, help="steps between two reports of the loss")
    parser.add_argument("--hash-file", type=Path, help="where rank 0 writes the final parameters' sha256, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matmuls on GPUs ask for
    train()
