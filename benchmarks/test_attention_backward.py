"""Attention's backward alone: the forward runs once, and its graph is kept."""

from __future__ import annotations

from collections.abc import Iterator

import attention_peers as peers
import torch
from closeness import assert_close
from registry import Absent, Call, Case, cases, on_gpu
from torch import Tensor

from videoar_kernels import RangeMask, library, range_attention

UCF = [(1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)]
LARGE = [(1, 1), (2, 2), (4, 4), (6, 6), (9, 9), (14, 14), (20, 20), (29, 29)]


def gradients(out: Tensor, leaves: list[Tensor], grad: Tensor) -> Call:
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def plain_gradients(dtype: torch.dtype, mask: RangeMask, *inputs: Tensor) -> list[Tensor]:
    """Gradients of one head's q, k and v (1, 1, L, D), given that of out, by autograd, some queries at a time."""
    *leaves, grad = (x.detach().to(dtype).requires_grad_() for x in inputs)
    q = leaves[0]
    dense = mask.to_dense().to(q.device)
    total = [torch.zeros_like(x) for x in leaves]
    for rows in torch.arange(mask.q_len, device=q.device).split(512):
        scores = leaves[0][:, :, rows] @ leaves[1].mT * q.shape[-1] ** -0.5
        out = scores.masked_fill(~dense[rows], -torch.inf).softmax(-1) @ leaves[2]
        for sum_, part in zip(total, torch.autograd.grad(out, leaves, grad[:, :, rows]), strict=True):
            sum_ += part
    return total


def case(mask: RangeMask, heads: int, head_dim: int, dtype: torch.dtype, bars: dict[str, float]) -> Case:
    leaves = [torch.randn(1, heads, mask.q_len, head_dim).to(dtype).requires_grad_() for _ in range(3)]
    grad = torch.randn_like(leaves[0])
    with torch.enable_grad():
        ours = gradients(range_attention(*leaves, mask), leaves, grad)
        sdpa = peers.sdpa(*leaves, mask)
        if not isinstance(sdpa, Absent):
            sdpa = gradients(sdpa(), leaves, grad)

    def verify() -> None:
        last = slice(heads - 1, heads)
        found = [x[:, last] for x in ours()]
        inputs = [x[:, last] for x in (*leaves, grad)]
        exact = plain_gradients(torch.float64, mask, *inputs)
        # 16-bit eager would take minutes where it is emulated; weights and slopes rounded to 16 bits err about so much.
        slack = 0.0 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
        for a, b, low in zip(found, exact, plain_gradients(torch.float32, mask, *inputs), strict=True):
            assert_close(a, b, low, slack=slack)

    return Case(
        op="range_attention backward",
        shape=f"L {mask.q_len} D {head_dim} H {heads} density {mask.density:.2f}",
        dtype=dtype,
        ours=ours,
        verify=verify,
        peers={
            "SDPA masked": sdpa,
            "FlexAttention": Absent("timed in test_attention_gpu.py" if on_gpu() else "no backward on CPU"),
        },
        bytes=8 * grad.numel() * grad.element_size(),
        flops=2.5 * peers.forward_flops(mask, *leaves[:2]),
        limit="matmul f32" if dtype == torch.float32 else "matmul",
        bars={name: bar for name, bar in bars.items() if name == "limit" or not isinstance(sdpa, Absent)},
        grad=True,
        notes="five products counted",
    )


def asked(dtype: torch.dtype) -> dict[str, float]:
    """The bars of a CPU with AVX-512 and BF16; with AVX2, what is asked of forward there."""
    if on_gpu():
        return {}
    if not library.cpu_isa().startswith("avx512"):
        return {"limit": 0.9}
    return {"limit": 1.8} if dtype == torch.float32 else {"limit": 0.95, "SDPA masked": 5}


@cases("attention_backward")
def backward(full: bool) -> Iterator[Case]:
    f32, bf16 = torch.float32, torch.bfloat16
    medium, large = RangeMask.multiscale(32, 20, UCF), RangeMask.multiscale(44, 5, LARGE)
    for heads, head_dim, dtype in ((16, 64, f32), (1, 64, f32), (16, 64, bf16)):
        yield case(medium, heads, head_dim, dtype, asked(dtype))
    if not full:
        return
    for heads in (16, 1):
        for head_dim in (64, 128):
            for dtype in (f32, bf16):
                yield case(large, heads, head_dim, dtype, asked(dtype))
    for dtype in (f32, bf16):
        yield case(RangeMask.multiscale(32, 5, UCF), 16, 64, dtype, {} if on_gpu() else {"limit": 0.7})


def test_attention_backward(case, compare):
    compare(case)
