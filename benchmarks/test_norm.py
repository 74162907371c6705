"""Norms, gated residual and gated activation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from closeness import assert_close
from memory_bound import LEAST_BYTES, judged_by
from registry import Case, cases, on_gpu

from videoar_kernels import adaln_norm, gated_residual, swiglu

PAPER_WIDTHS = {"L": 6144, "XL": 8192}  # of the feed-forward networks


@cases("swiglu")
def swiglu_forward(full: bool):
    if on_gpu():
        yield from (swiglu_case(rows_of(width), width) for width in PAPER_WIDTHS.values())
        return
    for length in (2048, 8192) if full else (8192,):
        yield swiglu_case(length, 4096)


def rows_of(width: int) -> int:
    """Rows, a multiple of 128, of a large bfloat16 tensor."""
    return math.ceil(LEAST_BYTES / (2 * width) / 128) * 128


def swiglu_case(length: int, width: int) -> Case:
    gate, up = (torch.randn(length, width).bfloat16() for _ in range(2))

    def eager(gate=gate, up=up):
        return F.silu(gate) * up

    def verify():
        some = slice(0, 8192)
        exact = F.silu(gate[some].double()) * up[some].double()
        assert_close(swiglu(gate, up)[some], exact, eager(gate[some], up[some]))

    return Case(
        op="swiglu",
        shape=f"{length} x {width}",
        dtype=gate.dtype,
        ours=lambda: swiglu(gate, up),
        verify=verify,
        peers={"eager": eager, "torch.compile": torch.compile(eager, dynamic=False)},
        bytes=3 * gate.numel() * gate.element_size(),
        **judged_by("copy", {"limit": 0.6, "eager": 1.5} | ({"torch.compile": 1.0} if on_gpu() else {})),
    )


WIDTH, FRAMES = 1536, 16


def tokens(megabytes: int):
    length = round(megabytes * 1e6 / (2 * WIDTH * FRAMES)) * FRAMES
    return torch.randn(1, length, WIDTH).bfloat16()


def modulated(x, scale, shift):
    y = F.rms_norm(x.float(), (WIDTH,), None, 1e-6).unflatten(1, (FRAMES, -1))
    return (y * (1 + scale.float()[:, :, None]) + shift.float()[:, :, None]).flatten(1, 2).to(x.dtype)


def gated(x, y, gate):
    return (x.unflatten(1, (FRAMES, -1)) + gate[:, :, None] * y.unflatten(1, (FRAMES, -1))).flatten(1, 2)


def forward_and_backward(function, inputs, grad_out):
    leaves = [t.detach().requires_grad_() for t in inputs]
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad_out)


def close(ours, eager, inputs, grad_out=None):
    """Compares the first frame of a small part of the inputs with float64."""
    small = [t[:, : 4 * FRAMES] if t.shape[1] > FRAMES else t for t in inputs]
    if grad_out is None:
        results = (f(*t) for f, t in ((ours, small), (eager, [t.double() for t in small]), (eager, small)))
        out, exact, low = ([t] for t in results)
    else:
        grad = grad_out[:, : 4 * FRAMES]
        out = forward_and_backward(ours, small, grad)()
        exact = forward_and_backward(eager, [t.double() for t in small], grad.double())()
        low = forward_and_backward(eager, small, grad)()
    for o, e, l in zip(out, exact, low, strict=True):
        assert_close(o, e, l)


def both_ways(op, ours, eager, inputs, label, *, forward_bytes, backward_bytes, bars):
    """Yields the forward pass, then forward and backward."""
    compiled = torch.compile(eager, dynamic=False)
    grad_out = torch.randn_like(inputs[0])
    yield Case(
        op=op,
        shape=f"{label}, forward",
        dtype=inputs[0].dtype,
        ours=lambda: ours(*inputs),
        verify=lambda: close(ours, eager, inputs),
        peers={"eager": lambda: eager(*inputs), "torch.compile": lambda: compiled(*inputs)},
        bytes=forward_bytes,
        **judged_by("copy", {**({"limit": bars[0]} if bars else {}), "torch.compile": 1.0}),
    )
    yield Case(
        op=op,
        shape=f"{label}, forward + backward",
        dtype=inputs[0].dtype,
        ours=forward_and_backward(ours, inputs, grad_out),
        verify=lambda: close(ours, eager, inputs, grad_out),
        peers={
            "eager": forward_and_backward(eager, inputs, grad_out),
            "torch.compile": forward_and_backward(compiled, inputs, grad_out),
        },
        bytes=forward_bytes + backward_bytes,
        **judged_by("copy", {**({"limit": bars[1]} if bars else {}), "torch.compile": 1.0}),
        grad=True,
    )


@cases("adaln_norm")
def adaln(full: bool):
    for size in (44, 350) if full and not on_gpu() else (350,):
        x = tokens(size)
        scale, shift = (torch.randn(1, FRAMES, WIDTH).bfloat16() for _ in range(2))
        one = x.numel() * x.element_size()
        yield from both_ways(
            "adaln_norm", adaln_norm, modulated, (x, scale, shift), f"{size} MB",
            forward_bytes=2 * one, backward_bytes=3 * one, bars=(0.75, 0.55),
        )  # fmt: skip


@cases("gated_residual")
def gate(full: bool):
    for size in (350,) if on_gpu() else (44, 350) if full else (44,):
        x, y = tokens(size), tokens(size)
        one = x.numel() * x.element_size()
        yield from both_ways(
            "gated_residual", gated_residual, gated, (x, y, torch.randn(1, FRAMES, WIDTH).bfloat16()), f"{size} MB",
            forward_bytes=3 * one, backward_bytes=3 * one, bars=None,
        )  # fmt: skip


def test_norm(case, compare):
    compare(case)
