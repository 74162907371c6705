"""rope_3d in Triton: one program rotates some heads of one token, from a small table of cosines and sines.

Source and layout as in `videoar_kernels.rope`. Not yet run on a GPU: tests interpret it and compile it ahead of time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from videoar_kernels.reference.rope import default_dims, rope_angles
from videoar_kernels.triton.attention_launch import on_device

HEADS_PER_PROGRAM = 16


@triton.jit
def rope_kernel(
    x_pointer,
    out_pointer,
    cosines_pointer,
    sines_pointer,
    heads,
    length,
    x_batch,
    x_head,
    x_token,
    out_batch,
    out_head,
    out_token,
    table_batch,
    PAIRS: tl.constexpr,  # of a head
    PADDED: tl.constexpr,  # the power of 2 from PAIRS on
    HEADS: tl.constexpr,  # of a program
    INTERLEAVED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    sample, position = token // length, token % length
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    pair = tl.arange(0, PADDED)
    table = sample * table_batch + position * PAIRS + pair
    cosine = tl.load(cosines_pointer + table, mask=pair < PAIRS, other=0.0)[None, :]
    sine = tl.load(sines_pointer + table, mask=pair < PAIRS, other=0.0)[None, :]
    x_row = x_pointer + sample * x_batch + position * x_token + head[:, None] * x_head
    out_row = out_pointer + sample * out_batch + position * out_token + head[:, None] * out_head
    if INTERLEAVED:
        column = tl.arange(0, 2 * PADDED)[None, :]
        mask = (head[:, None] < heads) & (column < 2 * PAIRS)
        row = tl.load(x_row + column, mask=mask, other=0.0).to(cosine.dtype)  # (HEADS, 2 * PADDED)
        a, b = tl.split(tl.reshape(row, (HEADS, PADDED, 2)))
        turned = tl.join(a * cosine - b * sine, a * sine + b * cosine)
        turned = tl.reshape(turned, (HEADS, 2 * PADDED))
        tl.store(out_row + column, turned.to(out_pointer.dtype.element_ty), mask=mask)
    else:
        mask = (head[:, None] < heads) & (pair[None, :] < PAIRS)
        a = tl.load(x_row + pair[None, :], mask=mask, other=0.0).to(cosine.dtype)  # (HEADS, PADDED)
        b = tl.load(x_row + PAIRS + pair[None, :], mask=mask, other=0.0).to(cosine.dtype)
        turned_a = (a * cosine - b * sine).to(out_pointer.dtype.element_ty)
        turned_b = (a * sine + b * cosine).to(out_pointer.dtype.element_ty)
        tl.store(out_row + pair[None, :], turned_a, mask=mask)
        tl.store(out_row + PAIRS + pair[None, :], turned_b, mask=mask)


def rotate(
    x: Tensor,
    out: Tensor,
    positions: Tensor,
    dims: Sequence[int] | None,
    theta: float,
    interleaved: bool,
    inverse: bool,
) -> None:
    """Writes the rotation of x (B, H, L, D), last dimension contiguous, into out, which may be x."""
    batch, heads, length, head_dim = x.shape
    if x.numel() == 0:
        return
    table_dtype = torch.promote_types(x.dtype, torch.float32)
    dims = default_dims(head_dim) if dims is None else dims
    angles = rope_angles(positions, dims, theta)  # (L, D / 2) or (B, L, D / 2)
    cosines = angles.cos().to(table_dtype).contiguous()
    sines = (-angles if inverse else angles).sin().to(table_dtype).contiguous()
    heads_per_program = min(HEADS_PER_PROGRAM, triton.next_power_of_2(heads))
    grid = (batch * length, triton.cdiv(heads, heads_per_program))
    with on_device(x):
        rope_kernel[grid](
            x,
            out,
            cosines,
            sines,
            heads,
            length,
            *x.stride()[:3],
            *out.stride()[:3],
            0 if positions.ndim == 2 else length * (head_dim // 2),
            PAIRS=head_dim // 2,
            PADDED=triton.next_power_of_2(head_dim // 2),
            HEADS=heads_per_program,
            INTERLEAVED=interleaved,
        )


def rope_3d(
    x: Tensor,
    positions: Tensor,
    *,
    dims: Sequence[int] | None = None,
    theta: float = 10000.0,
    interleaved: bool = True,
) -> Tensor:
    """Rotates x (B, H, L, D) by positions (L, 3) or (B, L, 3); see `videoar_kernels.rope_3d`."""
    return operator(x, positions, dims, theta, interleaved, False)


def operator(
    x: Tensor, positions: Tensor, dims: Sequence[int] | None, theta: float, interleaved: bool, inverse: bool
) -> Tensor:
    """`rope_3d` with the arguments of the registered operator."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rotate(x, out, positions, dims, theta, interleaved, inverse)
    return out


def operator_(
    x: Tensor, positions: Tensor, dims: Sequence[int] | None, theta: float, interleaved: bool, inverse: bool
) -> None:
    """`rope_3d_` with the arguments of the registered operator."""
    rotate(x, x, positions, dims, theta, interleaved, inverse)
