"""What the pyramid's functions ask of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar_kernels.bit_checks import check_float
from videoar_kernels.reference.pyramid import Scale


def flat(scales: Sequence[Scale]) -> list[int]:
    """Returns scales as h, w, h, w, ...; nothing, which every operator refuses, where they are no pairs."""
    try:
        return [side for h, w in scales for side in (h, w)]
    except (TypeError, ValueError):
        return []


def pairs(sides: Sequence[int]) -> list[Scale]:
    """Returns h, w, h, w, ... as pairs."""
    return list(zip(sides[::2], sides[1::2], strict=True))


def token_count(sides: Sequence[int]) -> int:
    """Returns how many tokens a frame has, of scales h, w, h, w, ..."""
    return sum(h * w for h, w in pairs(sides))


def check_scales(name: str, scales: Sequence[Scale], size: Sequence[int] | None, *, ends_full: bool = False) -> None:
    """Raises ValueError unless scales are pairs of whole numbers that fit planes of `size`."""
    sides = flat(scales)
    if not sides or any(not _is_whole(side) or side < 1 for side in sides):
        raise ValueError(f"{name}: expected scales as pairs (h, w) of positive integers, got {scales}")
    if size is None:
        return
    height, width = size
    if any(h > height or w > width for h, w in scales):
        raise ValueError(f"{name}: expected scales within {(height, width)}, got {scales}")
    if ends_full and tuple(scales[-1]) != (height, width):
        raise ValueError(f"{name}: expected the last scale to be {(height, width)}, got {tuple(scales[-1])}")


def _is_whole(side: object) -> bool:
    return isinstance(side, int) or hasattr(side, "__index__")


def check_planes(name: str, argument: str, x: Tensor) -> None:
    """Raises unless x is (B, T, H, W, d >= 1) of a floating type."""
    check_float(name, argument, x)
    if x.ndim != 5 or x.shape[-1] < 1:
        raise ValueError(f"{name}: expected {argument} of shape (B, T, H, W, d >= 1), got {tuple(x.shape)}")


def check_keep(keep: Tensor, most: int) -> None:
    """Raises ValueError unless every number of scales lies within [0, most]; looked at on the CPU only."""
    if keep.is_cpu and not torch.compiler.is_compiling():
        outside = keep[(keep < 0) | (keep > most)]
        if outside.numel():
            raise ValueError(f"pyramid_decode: expected keep within [0, {most}], got {outside.flatten()[0].item()}")
