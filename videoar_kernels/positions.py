"""Positions (t, h, w) of tokens, for the rotary embedding: of paper S's scales and of paper U's units.

    scales: text token i at (i, i, i), then frame t's token (h, w) of every scale at (t, h, w) + text_len
    units: the latent grid's token (t, h, w) at (t, h, w) + start + text_len, in the order of generation

Source: paper S, Eq. 7; paper U, Sec. 3. The reference is the implementation: positions are made once for a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar_kernels import reference


def multiscale_positions(
    text_len: int,
    frames: int,
    scales: Sequence[tuple[int, int]],
    align: str = "index",
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Returns the positions of a text prefix followed by the scales of every frame (paper S, Eq. 7).

    Args:
        text_len: text tokens; token i stands at (i, i, i).
        frames: frames of the latent video.
        scales: (height, width) of every scale, coarse to fine; tokens of a scale are row-major.
        align: "index": token (h, w) of any scale stands at (t, h, w) + text_len, as in Eq. 7; "grid": a coarse
            scale is spread over the finest, h -> round(h * H / H_k) (half to even), as in Infinity.
        device: where to put the result.

    Returns:
        int64 (text_len + frames * sum(h * w), 3).

    Raises:
        ValueError: an unknown align, no scales, or a negative length.

    Source: paper S, Eq. 7.
    """
    if align not in ("index", "grid"):
        raise ValueError(f'multiscale_positions: expected align "index" or "grid", got {align!r}')
    if not scales or min(min(scale) for scale in scales) < 1 or text_len < 0 or frames < 0:
        raise ValueError(
            f"multiscale_positions: expected at least one scale of positive size and lengths >= 0, "
            f"got text_len {text_len}, frames {frames}, scales {list(scales)}"
        )
    return reference.rope.multiscale_positions(text_len, frames, scales, align, device=device)


def unit_positions(
    grid: tuple[int, int, int],
    *,
    order: Tensor | None = None,
    text_len: int = 0,
    start: tuple[int, int, int] = (0, 0, 0),
    device: torch.device | str | None = None,
) -> Tensor:
    """Returns the positions of a latent grid whose tokens are generated unit after unit (paper U).

    A token keeps its place in the grid whatever the order in which units are generated.

    Args:
        grid: (T, H, W) in tokens.
        order: int64 (n,), row-major grid indices in the order of generation; None: row-major, all of them.
        text_len: text tokens in front, token i at (i, i, i), the grid shifted by text_len as in Eq. 7 of paper S;
            0 where text enters through cross-attention, as in Wan.
        start: position of the grid's first token, for streams that go on.
        device: where to put the result.

    Returns:
        int64 (text_len + n, 3).

    Raises:
        ValueError: a negative size.

    Source: paper U, Sec. 3; Wan 2.1.
    """
    if min(*grid, text_len) < 0:
        raise ValueError(f"unit_positions: expected sizes >= 0, got grid {tuple(grid)}, text_len {text_len}")
    return reference.rope.unit_positions(grid, order=order, text_len=text_len, start=start, device=device)
