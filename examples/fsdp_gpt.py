"""The small GPT of char_gpt.py, sharded: FSDP2, and with --tp tensor parallelism inside it.

    ftrain run --local-nodes 2 --nproc-per-node 2 examples/fsdp_gpt.py --steps 200
    ftrain run --local-nodes 2 --nproc-per-node 2 examples/fsdp_gpt.py --steps 200 --tp 2
    ftrain inject kill-worker --rank 2          # in a second terminal, while it trains

    torchrun --nproc-per-node 4 examples/fsdp_gpt.py      # trains as well: nothing protects it

No rank holds a whole parameter, nor its moments: a snapshot keeps each rank's own part, and a worker that is lost gets
its part back. With --durable URL the parts become one standard checkpoint, which plain torch reads at any world size.
As in char_gpt.py two runs of the same world size end with the same bits, whatever one of them went through.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from char_gpt import HELD_OUT, CharGPT, batch, samples, standard_library_text
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ftrain


def shard(net: CharGPT, mesh: DeviceMesh) -> CharGPT:
    """Cut the perceptrons over ``tp``; then everything, block by block, over ``dp``."""
    if mesh["tp"].size() > 1:
        for block in net.blocks:
            parallelize_module(block, mesh["tp"], {"mlp.0": ColwiseParallel(), "mlp.2": RowwiseParallel()})
    for block in net.blocks:
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(net, mesh=mesh["dp"])
    return net


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    args = parse_arguments()
    if ctx.device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    data = samples(standard_library_text(args.text_bytes), args.context)
    training, held_out = data[:-HELD_OUT], data[-HELD_OUT:]

    dp = ctx.world_size // args.tp
    mesh = init_device_mesh(ctx.device.type, (dp, args.tp), mesh_dim_names=("dp", "tp"))
    model = shard(CharGPT(args.width, args.layers, args.context, dropout=0.0).to(ctx.device), mesh)
    # With tensor parallelism there are DTensors of two meshes, which foreach and fused refuse to take together.
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, foreach=args.tp == 1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    ctx.track(model=model, optimizer=optimizer, scheduler=scheduler)

    place = mesh["dp"].get_local_rank()  # ranks of one tensor-parallel group work on the same samples
    for step in ctx.steps(args.steps):
        chosen = torch.randint(len(training), (args.batch,), generator=torch.Generator().manual_seed(step))
        loss = model(*batch(training[chosen[place::dp]], ctx.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if ctx.rank == 0 and step % args.log_every == 0:
            ctx.log(loss=loss.item())
    finish(ctx, model, held_out, args)


@torch.no_grad()
def finish(ctx: ftrain.Context, model: nn.Module, held_out: torch.Tensor, args: argparse.Namespace) -> None:
    """Say how well it learned, and prove with what parameters; each is gathered by all ranks, one at a time."""
    loss = model(*batch(held_out, ctx.device)).item()
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        digest.update(name.encode() + whole.cpu().contiguous().numpy().tobytes())
    if ctx.rank == 0:
        print(f"held-out loss {loss:.4f}, parameters {digest.hexdigest()[:16]}")
        if args.hash_file is not None:
            result = {"sha256": digest.hexdigest(), "steps": args.steps, "loss": loss}
            args.hash_file.write_text(json.dumps(result) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small character-level GPT, sharded over all ranks.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tp", type=int, default=1, help="ranks that share each perceptron; divides the world size")
    parser.add_argument("--width", type=int, default=64, help="a multiple of 32")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--context", type=int, default=64, help="characters that the model sees")
    parser.add_argument("--batch", type=int, default=32, help="samples per step, over all ranks")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text-bytes", type=int, default=2_000_000, help="how much of the standard library to read")
    parser.add_argument("--log-every", type=int, default=10, help="steps between two reports of the loss")
    parser.add_argument("--hash-file", type=Path, help="where rank 0 writes the final parameters' sha256, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    train()
