"""What kind of thing an argument must be, before anything is asked of it."""

from __future__ import annotations

import operator
from math import isfinite
from numbers import Real

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


def finite(op: str, name: str, value: object) -> float:
    """Returns a number as a float; TypeError where it is none, ValueError where it is infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: expected {name} as float, got {value!r}")
    if not isfinite(value):
        raise ValueError(f"{op}: expected a finite {name}, got {value!r}")
    return float(value)
