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
from videoar_kernels.argument_types import check_tensor, whole
from videoar_kernels.pyramid_checks import check_scales


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
        ValueError: an unknown align, no scales, or a negative length. TypeError: one that is no integer.

    Source: paper S, Eq. 7.
    """
    if align not in ("index", "grid"):
        raise ValueError(f'multiscale_positions: expected align "index" or "grid", got {align!r}')
    text_len = whole("multiscale_positions", "text_len", text_len)
    frames = whole("multiscale_positions", "frames", frames)
    check_scales("multiscale_positions", scales, None)
    if text_len < 0 or frames < 0:
        raise ValueError(
            f"multiscale_positions: expected text_len and frames >= 0, got text_len {text_len} and frames {frames}"
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
        ValueError: a negative size, or an order that is no list of indices. TypeError: a size that is no integer.

    Source: paper U, Sec. 3; Wan 2.1.
    """
    text_len = whole("unit_positions", "text_len", text_len)
    grid, start = _triple("grid", grid), _triple("start", start)
    if min(*grid, text_len) < 0:
        raise ValueError(f"unit_positions: expected sizes >= 0, got grid {grid}, text_len {text_len}")
    if order is not None:
        check_tensor("unit_positions", "order", order)
        if order.dtype != torch.int64 or order.ndim != 1:
            raise ValueError(
                f"unit_positions: expected order of int64 and one dimension, got {order.dtype} {tuple(order.shape)}"
            )
    return reference.rope.unit_positions(grid, order=order, text_len=text_len, start=start, device=device)


def _triple(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(sizes, Sequence) or len(sizes) != 3:
        raise ValueError(f"unit_positions: expected {name} as three numbers (t, h, w), got {sizes!r}")
    return tuple(whole("unit_positions", name, size) for size in sizes)
