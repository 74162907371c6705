"""Which of the machine's limits a case is judged by."""

from __future__ import annotations

import torch
from registry import Call, Case

from videoar.profiling.limits import copy_limit, emulated, matmul_limit, sized_copy_limit

__all__ = ["emulated", "limit_calls"]


def limit_calls(kind: str, case: Case, device: str = "cpu") -> dict[str, tuple[Call, float]]:
    """Returns what is timed for a limit: name -> (call, the FLOPs or bytes of one call)."""
    if kind == "copy":
        limit = copy_limit(device)
    elif kind == "copy same size":
        limit = sized_copy_limit(max(1, int(case.bytes) // 2), device, kind)
    else:
        limit = matmul_limit(torch.float32 if kind == "matmul f32" else torch.bfloat16, device)
    return {limit.name: (limit.call, limit.work)}
