"""Clocks: how long a number of calls takes on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch


class Clock(Protocol):
    """Times `iterations` calls; the caller has warmed them up."""

    name: str
    device: str

    def seconds(self, call: Callable[[], object], iterations: int) -> float: ...


class CpuClock:
    """Wall time of a loop of calls."""

    name, device = "time.perf_counter", "cpu"

    def seconds(self, call: Callable[[], object], iterations: int) -> float:
        start = time.perf_counter()
        for _ in range(iterations):
            call()
        return time.perf_counter() - start


class CudaClock:
    """Device time between CUDA events, the L2 cache emptied before every call. Not yet run on a GPU."""

    name, device = "CUDA events, cold L2", "cuda"

    def __init__(self) -> None:
        size = 4 * torch.cuda.get_device_properties().L2_cache_size
        self._flush = torch.empty(size, dtype=torch.int8, device="cuda")

    def seconds(self, call: Callable[[], object], iterations: int) -> float:
        events = []
        for _ in range(iterations):
            self._flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in events) * 1e-3


def clock_for(device: str) -> Clock:
    """Returns the clock of a device type."""
    return CudaClock() if device == "cuda" else CpuClock()
