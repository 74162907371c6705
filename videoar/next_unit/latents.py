"""Between latent videos and sequences of patches in the order of generation.

A token is one patch, flattened as (p_t, p_h, p_w, channels). Source: paper U, Sec. 3.2; Wan 2.1's patches of 1 x 2 x 2.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from videoar.next_unit.layout import Grid, UnitLayout


def patch_grid(latents: Tensor, patch: Grid) -> Grid:
    """The grid (T, H, W), in tokens, of latents (B, C, T', H', W').

    Raises:
        ValueError: another shape, or a size that the patch does not divide.
    """
    sizes = latents.shape[2:]
    if latents.ndim != 5 or any(size % p for size, p in zip(sizes, patch, strict=True)):
        raise ValueError(
            f"patch_grid: expected latents (B, C, T, H, W) that patches of {patch} divide, got {tuple(latents.shape)}"
        )
    return tuple(size // p for size, p in zip(sizes, patch, strict=True))


def to_sequence(latents: Tensor, layout: UnitLayout, patch: Grid) -> Tensor:
    """The clip as a sequence of units; a pyramid's coarser levels are resized by averaging over areas.

    Args:
        latents: (B, C, T', H', W') of the layout's grid.
        layout: the units.
        patch: (p_t, p_h, p_w).

    Returns:
        (B, L, p_t * p_h * p_w * C).

    Raises:
        ValueError: latents of another grid.
    """
    if patch_grid(latents, patch) != layout.grid:
        raise ValueError(f"to_sequence: expected latents of grid {layout.grid}, got {patch_grid(latents, patch)}")
    cells = []
    for level in layout.levels:
        size = [cell * p for cell, p in zip(level, patch, strict=True)]
        cells.append(_patches(latents if level == layout.grid else interpolate(latents, size, mode="area"), patch))
    return torch.cat(cells, dim=1)[:, layout.permutation.to(latents.device)]


def from_sequence(tokens: Tensor, layout: UnitLayout, patch: Grid) -> Tensor:
    """The clip that a sequence holds; of a pyramid, its finest level.

    Args:
        tokens: (B, L, p_t * p_h * p_w * C).
        layout: the units.
        patch: (p_t, p_h, p_w).

    Returns:
        (B, C, T', H', W').

    Raises:
        ValueError: a sequence of another length, or a width that the patch does not divide.
    """
    cells = prod(patch)
    if tokens.ndim != 3 or tokens.shape[1] != layout.length or tokens.shape[2] % cells:
        expected = f"(B, {layout.length}, {cells} * C)"
        raise ValueError(f"from_sequence: expected tokens of shape {expected}, got {tuple(tokens.shape)}")
    frames, height, width = layout.grid
    finest = layout.inverse[-frames * height * width :].to(tokens.device)
    return from_cells(tokens[:, finest].unflatten(1, layout.grid), patch)


def from_cells(cells: Tensor, patch: Grid) -> Tensor:
    """Latents (B, C, T', H', W') of the grid's patches (B, T, H, W, p_t * p_h * p_w * C)."""
    x = cells.unflatten(-1, (*patch, -1))  # (B, T, H, W, pt, ph, pw, C)
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _patches(x: Tensor, patch: Grid) -> Tensor:
    for axis, p in zip((2, 4, 6), patch, strict=True):
        x = x.unflatten(axis, (-1, p))  # (B, C, T, pt, H, ph, W, pw)
    return x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)
