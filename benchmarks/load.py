"""What else the processors did while something was timed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Elsewhere:
    """Processors kept busy by others (in units of one core) and taken by the hypervisor; None where unknown."""

    cores: float | None
    stolen: float | None


class Load:
    """Counts from its creation on."""

    def __init__(self) -> None:
        self._start = _processor_seconds(), _own_seconds(), time.perf_counter()

    def elsewhere(self) -> Elsewhere:
        (busy0, stolen0), own0, time0 = self._start
        (busy1, stolen1), own1, time1 = _processor_seconds(), _own_seconds(), time.perf_counter()
        elapsed = time1 - time0
        if busy0 is None or elapsed < 0.2:  # the counters tick 100 times a second
            return Elsewhere(None, None)
        cores = ((busy1 - busy0) - (own1 - own0)) / elapsed
        return Elsewhere(round(max(0.0, cores), 3), round((stolen1 - stolen0) / elapsed, 3))


def _own_seconds() -> float:
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def _processor_seconds() -> tuple[float | None, float | None]:
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None, None
    user, nice, system, _, _, irq, softirq, steal = (int(f) / os.sysconf("SC_CLK_TCK") for f in fields[:8])
    return user + nice + system + irq + softirq, steal
