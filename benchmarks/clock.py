"""Clocks: how long a number of calls takes on a device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

MOST_AHEAD = 2e-3  # seconds
LONG = 50e-3  # seconds
FASTEST_CLOCK = 2e9  # cycles a second; a slower clock only waits longer


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
    """Device time between CUDA events, the L2 cache emptied before every call. Not yet run on a GPU.

    The device idles before the first event until the host has queued the call, so that gaps between launches are in no
    figure; but calls that keep the host busy for longer than `MOST_AHEAD` are timed as their user meets them.
    """

    name, device = "CUDA events, cold L2", "cuda"

    def __init__(self) -> None:
        size = 4 * torch.cuda.get_device_properties().L2_cache_size
        self._flush = torch.zeros(size // 4, dtype=torch.float32, device="cuda")
        self._ahead: WeakKeyDictionary[Callable, float] = WeakKeyDictionary()

    def seconds(self, call: Callable[[], object], iterations: int) -> float:
        if call not in self._ahead:
            self._ahead[call] = host_seconds(call)
        events, ahead = [], self._ahead[call]
        for _ in range(iterations):
            self._flush.sum()  # written lines would have to go back to memory while the call is timed
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            idle(ahead)
            start.record()
            call()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in events) * 1e-3


def host_seconds(call: Callable[[], object]) -> float:
    """How long the host needs to queue a call on an idle device: the best of three, if it is short."""
    least = math.inf
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - begin)
        if least > LONG:
            break
    return least


def idle(seconds: float) -> None:
    """Keeps the current stream waiting for about twice as long, unless that is longer than `MOST_AHEAD`."""
    if 2 * seconds <= MOST_AHEAD:
        torch.cuda._sleep(int(2 * seconds * FASTEST_CLOCK))


def clock_for(device: str) -> Clock:
    """Returns the clock of a device type."""
    return CudaClock() if device == "cuda" else CpuClock()
