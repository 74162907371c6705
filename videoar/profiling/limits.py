"""The machine's limits: how fast PyTorch multiplies matrices and copies memory here.

The profiler and the benchmarks time them in the same rounds as what they judge, so that a machine that slows down slows
both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch


class Limit(NamedTuple):
    """A call to time, and the FLOPs or bytes (read plus written) of one call."""

    name: str
    call: Callable[[], object]
    work: float


@cache
def matmul_limit(dtype: torch.dtype, device: str = "cpu") -> Limit:
    """A large product of square matrices in `dtype`, or in float32 where the processor only emulates `dtype`."""
    if emulated(dtype, device):
        return matmul_limit(torch.float32, device)
    side = 8192 if device == "cuda" else 2048
    with torch.no_grad():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return Limit(f"matmul {dtype_name(dtype)}", lambda: torch.mm(a, b, out=out), 2 * side**3)


@cache
def copy_limit(device: str = "cpu") -> Limit:
    """A copy far beyond every cache."""
    return sized_copy_limit(large_copy_bytes(), device, "copy")


def sized_copy_limit(size: int, device: str, name: str) -> Limit:
    """A copy of `size` bytes."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Limit(name, lambda: target.copy_(source), 2 * size)


@cache
def emulated(dtype: torch.dtype, device: str = "cpu") -> bool:
    """Returns whether matrix products of `dtype` are slower than float32's: the processor has no instruction for it."""
    if device != "cpu" or dtype in (torch.float32, torch.float64):
        return False
    return _small_matmul_seconds(dtype) > 1.1 * _small_matmul_seconds(torch.float32)


def float32_products() -> str:
    """How PyTorch is set to multiply float32 on an NVIDIA GPU: TF32 keeps 11 of 24 bits."""
    kinds = {"matrix products": torch.backends.cuda.matmul, "convolutions": torch.backends.cudnn}
    said = (f"{kind} in {'TF32' if backend.allow_tf32 else 'float32'}" for kind, backend in kinds.items())
    return f"What is float32 on the GPU is multiplied as PyTorch is set: {', '.join(said)}."


@cache
def large_copy_bytes() -> int:
    """Returns the size of one side of the large copy: far beyond every cache, small against memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(256 << 20, 4 * _last_level_cache()), memory // 16)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns `bf16`, `f32`, `f16`, or PyTorch's name."""
    short = {torch.bfloat16: "bf16", torch.float32: "f32", torch.float16: "f16"}
    return short.get(dtype, str(dtype).removeprefix("torch."))


def _small_matmul_seconds(dtype: torch.dtype) -> float:
    a = torch.randn(256, 256, device="cpu").to(dtype)
    out = torch.empty_like(a)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        times.append(time.perf_counter() - start)
    return min(times)


def _last_level_cache() -> int:
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return max(sizes, default=32 << 20)
