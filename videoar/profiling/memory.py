"""How much memory a clip takes at its peak."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(run: Callable[[], object], device: str) -> dict[str, int]:
    """Runs something and returns bytes by name, weights and everything else that is alive included."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return {
            "GPU memory, allocated": torch.cuda.max_memory_allocated(),
            "GPU memory, reserved": torch.cuda.max_memory_reserved(),
        }
    forgotten = _forget_peak()
    run()
    name = "resident memory of the process" if forgotten else "resident memory of the process, loading included"
    return {name: _peak() if forgotten else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _forget_peak() -> bool:
    """Tells Linux to count the peak from now on; returns whether it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _peak() > 0


def _peak() -> int:
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        return 0
    return int(found.group(1)) * 1024 if found else 0
