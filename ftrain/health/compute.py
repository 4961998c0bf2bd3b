"""How fast, and how rightly, processors and accelerators multiply matrices and move bytes.

Rightly: matrices of small whole numbers have products that floating point holds exactly, whatever the order of the
sums and the hardware, so that one wrong bit is a wrong processor. Each product is checked with Freivalds' test: C = AB
only if Cx = A(Bx), which costs far less than the product; a wrong C passes with 8 random x in 1 of 256 cases. A
product of fractions is hashed, too: its last bits depend on hardware and library, so it is only compared with others.
"""

from __future__ import annotations

import hashlib
import time

import torch

from ftrain.health.words import GpuFigures

_CPU_SIZE = 512
_CPU_SECONDS = 0.3
_WHOLE_MAX = 7
"""512 x 7 x 7, summed up 512 times with both signs: below 2^24, which float32 holds exactly."""
_COPY_BYTES = 64 << 20
_COPIES = 4
_GPU_SIZE, _GPU_INNER = 4096, 2048
"""Entries -1, 0, 1: sums up to 2048, which float16 holds exactly."""
_GPU_PRODUCTS, _GPU_CHECKED = 20, 4
_GPU_COPY_BYTES = 256 << 20


def cpu() -> tuple[float, float, bool, str]:
    """(GFLOP per processor second, share of the processor that it got, whether all was right, hash of fractions)."""
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(4)
    a, b = (torch.randint(-_WHOLE_MAX, _WHOLE_MAX + 1, (_CPU_SIZE, _CPU_SIZE), generator=random) for _ in "ab")
    bits = hashlib.sha256(((a / 9) @ (b / 11)).numpy().tobytes()).hexdigest()[:16]
    a, b = a.float(), b.float()
    product, exact = a @ b, True
    began, began_cpu = time.perf_counter(), time.process_time()
    products, seconds = 0, 0.0
    while seconds < _CPU_SECONDS:
        before = time.process_time()
        torch.matmul(a, b, out=product)
        seconds += time.process_time() - before
        products += 1
        exact = exact and _is_product(a, b, product, random)
    share = min(1.0, (time.process_time() - began_cpu) / (time.perf_counter() - began))
    return products * 2 * _CPU_SIZE**3 / 1e9 / seconds, share, exact, bits


def _is_product(a: torch.Tensor, b: torch.Tensor, product: torch.Tensor, random: torch.Generator) -> bool:
    signs = (torch.randint(0, 2, (b.shape[1], 8), generator=random) * 2 - 1).to(b.device, torch.float32)
    return torch.equal(product.float() @ signs, a.float() @ (b.float() @ signs))


def memory_gb_per_second() -> float:
    """Copying, by one thread: bytes read and written; the best of some, since the first touches fresh pages."""
    torch.set_num_threads(1)
    source, target = (torch.ones(_COPY_BYTES, dtype=torch.uint8) for _ in "st")
    best = 0.0
    for _ in range(_COPIES):
        began = time.process_time()
        target.copy_(source)
        best = max(best, 2 * _COPY_BYTES / 1e9 / (time.process_time() - began))
    return best


def gpus() -> tuple[GpuFigures, ...]:
    """Every accelerator that this process sees, one after the other."""
    return tuple(_gpu(index) for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))


def _gpu(index: int) -> GpuFigures:
    name = f"cuda:{index}"
    try:
        name = torch.cuda.get_device_name(index)
        rate, exact = _gpu_matmul(torch.device("cuda", index))
        return GpuFigures(
            name=name, matmul_tflops=rate, exact=exact, memory_gb_per_second=_gpu_copy(torch.device("cuda", index))
        )
    except RuntimeError as error:  # torch's errors of a device are of this kind, too little memory among them
        return GpuFigures(name=name, failure=str(error).splitlines()[0])


def _gpu_matmul(device: torch.device) -> tuple[float, bool]:
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    random = torch.Generator().manual_seed(4)
    shapes = ((_GPU_SIZE, _GPU_INNER), (_GPU_INNER, _GPU_SIZE))
    a, b = (torch.randint(-1, 2, shape, generator=random).to(device, torch.float16) for shape in shapes)
    product = a @ b
    exact = all(_is_product(a, b, torch.matmul(a, b, out=product), random) for _ in range(_GPU_CHECKED))
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(_GPU_PRODUCTS):
        torch.matmul(a, b, out=product)
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    exact = exact and _is_product(a, b, product, random)
    return _GPU_PRODUCTS * 2 * _GPU_SIZE**2 * _GPU_INNER / 1e12 / seconds, exact


def _gpu_copy(device: torch.device) -> float:
    source, target = (torch.ones(_GPU_COPY_BYTES, dtype=torch.uint8, device=device) for _ in "st")
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(_COPIES):
        target.copy_(source)
    torch.cuda.synchronize(device)
    return 2 * _COPIES * _GPU_COPY_BYTES / 1e9 / (time.perf_counter() - began)
