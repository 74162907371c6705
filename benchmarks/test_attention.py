"""Attention forward under the masks of both papers, many queries; and its time against the mask's density."""

from __future__ import annotations

from collections.abc import Iterator

import attention_peers as peers
import torch
from closeness import assert_close
from limits import emulated
from registry import Call, Case, cases, on_gpu
from torch import Tensor

from videoar_kernels import RangeMask, library, range_attention, reference

HEADS = 16
SCALES = [(1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)]  # paper S, UCF-101
LARGE = [(1, 1), (2, 2), (4, 4), (6, 6), (9, 9), (14, 14), (20, 20), (29, 29)]


def ucf(frames: int, window: int | None = None, keep: Tensor | None = None) -> RangeMask:
    return RangeMask.multiscale(32, frames, SCALES, window=window, frame_keep=keep)


def kept(frames: int, probability: float) -> Tensor:
    return torch.rand(frames, frames, generator=torch.Generator("cpu").manual_seed(0), device="cpu") < probability


def inputs(mask: RangeMask, head_dim: int, dtype: torch.dtype, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(1, heads, mask.q_len, head_dim).to(dtype) for _ in range(3))


def verifier(mask: RangeMask, q: Tensor, k: Tensor, v: Tensor) -> Call:
    """Compares some queries of two heads with float64 attention over those queries' keys."""

    def verify() -> None:
        out = range_attention(q, k, v, mask)
        rows = some_rows(mask.q_len)
        few = RangeMask.from_dense(torch.stack([seen(mask, row) for row in rows]))
        for head in (0, q.shape[1] - 1):
            chosen = [x[:, head : head + 1].double() for x in (q[:, :, rows], k, v)]
            exact = reference.attention.range_attention(*chosen, few)
            low = reference.attention.range_attention(*(x.to(q.dtype) for x in chosen), few)
            assert_close(out[:, head : head + 1, rows], exact, low)

    return verify


def some_rows(length: int) -> list[int]:
    """Numbers of 24 rows, from the first to the last."""
    return [i * (length - 1) // 23 for i in range(24)]


def seen(mask: RangeMask, query: int) -> Tensor:
    """bool (k_len,): the keys that a query sees, on the CPU, where masks are planned."""
    row = torch.zeros(mask.k_len, dtype=torch.bool, device="cpu")
    for i, (start, stop) in enumerate(mask.q_ranges.tolist()):
        if start <= query < stop:
            for a, b in mask.key_ranges[mask.key_ptr[i] : mask.key_ptr[i + 1]].tolist():
                row[a:b] = True
    return row


def case(mask: RangeMask, tensors: tuple[Tensor, Tensor, Tensor], bars: dict[str, float], **options) -> Case:
    q, k, v = tensors
    head_dim, dtype = q.shape[-1], q.dtype
    forced = f", {options['isa']} forced" if "isa" in options else ""
    return Case(
        op="range_attention",
        shape=f"L {mask.q_len} D {head_dim} density {mask.density:.2f}{forced}",
        dtype=dtype,
        ours=lambda: range_attention(q, k, v, mask),
        verify=verifier(mask, q, k, v),
        bytes=4 * q.numel() * q.element_size(),
        flops=peers.forward_flops(mask, q, k),
        bars=bars,
        **{"peers": {"SDPA masked": peers.sdpa(q, k, v, mask), "FlexAttention": peers.flex(q, k, v, mask)}}
        | {"asides": peers.mask_making(mask, q.device), "limit": "matmul" if dtype != torch.float32 else "matmul f32"}
        | options,
    )


def asked(head_dim: int, dtype: torch.dtype) -> dict[str, float]:
    """The bars from 2,600 tokens on: those of a CPU with AVX-512 and BF16, or the one of AVX2."""
    if on_gpu():  # test_attention_gpu.py has the bars
        return {}
    if emulated(torch.bfloat16):
        return {"limit": 0.9}
    if dtype == torch.bfloat16:
        return {"limit": 1.0 if head_dim >= 128 else 0.95}
    return {"limit": 2.0}


@cases("attention_forward")
def forward(full: bool) -> Iterator[Case]:
    bf16, f32 = torch.bfloat16, torch.float32
    for frames, head_dims in ((5, (64, 128) if full else (64,)), (20, (64, 128))):
        for head_dim in head_dims:
            for dtype in (f32, bf16) if full or head_dim == 64 else (f32,):
                bars = {"limit": 0.7} if frames == 5 and not on_gpu() else asked(head_dim, dtype)
                if frames == 20 and not on_gpu() and not emulated(torch.bfloat16):
                    bars |= {"SDPA masked": 8, "FlexAttention": 6} if dtype == bf16 else {"FlexAttention": 2.5}
                yield case(ucf(frames), inputs(ucf(frames), head_dim, dtype), bars)
    if not on_gpu() and "avx2" in library.available_isas():  # what older machines get, on this one
        for head_dim in (64, 128) if full else (64,):
            yield case(ucf(20), inputs(ucf(20), head_dim, f32), {"limit": 0.9}, isa="avx2")
    if not full:
        return
    for mask in (ucf(20, keep=kept(20, 0.35)), RangeMask.full(2632, 2632)):
        for head_dim in (64, 128):
            for dtype in (f32, bf16):
                yield case(mask, inputs(mask, head_dim, dtype), asked(head_dim, dtype))
    long = RangeMask.multiscale(44, 5, LARGE)
    for mask in (long, RangeMask.multiscale(44, 5, LARGE, window=0), RangeMask.full(long.q_len, long.q_len)):
        for head_dim in (64, 128):
            for dtype in (f32, bf16):
                yield case(mask, inputs(mask, head_dim, dtype), asked(head_dim, dtype))


@cases("attention_density")
def density(full: bool) -> Iterator[Case]:
    """Time against density at one length: the bar is the full mask's time, in proportion, and 15% more."""
    frames, heads = 60, HEADS if full else 4
    whole = RangeMask.full(ucf(frames).q_len, ucf(frames).q_len)
    for head_dim in (64, 128) if full else (64,):
        for share in (0.5, 0.35, 0.2, 0.1) if full else (0.2, 0.1):
            mask = min((ucf(frames, window=w) for w in range(frames)), key=lambda m: abs(m.density - share))
            tensors = inputs(mask, head_dim, torch.float32, heads)
            yield case(
                mask,
                tensors,
                {"density 1": 1 / mask.density / 1.15},
                yardsticks={"density 1": lambda tensors=tensors: range_attention(*tensors, whole)},
                peers={},
                asides={},
                notes=f"density 1 takes {1 / mask.density:.1f} times as long if time is proportional",
            )


def test_attention(case, compare):
    compare(case)
