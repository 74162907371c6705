"""swiglu against its definition in float64; what it shares with the norms is tested with them."""

from __future__ import annotations

import pytest
import torch

import videoar_kernels as vk
from tests.closeness import assert_close
from tests.gradients import double, outputs_and_gradients, random
from videoar_kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37,), (2, 5, 64), (3, 1, 2, 19), (2, 0, 4), (0,)])
def test_swiglu_and_its_gradients(isa, shape, dtype):
    inputs = [4 * random(shape, dtype), random(shape, dtype)]
    grad_out = random(shape, dtype)

    def definition(gate, up):
        return gate / (1 + torch.exp(-gate)) * up

    exact = outputs_and_gradients(definition, double(inputs), grad_out)
    low = outputs_and_gradients(lambda gate, up: torch.nn.functional.silu(gate) * up, inputs, grad_out)
    for function in (vk.swiglu, reference.norm.swiglu):
        results = outputs_and_gradients(function, inputs, grad_out)
        for result, e, l in zip(results, exact, low, strict=True):
            assert_close(result, e, l)


def swiglu_views(dtype):
    """Rows whose packs of 16 bytes follow on each other, begin anew in each row, or are aligned nowhere."""
    wide = {"whole rows": (5, 4099), "aligned rows": (5, 8208), "rows at any address": (5, 8198), "tails": (5, 4112)}
    whole, aligned, anywhere, tails = (random(shape, dtype) for shape in wide.values())
    return {
        "whole rows": (whole, whole.flip(0)),
        "aligned rows": aligned.chunk(2, -1),
        "rows at any address": anywhere.chunk(2, -1),
        "tails": (tails[:, :4099], tails.flip(0)[:, :4099]),
        "shifted": (whole.flatten()[1:], random((5 * 4099,), dtype)[:-1]),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", swiglu_views(torch.float32))
def test_swiglu_of_wide_rows_wherever_they_lie(isa, layout, dtype):
    gate, up = swiglu_views(dtype)[layout]
    grad = random(gate.shape, dtype)
    results = vk.swiglu(gate, up), *torch.ops.videoar_kernels.swiglu_backward(grad, gate, up)

    def plain(dtype):
        leaves = [x.to(dtype).clone().requires_grad_() for x in (gate, up)]
        out = torch.nn.functional.silu(leaves[0]) * leaves[1]
        return out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))

    for result, exact, low in zip(results, plain(torch.float64), plain(dtype), strict=True):
        assert_close(result, exact, low)
    out = torch.empty_strided(gate.shape, gate.stride(), dtype=dtype)
    torch.ops.videoar_kernels.swiglu_out(gate, up, out)
    assert torch.equal(out, results[0])


def test_swiglu_of_more_rows_than_a_grid_has(isa):
    gate = random((70_000, 3), torch.float32)
    views = gate[:, :2], gate[:, 1:]
    assert torch.equal(vk.swiglu(*views), vk.swiglu(*(view.contiguous() for view in views)))


FAR = [88.0, 88.3, 88.5, 89.0, 90.0, 100.0, 1000.0, 1e36, 3e38, float("inf")]


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_far_from_zero(isa, dtype):
    gate = torch.tensor([float("nan"), -60.0, -0.0, 0.0, 50.0] + FAR + [-x for x in FAR], dtype=dtype)
    inputs, grad_out = [gate, torch.full_like(gate, 0.5)], torch.full_like(gate, -0.75)
    exact = outputs_and_gradients(lambda gate, up: torch.nn.functional.silu(gate) * up, double(inputs), grad_out)
    # Float32 rounds the exponent of e^-gate, which overflows below -88.3.
    rounding, flushed = (0.0, 0.0) if dtype == torch.float64 else (5e-6, 7e-37)
    for function in (vk.swiglu, reference.norm.swiglu):
        for result, e in zip(outputs_and_gradients(function, inputs, grad_out), exact, strict=True):
            error, size = (result.double() - e).abs(), e.abs()
            allowed = (4 * torch.finfo(dtype).eps + rounding) * size
            close = (error <= allowed) | (result.double() == e) | (result.isnan() & e.isnan())
            assert (close | ((size <= flushed) & (result == 0)) | (size < torch.finfo(dtype).tiny)).all()
            assert (close | (result.double().abs() <= size + allowed)).all()
