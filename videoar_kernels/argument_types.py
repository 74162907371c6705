"""What kind of thing an argument must be, before anything is asked of it."""

from __future__ import annotations

import operator

import torch
from torch import Tensor


def check_tensor(op: str, name: str, value: object) -> None:
    """Raises TypeError unless the argument `name` of function `op` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} as a tensor, got {type(value).__name__}")


def whole(op: str, name: str, value: object) -> int:
    """Returns a whole number as an int; TypeError where it is none."""
    if isinstance(value, torch.SymInt):
        return value
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{op}: expected {name} as int, got {value!r}")
