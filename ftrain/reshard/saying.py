"""What ranks tell each other before they trust a state: bytes to rank 0, and its verdict back. Never a pickle."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ftrain.exchange import exchange_device

TEXT_BYTES_MAX = 4096


def gathered(content: bytes) -> list[bytes]:
    """A collective: from all ranks, on rank 0; on the others nothing."""
    device, world_size = exchange_device(), dist.get_world_size()
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size)]
    dist.all_gather(lengths, torch.tensor([len(content)], device=device))
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pages = [torch.empty_like(padded) for _ in range(world_size)] if dist.get_rank() == 0 else None
    dist.gather(padded, pages, dst=0)
    return [each[: int(n)].cpu().numpy().tobytes() for each, n in zip(pages or (), lengths, strict=False)]


def broadcast_text(text: str) -> str:
    """A collective: rank 0's, to all."""
    page = torch.zeros(TEXT_BYTES_MAX, dtype=torch.uint8)
    content = text.encode()[:TEXT_BYTES_MAX]
    page[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else page[:0]
    page = page.to(exchange_device())
    dist.broadcast(page, src=0)
    return page.cpu().numpy().tobytes().rstrip(b"\0").decode(errors="replace")
