"""What is asked of ops on a GPU that do little but move memory: large tensors, and most of what a copy moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from registry import Arithmetic, on_gpu

LEAST_BYTES = 256e6  # of the largest tensor
SHARE = 0.8  # of a copy's rate
LEAST_RATIO = {"torch.compile": 1.0}


def gpu_bars(peers: Iterable[str] = ()) -> dict[str, float]:
    """The bars of such an op on a GPU, as far as these are its peers."""
    return {"limit": SHARE} | {name: LEAST_RATIO[name] for name in peers if name in LEAST_RATIO}


def judged_by(limit: str | Arithmetic, bars: Mapping[str, float]) -> dict[str, object]:
    """Limit and bars of a case: those of this processor, or on a GPU the copy's.

    How fast the host draws random numbers, say, is no limit of a GPU.
    """
    return {"limit": "copy", "bars": gpu_bars(bars)} if on_gpu() else {"limit": limit, "bars": bars}
