"""rope_3d and qk_norm_rope as operators: opcheck, full graphs, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

import videoar_kernels as vk
from tests.closeness import assert_close
from videoar_kernels import reference


def test_operators_pass_opcheck():
    x, positions, dims = torch.randn(2, 2, 5, 12), torch.randint(0, 50, (5, 3)), [4, 4, 4]
    for grad in (False, True):
        q = torch.randn(2, 2, 5, 12, requires_grad=grad)
        k = torch.randn(2, 5, 1, 12).transpose(1, 2).requires_grad_(grad)
        weight = torch.randn(12, requires_grad=grad)
        torch.library.opcheck(torch.ops.videoar_kernels.rope_3d, (q, positions, dims, 100.0, True, False))
        torch.library.opcheck(
            torch.ops.videoar_kernels.qk_norm_rope,
            (q, k, weight, weight, positions, 1e-6, dims, 100.0, False, False),
        )
    torch.library.opcheck(torch.ops.videoar_kernels.rope_3d_, (x, positions, dims, 100.0, True, False))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    def model(q, k, weight, positions):
        q, k = vk.qk_norm_rope(q * 2, k, weight, None, positions)
        return (vk.rope_3d(q, positions) * k).sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length in (5, 9):
        q, k = (torch.randn(2, 2, length, 12, requires_grad=True) for _ in range(2))
        weight, positions = torch.randn(12, requires_grad=True), torch.randint(0, 50, (length, 3))
        inputs = [q, k, weight]
        out, expected = compiled(*inputs, positions), model(*inputs, positions)
        torch.testing.assert_close(out, expected)
        grads = torch.autograd.grad(out, inputs), torch.autograd.grad(expected, inputs)
        torch.testing.assert_close(*grads)


def test_default_split_is_that_of_wan():
    assert reference.rope.default_dims(128) == (44, 42, 42)
    assert all(sum(reference.rope.default_dims(d)) == d for d in range(2, 300, 2))
    assert math.isclose(reference.rope.rope_angles(torch.tensor([[1, 0, 0]]), (4, 0, 0))[0, 1], 0.01)


def test_errors_name_what_was_expected():
    x, positions, weight = torch.randn(2, 3, 5, 12), torch.zeros(5, 3), torch.ones(12)
    cases = [
        (ValueError, r"rope_3d: expected \(batch, heads", lambda: vk.rope_3d(x[0], positions)),
        (ValueError, "even head_dim", lambda: vk.rope_3d(x[..., :11], positions)),
        (ValueError, r"positions of shape \(5, 3\) or \(2, 5, 3\)", lambda: vk.rope_3d(x, positions[:4])),
        (TypeError, "positions of one of", lambda: vk.rope_3d(x, positions.bfloat16())),
        (TypeError, "rope_3d: expected one of", lambda: vk.rope_3d(x.int(), positions)),
        (ValueError, "add up to 12, got", lambda: vk.rope_3d(x, positions, dims=(4, 4, 2))),
        (ValueError, "three even dims", lambda: vk.rope_3d(x, positions, dims=(3, 5, 4))),
        (ValueError, "no stride 0", lambda: vk.rope_3d_(x[:, :1].expand(-1, 2, -1, -1), positions)),
        (
            ValueError,
            r"expected k of shape \(2, \*, 5, 12\), got \(2, 3, 4, 12\)",
            lambda: vk.qk_norm_rope(x, x[:, :, :4], None, None, positions),
        ),
        (TypeError, "expected k torch.float32", lambda: vk.qk_norm_rope(x, x.half(), None, None, positions)),
        (ValueError, "q_weight", lambda: vk.qk_norm_rope(x, x, weight[:5], None, positions)),
        (
            ValueError,
            r"expected k_weight of shape \(36,\)",
            lambda: vk.qk_norm_rope(x, x, None, weight, positions, full_width=True),
        ),
        (ValueError, "three even dims", lambda: vk.rope_3d(x, positions, dims=())),
        (TypeError, "positions of one of", lambda: vk.rope_3d(x, positions.to(torch.uint8))),
        (TypeError, "positions of one of", lambda: vk.qk_norm_rope(x, x, None, None, positions.to(torch.int16))),
    ]
    for error, message, call in cases:
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
                call()
    with pytest.raises(ValueError, match="need no gradient"):
        vk.rope_3d_(x.clone().requires_grad_(), positions)


@pytest.mark.parametrize("grad", [True, False])
def test_theta_and_eps_are_checked(grad):
    x, positions = torch.randn(1, 2, 5, 12), torch.zeros(5, 3)
    with torch.set_grad_enabled(grad):
        for theta in (0, -1.0, math.nan, math.inf):
            for call in (vk.rope_3d, vk.rope_3d_, lambda *t, **o: vk.qk_norm_rope(t[0], t[0], None, None, t[1], **o)):
                with pytest.raises(ValueError, match=rf"(rope_3d|rope_3d_|qk_norm_rope): .*finite theta .*got {theta}"):
                    call(x, positions, theta=theta)
        for eps in (-1e-6, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"qk_norm_rope: expected a finite eps >= 0, got {eps}"):
                vk.qk_norm_rope(x, x, None, None, positions, eps=eps)
        assert vk.rope_3d(x, positions, theta=5).shape == x.shape  # an int is as good
        assert vk.qk_norm_rope(x, x, None, None, positions, eps=0)[0].shape == x.shape


def test_operators_refuse_what_the_kernels_cannot_read():
    x, positions = torch.randn(1, 2, 5, 12), torch.zeros(5, 3)
    ops, norms = torch.ops.videoar_kernels, (x, x, None, None, positions)
    for dims in ([], [12], [6, 6], [4, 4, 2], [5, 3, 4], [-4, 8, 8], [2**62, 2**62, 12], [4, 4, 4, 0]):
        with pytest.raises(RuntimeError, match="dims"):
            ops.rope_3d(x, positions, dims, 1.0, True, False)
    for theta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(RuntimeError, match="theta"):
            ops.rope_3d(x, positions, None, theta, True, False)
        with pytest.raises(RuntimeError, match="theta"):
            ops.qk_norm_rope(*norms, 1e-6, None, theta, True, False)
    for eps in (-1e-6, math.nan, math.inf):
        with pytest.raises(RuntimeError, match="eps"):
            ops.qk_norm_rope(*norms, eps, None, 1.0, True, False)
    with pytest.raises(RuntimeError, match="even"):
        ops.rope_3d(x[..., :11], positions, None, 1.0, True, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weight_gradients_have_the_dtype_of_the_weight(dtype):
    x, positions = torch.randn(2, 2, 5, 12), torch.randint(0, 50, (5, 3))
    weight = torch.randn(12, dtype=dtype, requires_grad=True)
    q, k = vk.qk_norm_rope(x, x, weight, None, positions)
    (grad,) = torch.autograd.grad(q.sum() + k.sum(), weight)
    (exact,) = torch.autograd.grad(reference.rope.qk_norm_rope(x, x, weight, None, positions)[0].sum(), weight)
    assert grad.dtype == dtype
    assert_close(grad.float(), exact.double(), exact.float())
