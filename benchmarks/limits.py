"""Which of the machine's limits a case is judged by."""

from __future__ import annotations

import torch
from registry import Call, Case

from videoar.profiling import limits
from videoar.profiling.limits import copy_limit, matmul_limit, sized_copy_limit


def emulated(dtype: torch.dtype, device: str | None = None) -> bool:
    """Returns whether products of `dtype` are slower than float32's on a device: without one, where cases are made."""
    return limits.emulated(dtype, device or torch.get_default_device().type)


def limit_calls(kind: str, case: Case, device: str = "cpu") -> dict[str, tuple[Call, float]]:
    """Returns what is timed for a limit: name -> (call, the FLOPs or bytes of one call)."""
    if kind == "copy":
        limit = copy_limit(device)
    elif kind == "copy same size":
        limit = sized_copy_limit(max(1, int(case.bytes) // 2), device, kind)
    else:
        limit = matmul_limit(torch.float32 if kind == "matmul f32" else torch.bfloat16, device)
    return {limit.name: (limit.call, limit.work)}
