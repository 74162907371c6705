"""Cross-entropy of packed bits and its gradient, on every instruction set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from closeness import assert_close
from packed_numpy import numpy_pack, numpy_unpack, views

import videoar_kernels as K
from videoar_kernels import reference
from videoar_kernels.bit_entropy import _reference_entropy_backward
from videoar_kernels.library import ops

DIMS = [1, 7, 8, 9, 48, 255, 256]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
R = reference.bits
IMPLEMENTATIONS = pytest.mark.parametrize("impl", [K, R], ids=["compiled", "reference"])


def entropy64(logits, packed, weight, ids, scales):
    """Loss and accuracy, whole and per scale, token by token in float64 numpy."""
    x, one = logits.detach().double().cpu().numpy(), numpy_unpack(packed, logits.shape[-1]).cpu().numpy()
    nats = np.logaddexp(0, np.where(one, -x, x)).mean(-1)  # -log sigmoid(x), -log(1 - sigmoid(x))
    hits = ((x > 0) == one).mean(-1)
    weight = weight.expand(nats.shape).cpu().numpy().astype(float)
    ids = ids.expand(nats.shape).cpu().numpy()
    rows = [(nats * weight * (ids == s), hits * weight * (ids == s), weight * (ids == s)) for s in range(scales)]
    n, h, w = (np.array([row[i].sum() for row in rows]) for i in range(3))
    return [torch.as_tensor(v) for v in (n.sum() / w.sum(), n / w, h.sum() / w.sum(), h / w)]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_and_its_gradient(isa, dim, dtype):
    packed = numpy_pack(torch.rand(2, 7, dim) < 0.4)
    ids, weight = torch.tensor([0, 1, 1, 2, 2, 2, 2]), torch.rand(2, 7).double()
    for view in views((2, 7, dim), dtype):
        exact_in = (4 * view.detach()).double().to(dtype)
        x = exact_in.clone(memory_format=torch.preserve_format).requires_grad_()
        out = K.bit_cross_entropy(x, packed, weight=weight, scale_ids=ids, num_scales=3)
        for value, exact in zip(out, entropy64(x, packed, weight, ids, 3), strict=True):
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert value.dtype == wide
            assert_close(value, exact)
        coefficients = torch.randn(3)
        (2 * out.loss + (coefficients * out.per_scale).sum()).backward()
        x64 = exact_in.double().requires_grad_()
        ref = R.bit_cross_entropy(x64, packed, weight=weight, scale_ids=ids, num_scales=3)
        assert_close(ref.loss, entropy64(x, packed, weight, ids, 3)[0])
        (2 * ref.loss + (coefficients.double() * ref.per_scale).sum()).backward()
        assert_close(x.grad, x64.grad, x64.grad.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_many_tokens_of_each_scale(isa, dtype, weighted):
    """Tokens of one scale and weight are one run, others are summed one by one."""
    logits, packed = torch.randn(2, 700, 48).to(dtype), torch.randint(0, 256, (2, 700, 6), dtype=torch.uint8)
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 3, 297, 399]))
    weight = torch.rand(2, 700).double() if weighted else None
    x = logits.clone().requires_grad_()
    out = K.bit_cross_entropy(x, packed, weight=weight, scale_ids=ids, num_scales=4)
    exact = entropy64(logits, packed, torch.ones(()) if weight is None else weight, ids, 4)
    for value, expected in zip(out, exact, strict=True):
        assert_close(value, expected)
    coefficients = torch.randn(4)
    (coefficients * out.per_scale).sum().backward()
    x64 = logits.double().requires_grad_()
    ref = R.bit_cross_entropy(x64, packed, weight=weight, scale_ids=ids, num_scales=4)
    (coefficients.double() * ref.per_scale).sum().backward()
    assert_close(x.grad, x64.grad, x64.grad.to(dtype))


def test_cross_entropy_gradient_by_differences():
    packed = numpy_pack(torch.rand(2, 5, 9) < 0.5)
    logits = torch.randn(2, 5, 9, dtype=torch.float64, requires_grad=True)
    ids, weight = torch.tensor([0, 0, 1, 1, 1]), torch.rand(2, 1, dtype=torch.float64)

    def losses(x):
        return K.bit_cross_entropy(x, packed, weight=weight, scale_ids=ids, num_scales=2)[:2]

    assert torch.autograd.gradcheck(losses, logits)


@IMPLEMENTATIONS
def test_cross_entropy_of_large_logits_is_finite(impl, isa):
    logits = torch.tensor([[1000.0, -1000.0, 88.5, -88.5, 1e30, 0.0, -0.0, 30.0]], requires_grad=True)
    out = impl.bit_cross_entropy(logits, torch.tensor([[0b01010110]], dtype=torch.uint8))
    out.loss.backward()
    nats = [1000.0, 1000.0, 0.0, 0.0, 0.0, math.log(2), math.log(2), 30.0]
    assert_close(out.loss, torch.tensor(sum(nats) / 8, dtype=torch.float64))
    assert torch.isfinite(logits.grad).all()


@IMPLEMENTATIONS
def test_weightless_scales_are_nan_and_leave_the_gradient_finite(impl):
    logits = torch.randn(3, 8, requires_grad=True)
    packed = torch.zeros(3, 1, dtype=torch.uint8)
    weight, ids = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 0, 1])
    out = impl.bit_cross_entropy(logits, packed, weight=weight, scale_ids=ids, num_scales=3)
    assert out.per_scale.isnan().tolist() == [False, True, True]
    out.loss.backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad[2] == 0).all()


@pytest.mark.parametrize("backward", ["compiled", "fallback"])
def test_weights_that_cancel_in_one_mean_leave_the_other_its_gradient(backward):
    x, packed = torch.zeros(2, 8, requires_grad=True), torch.zeros(2, 1, dtype=torch.uint8)

    def gradient(weight, ids, loss, per_scale):
        weight, ids = torch.tensor(weight).double(), torch.tensor(ids, dtype=torch.int32)
        totals = torch.zeros(3, dtype=torch.float64).index_add(0, ids.long(), weight)
        call = ops.bit_cross_entropy_backward if backward == "compiled" else _reference_entropy_backward
        return call(torch.tensor(loss), torch.tensor(per_scale), x.detach(), packed, weight, ids, totals)

    sixteenth = torch.full((8,), 1 / 16)
    whole = gradient([1, -1], [0, 1], 0.0, [1.0, 0.0, 1.0])
    assert torch.equal(whole, torch.stack([sixteenth, 0 * sixteenth]))
    own = gradient([-0.5, 0.5], [0, 1], 1.0, [1.0, -2.0, 0.0])
    assert torch.equal(own, torch.stack([sixteenth, -2 * sixteenth]))
    own = gradient([1, 2], [0, 0], 1.0, [0.0, 0.0, float("nan")])
    torch.testing.assert_close(own, torch.stack([sixteenth * 2 / 6, sixteenth * 4 / 6]) * 1.0)
    nothing = gradient([0, 0], [0, 1], 1.0, [1.0, 1.0, 1.0])
    assert torch.equal(nothing, torch.zeros(2, 8))


def test_weights_that_cancel_over_all_scales():
    x = torch.zeros(2, 8, requires_grad=True)
    weight, ids = torch.tensor([1.0, -1.0]), torch.tensor([0, 1])
    out = K.bit_cross_entropy(x, torch.zeros(2, 1, dtype=torch.uint8), weight=weight, scale_ids=ids, num_scales=2)
    (gradient,) = torch.autograd.grad(out.per_scale[0], x)
    assert torch.equal(gradient, torch.tensor([[1 / 16], [0.0]]).expand(2, 8))


def test_cross_entropy_does_not_depend_on_threads():
    logits, packed = torch.randn(3000, 48), torch.randint(0, 256, (3000, 6), dtype=torch.uint8)
    loss, threads = K.bit_cross_entropy(logits, packed).loss, torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert torch.equal(K.bit_cross_entropy(logits, packed).loss, loss)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dim", [1, 48])
def test_as_many_scales_as_a_gpu_takes(isa, dim):
    scales, ids = 1600, torch.arange(1700) % 1600
    logits, packed = torch.randn(1700, dim), numpy_pack(torch.rand(1700, dim) < 0.5)
    out = K.bit_cross_entropy(logits, packed, scale_ids=ids, num_scales=scales)
    for value, exact in zip(out, entropy64(logits, packed, torch.ones(()), ids, scales), strict=True):
        assert_close(value, exact)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 30.0])
def test_cross_entropy_is_precise_at_every_size_of_the_loss(isa, scale):
    """One logarithm serves a token: its sum stays as precise where every term is tiny."""
    one = torch.rand(40, 48) < 0.5
    logits = torch.where(one, 1.0, -1.0) * (-torch.tensor(scale).log() if scale < 1 else 1 / scale) * torch.rand(40, 48)
    out = K.bit_cross_entropy(logits, numpy_pack(one)).loss.double()
    exact = entropy64(logits, numpy_pack(one), torch.ones(()), torch.zeros((), dtype=torch.int64), 1)[0]
    assert abs(out / exact - 1) < 1e-6


@pytest.mark.parametrize("dim", [97, 800, 1100])
def test_tokens_longer_than_a_product(isa, dim):
    """Products of many factors are taken in pieces."""
    logits, one = torch.randn(5, dim), torch.rand(5, dim) < 0.5
    exact = entropy64(logits, numpy_pack(one), torch.ones(()), torch.zeros((), dtype=torch.int64), 1)[0]
    assert_close(K.bit_cross_entropy(logits, numpy_pack(one)).loss, exact)
    worst = torch.zeros(2, dim)
    assert_close(K.bit_cross_entropy(worst, numpy_pack(one[:2])).loss, torch.tensor(math.log(2), dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_of_nan_reaches_every_logit(isa, dtype):
    """Whatever its payload: this one's bits are all set."""
    x = torch.randn(3, 48).to(dtype).requires_grad_()
    loss = K.bit_cross_entropy(x, torch.zeros(3, 6, dtype=torch.uint8)).loss
    loss.backward(torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32).to(loss.dtype))
    assert x.grad.isnan().all()


@pytest.mark.parametrize("dim", [48, 45])
def test_a_gradient_that_outgrows_the_cache(dim):
    """It is written past the cache, a short one is not."""
    tokens = (80 << 20) // dim // 2
    logits = torch.randn(1000, dim).bfloat16().repeat(tokens // 1000, 1)
    packed = K.pack_bits(torch.rand(1000, dim) < 0.5).repeat(tokens // 1000, 1)
    grads = []
    for n in (len(logits), 1000):
        x = logits[:n].clone().requires_grad_()
        (K.bit_cross_entropy(x, packed[:n]).loss * n).backward()
        grads.append(x.grad)
    large, small = grads
    assert torch.equal(large.view(-1, 1000, dim), small.expand(tokens // 1000, 1000, dim))
