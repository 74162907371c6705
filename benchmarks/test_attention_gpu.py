"""Attention on an NVIDIA GPU: long sequences forward and backward, and a few new tokens against a long cache.

The bars are those of an H200. `pytest benchmarks/test_attention_gpu.py --device cuda`; no figure exists yet.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import attention_peers as peers
import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close
from registry import Absent, Call, Case, cases
from test_attention import seen, some_rows
from torch import Tensor

from videoar_kernels import RangeMask, range_attention, reference

HEADS = 16
SCALES = [(1, 1), (2, 2), (4, 4), (6, 6), (9, 9), (14, 14), (20, 20), (29, 29)]
FORWARD = {64: 350e12, 128: 450e12}  # useful FLOP/s
BACKWARD = {128: 330e12}


def masks(full: bool) -> Iterator[tuple[str, RangeMask]]:
    """8,000 tokens and more; the bars ask for densities from 0.2 to 0.6."""
    yield "multiscale", RangeMask.multiscale(128, 6, SCALES)
    yield "short window", RangeMask.units([1560] * 12, 256, window=2)
    if not full:
        return
    yield "units", RangeMask.units([1560] * 6, 256)
    yield "full", RangeMask.full(8192, 8192)
    yield "window", RangeMask.units([1560] * 12, 256, window=3, sink=1)
    yield "teacher forcing", RangeMask.teacher_forcing([1560] * 5, 256)
    yield "long", RangeMask.units([1560] * 21, 512)


def needs_gpu() -> None:
    if torch.get_default_device().type == "cpu":
        pytest.skip("needs --device cuda")


def draw(mask: RangeMask, head_dim: int, batch: int = 1) -> list[Tensor]:
    return [torch.randn(batch, HEADS, mask.q_len, head_dim, dtype=torch.bfloat16) for _ in range(3)]


def some_queries(mask: RangeMask | None, q: Tensor) -> tuple[list[int], RangeMask | None]:
    """(rows, their mask): few enough for a dense reference."""
    rows = some_rows(q.shape[2])
    return rows, None if mask is None else RangeMask.from_dense(torch.stack([seen(mask, row) for row in rows]))


def verifier(q: Tensor, k: Tensor, v: Tensor, mask: RangeMask | None) -> Call:
    """Compares some queries of the last head with float64 attention over those queries' keys."""

    def verify() -> None:
        rows, few = some_queries(mask, q)
        chosen = [x[:, -1:] for x in (q[:, :, rows], k, v)]
        exact = reference.attention.range_attention(*(x.double() for x in chosen), few)
        low = reference.attention.range_attention(*chosen, few)
        assert_close(range_attention(q, k, v, mask)[:, -1:, rows], exact, low)

    return verify


def gradient_verifier(leaves: list[Tensor], grad: Tensor, mask: RangeMask) -> Call:
    """Compares the last head's gradients from some queries with float64, and all gradients with themselves."""

    def verify() -> None:
        rows, few = some_queries(mask, grad)
        out = range_attention(*leaves, mask)
        sparse = torch.zeros_like(grad)
        sparse[:, :, rows] = grad[:, :, rows]
        grad_q, *rest = (g[:, -1:] for g in torch.autograd.grad(out, leaves, sparse, retain_graph=True))

        def plain(dtype: torch.dtype) -> tuple[Tensor, ...]:
            chosen = [x[:, -1:].to(dtype) for x in (leaves[0][:, :, rows], *leaves[1:])]
            few_out = reference.attention.range_attention(*chosen, few)
            return torch.autograd.grad(few_out, chosen, grad[:, -1:, rows].to(dtype))

        for ours, exact, low in zip((grad_q[:, :, rows], *rest), plain(torch.float64), plain(grad.dtype), strict=True):
            assert_close(ours, exact, low)
        first, again = (torch.autograd.grad(out, leaves, grad, retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    return verify


def dense_peers(q: Tensor, k: Tensor, v: Tensor, mask: RangeMask) -> dict[str, Call | Absent]:
    """Those that do the work of a full mask, whatever the mask is; FlashAttention knows none."""
    flash = peers.flash_attention(q, k, v) if mask.density == 1 else Absent("no such mask")
    return {"SDPA by cuDNN": peers.cudnn(q, k, v, mask), "FlashAttention": flash}


def gradients(attention: Call, leaves: list[Tensor], grad: Tensor) -> Call:
    """Backward alone; the first call runs forward, so that a peer that cannot is absent."""
    out = functools.cache(attention)
    return lambda: torch.autograd.grad(out(), leaves, grad, retain_graph=True)


@cases("attention_gpu_forward")
def forward(full: bool) -> Iterator[Case]:
    needs_gpu()
    for name, mask in masks(full):
        for head_dim in (128, 64):
            q, k, v = draw(mask, head_dim)
            flops = peers.forward_flops(mask, q, k)
            yield Case(
                op="range_attention",
                shape=f"{name} L {mask.q_len} D {head_dim} density {mask.density:.2f}",
                dtype=q.dtype,
                ours=lambda q=q, k=k, v=v, mask=mask: range_attention(q, k, v, mask),
                verify=verifier(q, k, v, mask),
                peers={"FlexAttention": peers.flex(q, k, v, mask)} | dense_peers(q, k, v, mask),
                bytes=4 * q.numel() * q.element_size(),
                flops=flops,
                limit="matmul",
                bars={"time": flops / FORWARD[head_dim], "FlexAttention": 1.2} if 0.2 <= mask.density <= 0.6 else {},
            )


@cases("attention_gpu_backward")
def backward(full: bool) -> Iterator[Case]:
    needs_gpu()
    for name, mask in masks(full):
        for head_dim in (128, 64) if full else (128,):
            leaves = [x.requires_grad_() for x in draw(mask, head_dim)]
            grad = torch.randn_like(leaves[0])
            flops = 2.5 * peers.forward_flops(mask, *leaves[:2])
            yield Case(
                op="range_attention backward",
                shape=f"{name} L {mask.q_len} D {head_dim} density {mask.density:.2f}",
                dtype=grad.dtype,
                ours=gradients(lambda x=leaves, m=mask: range_attention(*x, m), leaves, grad),
                verify=gradient_verifier(leaves, grad, mask),
                peers={"FlexAttention": gradients(peers.flex(*leaves, mask), leaves, grad)},
                bytes=8 * grad.numel() * grad.element_size(),
                flops=flops,
                limit="matmul",
                bars={"FlexAttention": 1.2} | ({"time": flops / BACKWARD[head_dim]} if head_dim in BACKWARD else {}),
                grad=True,
                notes="five products counted, seven done: both passes recompute the weights, so that no sum is atomic",
            )


@cases("attention_gpu_decode")
def decode(full: bool) -> Iterator[Case]:
    """New tokens against a cache of 16k: as fast as the cache can be read."""
    needs_gpu()
    for new in (16, 64, 256):
        for batch, kv_heads in ((2, HEADS), (8, HEADS // 4)) if full else ((2, HEADS),):
            k, v = (torch.randn(batch, kv_heads, 16384, 128, dtype=torch.bfloat16) for _ in range(2))
            q = torch.randn(batch, HEADS, new, 128, dtype=torch.bfloat16)
            old = [x[:, :, :-new].clone() for x in (k, v)]
            late = [x[:, :, -new:].clone() for x in (k, v)]

            def sdpa(q: Tensor = q, old: list[Tensor] = old, late: list[Tensor] = late, grouped=kv_heads < HEADS):
                keys, values = (torch.cat(pair, 2) for pair in zip(old, late, strict=True))
                return F.scaled_dot_product_attention(q, keys, values, enable_gqa=grouped)

            moved = (2 * k.numel() + 2 * q.numel()) * q.element_size()
            flops = peers.forward_flops(None, q, k)
            yield Case(
                op="range_attention",
                shape=f"{new} queries, 16k keys, batch {batch}, {HEADS} heads, {kv_heads} of keys",
                dtype=q.dtype,
                ours=lambda q=q, k=k, v=v: range_attention(q, k, v),
                verify=verifier(q, k, v, None),
                peers={"SDPA concatenated": sdpa, "FlashAttention": peers.flash_attention(q, k, v)},
                bytes=moved,
                flops=flops,
                limit="copy",
                bars={"limit": 0.8, "SDPA concatenated": 1.5},
                notes=f"{flops / moved:.0f} FLOP a byte: beyond what this GPU does in a byte's time, arithmetic binds",
            )


def test_attention_gpu(case, compare):
    compare(case)
