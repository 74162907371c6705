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


@cache
def emulated(dtype: torch.dtype, device: str = "cpu") -> bool:
    """Returns whether matrix products of `dtype` are slower than float32's here: the CPU has no instructions for it."""
    return device == "cpu" and _small_matmul_seconds(dtype) > 1.1 * _small_matmul_seconds(torch.float32)


def _small_matmul_seconds(dtype: torch.dtype) -> float:
    a = torch.randn(256, 256, device="cpu").to(dtype)
    out = torch.empty_like(a)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        times.append(time.perf_counter() - start)
    return min(times)


def last_level_cache() -> int:
    """Returns the bytes of the largest CPU cache; 32 MiB where Linux does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return max(sizes, default=32 << 20)


@cache
def large_copy_bytes() -> int:
    """Returns the size of one side of the large copy: far beyond every cache, small against memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(256 << 20, 4 * last_level_cache()), memory // 16)


class Limits:
    """The limit calls of one device; their tensors are made once and kept.

    `calls(case)` gives name -> (call, work per call), work in FLOPs or bytes.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    @cache  # noqa: B019 - one object lives as long as the session
    def matmul(self, dtype: torch.dtype) -> Callable[[], object]:
        with torch.no_grad():
            a, b = (torch.randn(SIDE, SIDE, device=self.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    @cache  # noqa: B019
    def copy(self, size: int) -> Callable[[], object]:
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        return lambda: target.copy_(source)

    def best_matmul(self) -> tuple[str, torch.dtype]:
        """Returns PyTorch's faster precision of bfloat16 and float32."""
        return (
            ("matmul f32", torch.float32) if emulated(torch.bfloat16, self.device) else ("matmul bf16", torch.bfloat16)
        )

    def calls(self, kind: str, case: Case) -> dict[str, tuple[Callable[[], object], float]]:
        """Returns what must be timed for a limit: name -> (call, its FLOPs or bytes)."""
        if kind == "copy":
            size = large_copy_bytes()
            return {"copy": (self.copy(size), 2 * size)}
        if kind == "copy same size":
            size = max(1, int(case.bytes) // 2)
            source = torch.ones(size, dtype=torch.uint8, device=self.device)
            target = torch.zeros_like(source)
            return {"copy same size": (lambda: target.copy_(source), 2 * size)}
        name, dtype = ("matmul f32", torch.float32) if kind == "matmul f32" else self.best_matmul()
        return {name: (self.matmul(dtype), MATMUL_FLOPS)}
