"""Decoding: few new tokens attend to a long cache, every key visible."""

from __future__ import annotations

from collections.abc import Iterator

import attention_peers as peers
import torch
import torch.nn.functional as F
from closeness import assert_close
from limits import emulated
from registry import Call, Case, cases
from torch import Tensor

from videoar_kernels import range_attention, reference

BATCH, HEADS, HEAD_DIM = 2, 16, 64


def asked(tokens: int, dtype: torch.dtype) -> dict[str, float]:
    if tokens <= 16:
        return {"SDPA": 1.3, "limit": 0.6}
    return {"SDPA": 4.0 if dtype == torch.bfloat16 else 2.0}


def verifier(q: Tensor, k: Tensor, v: Tensor) -> Call:
    def verify() -> None:
        out = range_attention(q, k, v)
        for head in (0, HEADS - 1):
            x = [x[-1:, head : head + 1] for x in (q, k, v)]
            exact = reference.attention.range_attention(*(t.double() for t in x))
            assert_close(out[-1:, head : head + 1], exact, F.scaled_dot_product_attention(*x))

    return verify


def case(tokens: int, cached: int, dtype: torch.dtype, full: bool) -> Case:
    q = torch.randn(BATCH, HEADS, tokens, HEAD_DIM).to(dtype)
    k, v = (torch.randn(BATCH, HEADS, cached, HEAD_DIM).to(dtype) for _ in range(2))
    others = {"SDPA": lambda: F.scaled_dot_product_attention(q, k, v)}
    if full:
        others["FlexAttention"] = peers.flex(q, k, v)
    arithmetic = tokens > 16 or (tokens == 16 and emulated(dtype, q.device.type))
    return Case(
        op="range_attention",
        shape=f"{tokens} new, {cached} cached",
        dtype=dtype,
        ours=lambda: range_attention(q, k, v),
        verify=verifier(q, k, v),
        peers=others,
        bytes=(2 * k.numel() + 2 * q.numel()) * k.element_size(),
        flops=peers.forward_flops(None, q, k),
        limit="copy" if tokens <= 16 else "matmul" if dtype == torch.bfloat16 else "matmul f32",
        bars=asked(tokens, dtype),
        notes="without bfloat16 products arithmetic binds here, not memory" if arithmetic and tokens == 16 else "",
    )


@cases("attention_decode")
def decode(full: bool) -> Iterator[Case]:
    for cached in (4096, 32768):
        for tokens in (1, 16, 64, 256):
            for dtype in (torch.bfloat16, torch.float32):
                if full or cached == 4096 or tokens == 1:
                    yield case(tokens, cached, dtype, full)


def test_attention_decode(case, compare):
    compare(case)
