"""From `17x128x128` to a transformer and a tokenizer of that size."""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import NamedTuple

from videoar.next_scale.config import Scales, TransformerConfig
from videoar.tokenizer import TokenizerConfig

# Sides of Infinity's square pyramids at 256 to 1024 pixels; the first six are paper S's at 128.
SIDES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)


class Shape(NamedTuple):
    """A clip in pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def parse_shape(text: str) -> Shape:
    """Reads `frames x height x width`.

    Raises:
        ValueError: if it is something else.
    """
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise ValueError(f"profile: expected --shape frames x height x width, such as 17x128x128, got {text!r}")
    return Shape(*map(int, text.split("x")))


def parse_scales(text: str) -> Scales:
    """Reads sides of squares or heights x widths, coarse to fine: `1,2,4` or `1x1,2x3,4x7`.

    Raises:
        ValueError: if it is something else.
    """
    parts = text.split(",")
    if not all(re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", part) for part in parts):
        raise ValueError(f"profile: expected --scales such as 1,2,4 or 1x1,2x3,4x7, got {text!r}")
    sides = [[int(side) for side in part.split("x")] for part in parts]
    return tuple((side[0], side[-1]) for side in sides)


def scales_of(height: int, width: int) -> Scales:
    """The pyramid of a latent grid: its longer side runs through `SIDES`, the other keeps the proportion.

    The paper gives its scales for 8 x 8 alone, where this agrees with it; its public relatives have such lists.
    """
    longest = max(height, width)
    sides = [*SIDES[: bisect_left(SIDES, longest)], longest]
    return tuple((max(1, round(side * height / longest)), max(1, round(side * width / longest))) for side in sides)


def fitted(
    config: TransformerConfig, tokenizer: TokenizerConfig, shape: Shape | None, scales: Scales | None
) -> tuple[TransformerConfig, TokenizerConfig, Shape]:
    """Both configurations at a clip's size; a missing shape is the one the configuration was made for.

    Raises:
        ValueError: if the shape doesn't fit the tokenizer's strides, or the last scale is not the latent grid.
    """
    time, space = tokenizer.time_stride, tokenizer.space_stride
    if shape is None:
        grid = scales[-1] if scales else config.scales[-1]
        shape = Shape(1 + (config.frames - 1) * time, grid[0] * space, grid[1] * space)
    if (shape.frames - 1) % time or shape.height % space or shape.width % space:
        raise ValueError(
            f"profile: expected --shape of 1 + n * {time} frames and multiples of {space} pixels, got {shape}"
        )
    grid = (shape.height // space, shape.width // space)
    if scales is None:
        scales = config.scales if config.scales[-1] == grid else scales_of(*grid)
    if scales[-1] != grid:
        raise ValueError(f"profile: expected the last of --scales to be {grid[0]}x{grid[1]}, got {scales[-1]}")
    config = config.replace(scales=scales, frames=1 + (shape.frames - 1) // time)
    return config, _with_scales(tokenizer, scales), shape


def _with_scales(tokenizer: TokenizerConfig, scales: Scales) -> TokenizerConfig:
    return TokenizerConfig(**{**vars(tokenizer), "scales": scales})
