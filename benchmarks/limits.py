"""The machine's limits: how fast PyTorch multiplies matrices and copies memory here.

They are timed like a peer, in the same rounds as the case they judge, so that a machine that slows down slows both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from registry import Case

SIDE = 2048
MATMUL_FLOPS = 2 * SIDE**3

Call = Callable[[], object]


def limit_calls(kind: str, case: Case, device: str = "cpu") -> dict[str, tuple[Call, float]]:
    """Returns what is timed for a limit: name -> (call, the FLOPs or bytes of one call)."""
    if kind == "copy":
        size = large_copy_bytes()
        return {"copy": (_copy(size, device), 2 * size)}
    if kind == "copy same size":
        size = max(1, int(case.bytes) // 2)
        return {"copy same size": (_copy.__wrapped__(size, device), 2 * size)}
    if kind == "matmul f32" or emulated(torch.bfloat16, device):
        return {"matmul f32": (_matmul(torch.float32, device), MATMUL_FLOPS)}
    return {"matmul bf16": (_matmul(torch.bfloat16, device), MATMUL_FLOPS)}


@cache
def emulated(dtype: torch.dtype, device: str = "cpu") -> bool:
    """Returns whether matrix products of `dtype` are slower than float32's: the processor has no instruction for it."""
    wide = dtype in (torch.float32, torch.float64)
    return device == "cpu" and not wide and _small_matmul_seconds(dtype) > 1.1 * _small_matmul_seconds(torch.float32)


@cache
def large_copy_bytes() -> int:
    """Returns the size of one side of the large copy: far beyond every cache, small against memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(256 << 20, 4 * _last_level_cache()), memory // 16)


@cache
def _matmul(dtype: torch.dtype, device: str) -> Call:
    with torch.no_grad():
        a, b = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


@cache
def _copy(size: int, device: str) -> Call:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


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
