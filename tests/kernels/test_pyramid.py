"""The pyramid: its bits, inputs, sums and gradients against matrices written out in numpy, and against itself.

Bits are compared exactly in float64. In float32 a residual may lie within rounding of zero, where the order of a sum
decides its sign; such a label is allowed to differ, and counted.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closeness import assert_close
from pyramid_numpy import area_matrix, bilinear_matrix, down, encode64, up

import videoar_kernels as K
from videoar_kernels import pack_bits, reference, unpack_bits

R = reference.pyramid
IMPLEMENTATIONS = pytest.mark.parametrize("impl", [K, R], ids=["compiled", "reference"])
PAPER = [(1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)]
RAGGED = [(1, 1), (2, 3), (2, 5), (5, 4), (5, 7)]
DIMS = [1, 7, 8, 9, 48, 255, 256]


def random_latents(scales, dim: int, dtype=torch.float64, batch: int = 2, frames: int = 3) -> torch.Tensor:
    return torch.randn(batch, frames, *scales[-1], dim, dtype=torch.float64).to(dtype)


@IMPLEMENTATIONS
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("scales", [PAPER, RAGGED], ids=["paper", "ragged"])
def test_bits_inputs_and_sum_equal_the_definition(impl, isa, scales, dim):
    z, flip_p = random_latents(scales, dim), 0.4 * torch.rand(2, 3, len(scales))
    for p, inherit in ((None, True), (flip_p, True), (flip_p, False)):
        out = impl.pyramid_encode(z, scales, flip_p=p, seed=17, offset=2, inherit=inherit)
        expected = encode64(z.cpu().numpy(), scales, None if p is None else p.double().cpu().numpy(), 17, 2, inherit)
        assert torch.equal(out.labels, pack_bits(expected[0]))
        assert (out.inputs - expected[1]).abs().max() < 1e-13
        assert (out.total - expected[2]).abs().max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_labels_differ_only_where_the_residual_is_rounding(isa, dtype):
    z, flip_p = random_latents(PAPER, 48, dtype), torch.rand(2, 3, 6) / 4
    out = K.pyramid_encode(z, PAPER, flip_p=flip_p, seed=1)
    labels, inputs, total, residuals = encode64(z.double().cpu().numpy(), PAPER, flip_p.double().cpu().numpy(), 1)
    differ = unpack_bits(out.labels, 48) != labels
    assert differ.sum() <= 2 and (residuals[differ].abs() < 1e-5).all()
    if not differ.any():
        assert_close(out.inputs, inputs, inputs.to(dtype))
        assert_close(out.total, total, total.to(dtype))
    assert out.inputs.dtype == out.total.dtype == dtype


def test_float32_equals_the_reference_but_for_ties():
    z = random_latents(PAPER, 48, torch.float32, batch=8)
    ours, theirs = K.pyramid_encode(z, PAPER), R.pyramid_encode(z, PAPER)
    assert (unpack_bits(ours.labels) != unpack_bits(theirs.labels)).sum() <= 4


@IMPLEMENTATIONS
def test_labels_correct_the_flips_below_them(impl):
    z = random_latents(PAPER, 16)
    clean = impl.pyramid_encode(z, PAPER)
    flipped = impl.pyramid_encode(z, PAPER, flip_p=torch.tensor([1.0, 0, 0, 0, 0, 0]), seed=0)
    assert torch.equal(flipped.labels[:, :, :1], clean.labels[:, :, :1])  # the label itself is not flipped
    assert not torch.equal(flipped.labels[:, :, 1:5], clean.labels[:, :, 1:5])
    uncorrected = impl.pyramid_decode(torch.cat([~clean.labels[:, :, :1], clean.labels[:, :, 1:]], 2), PAPER, dim=16)
    assert (flipped.total - z).abs().mean() < (uncorrected - z).abs().mean()


@IMPLEMENTATIONS
def test_the_next_frame_inherits_the_flipped_sum_or_the_clean_one(impl):
    z = random_latents(PAPER, 16)
    options = {"flip_p": torch.tensor([0, 0, 0, 0, 0, 0.5]), "seed": 4}
    inherited = impl.pyramid_encode(z, PAPER, **options)
    apart = impl.pyramid_encode(z, PAPER, **options, inherit=False)
    clean = impl.pyramid_encode(z, PAPER)
    first = impl.pyramid_resample(inherited.total, PAPER)[:, :-1, 0]
    assert (inherited.inputs[:, 1:, 0] - first).abs().max() < 1e-13
    assert torch.equal(apart.inputs[:, :, 0], clean.inputs[:, :, 0])
    assert torch.equal(apart.labels, inherited.labels) and torch.equal(apart.total, inherited.total)
    assert (inherited.inputs[:, 0, 0] == 0).all()


@IMPLEMENTATIONS
def test_flip_probability_broadcasts_over_batch_frame_and_scale(impl):
    z = random_latents(PAPER, 9)
    full = torch.full((2, 3, 6), 0.3, dtype=torch.float64)
    expected = impl.pyramid_encode(z, PAPER, flip_p=full, seed=5)
    for p in (0.3, full[0, 0], full[:, :1, :1], torch.tensor(0.3, dtype=torch.float64)):
        out = impl.pyramid_encode(z, PAPER, flip_p=p, seed=5)
        assert torch.equal(out.total, expected.total) and torch.equal(out.labels, expected.labels)
    assert torch.equal(impl.pyramid_encode(z, PAPER, flip_p=0.0, seed=5).total, impl.pyramid_encode(z, PAPER).total)


@IMPLEMENTATIONS
def test_more_scales_reconstruct_better(impl):
    z = random_latents(PAPER, 16) / 2
    labels = impl.pyramid_encode(z, PAPER).labels
    errors = [
        (impl.pyramid_decode(labels, PAPER, keep=k, dtype=torch.float64) - z).abs().mean().item() for k in range(7)
    ]
    assert errors[0] == pytest.approx(z.abs().mean().item()) and errors[6] < 0.8 * errors[0]


@IMPLEMENTATIONS
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("scales", [PAPER, RAGGED], ids=["paper", "ragged"])
def test_decode_sums_the_first_scales(impl, isa, scales, dim):
    ones = torch.rand(2, 3, sum(h * w for h, w in scales), dim) < 0.5
    code, parts, start = np.where(ones.cpu().numpy(), 1, -1) / dim**0.5, [], 0
    for h, w in scales:
        parts.append(up(code[:, :, start : start + h * w].reshape(2, 3, h, w, dim), scales[-1]))
        start += h * w
    sums = [np.zeros_like(parts[0]), *np.cumsum(parts, axis=0)]
    for keep in (None, 0, 2, torch.tensor([1, 4]), torch.tensor([[0, 1, 2], [3, 4, 5]])):
        counts = np.asarray(len(scales) if keep is None else keep)
        counts = np.broadcast_to(counts.reshape(counts.shape + (1,) * (2 - counts.ndim)), (2, 3))
        out = impl.pyramid_decode(pack_bits(ones), scales, dim=dim, keep=keep, dtype=torch.float64)
        for b in range(2):
            for t in range(3):
                assert np.abs(out[b, t].cpu().numpy() - sums[counts[b, t]][b, t]).max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_decode_of_the_labels_is_the_sum(isa, dtype):
    out = K.pyramid_encode(random_latents(RAGGED, 9, dtype), RAGGED)
    assert torch.equal(K.pyramid_decode(out.labels, RAGGED, dim=9, dtype=dtype), out.total)


@IMPLEMENTATIONS
@pytest.mark.parametrize("dim", [1, 9, 48, 255])
def test_steps_of_sampling_replay_the_encoding(impl, isa, dim):
    z = random_latents(RAGGED, dim, frames=1)
    encoded = impl.pyramid_encode(z, RAGGED)
    total, start = torch.zeros_like(z[:, 0]), 0
    for scale, following in zip(RAGGED, [*RAGGED[1:], None], strict=True):
        end = start + scale[0] * scale[1]
        step = impl.pyramid_step(total, encoded.labels[:, 0, start:end], scale, following)
        total, start = step.total, end
        if following is None:
            assert step.input is None
        else:
            expected = encoded.inputs[:, 0, start : start + following[0] * following[1]]
            assert (step.input - expected).abs().max() < 1e-14
    assert (total - encoded.total[:, 0]).abs().max() < 1e-14


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_resample_is_the_area_mean(impl, isa, dtype):
    for scales in (PAPER, RAGGED, [(5, 7), (1, 2)]):
        x = torch.randn(2, 3, *((8, 8) if scales == PAPER else (5, 7)), 11).to(dtype)
        exact = [down(x.double().cpu().numpy(), scale).reshape(2, 3, -1, 11) for scale in scales]
        exact = torch.as_tensor(np.concatenate(exact, axis=2))
        assert_close(impl.pyramid_resample(x, scales), exact, exact.to(dtype))


@pytest.mark.parametrize("scales", [PAPER, RAGGED], ids=["paper", "ragged"])
@pytest.mark.parametrize("dim", [1, 9, 48])
def test_the_sum_has_a_straight_through_gradient(isa, scales, dim):
    z = random_latents(scales, dim).requires_grad_()
    grad = torch.randn(z.shape, dtype=z.dtype)
    K.pyramid_encode(z, scales, flip_p=0.2, seed=1).total.backward(grad)
    height, width = scales[-1]
    expected = np.zeros(z.shape)
    for h, w in scales:
        rows = bilinear_matrix(height, h) @ area_matrix(h, height)
        columns = bilinear_matrix(width, w) @ area_matrix(w, width)
        expected += np.einsum("hy,wx,bthwd->btyxd", rows, columns, grad.cpu().numpy())
    assert np.abs(z.grad.cpu().numpy() - expected).max() < 1e-12
    again = z.detach().requires_grad_()
    R.pyramid_encode(again, scales, flip_p=0.2, seed=1).total.backward(grad)
    assert (again.grad - z.grad).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_gradients(isa, dtype):
    z, x = random_latents(RAGGED, 9, dtype).requires_grad_(), random_latents(RAGGED, 9, dtype).requires_grad_()
    grad, grad_tokens = torch.randn(z.shape).to(dtype), torch.randn(2, 3, 41, 9).to(dtype)
    K.pyramid_encode(z, RAGGED).total.backward(grad)
    K.pyramid_resample(x, RAGGED[:-1] + [(4, 1)]).backward(grad_tokens)
    z64, x64 = z.detach().double().requires_grad_(), x.detach().double().requires_grad_()
    R.pyramid_encode(z64, RAGGED).total.backward(grad.double())
    R.pyramid_resample(x64, RAGGED[:-1] + [(4, 1)]).backward(grad_tokens.double())
    assert_close(z.grad, z64.grad, z64.grad.to(dtype))
    assert_close(x.grad, x64.grad, x64.grad.to(dtype))


def test_resample_gradient_by_differences():
    x = torch.randn(1, 2, 5, 7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: K.pyramid_resample(value, RAGGED), x)


def test_labels_and_inputs_have_no_gradient():
    out = K.pyramid_encode(random_latents(RAGGED, 9).requires_grad_(), RAGGED)
    assert out.total.requires_grad and not out.inputs.requires_grad and not out.labels.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_latents(isa, dtype):
    base = random_latents([(5, 7)], 9, dtype)
    expected = K.pyramid_encode(base, RAGGED, flip_p=0.1, seed=2)
    padded = torch.zeros(2, 6, 7, 9, 20, dtype=dtype)
    padded[:, ::2, 1:6, 1:8, 3:12] = base
    channel_first = base.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    for z in (padded[:, ::2, 1:6, 1:8, 3:12], channel_first, base.transpose(0, 1).contiguous().transpose(0, 1)):
        out = K.pyramid_encode(z, RAGGED, flip_p=0.1, seed=2)
        for a, b in zip(out, expected, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(K.pyramid_resample(z, RAGGED), K.pyramid_resample(base, RAGGED))
        step = K.pyramid_step(z[:, 0], expected.labels[:, 0, :1], (1, 1), (2, 3))
        assert torch.equal(step.total, K.pyramid_step(base[:, 0], expected.labels[:, 0, :1], (1, 1)).total)
    z = base.detach().requires_grad_()
    K.pyramid_encode(z, RAGGED).total.sum().backward()  # the gradient is an expanded scalar
    w = base.detach().requires_grad_()
    K.pyramid_encode(w, RAGGED).total.backward(torch.ones_like(base))
    assert torch.equal(z.grad, w.grad)


def test_constant_frames_leave_no_rounding_behind(isa):
    out = K.pyramid_encode(torch.zeros(1, 1, 8, 8, 4), PAPER)
    total = out.total[0, 0, :, :, 0] * 2
    assert set(total.unique().tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("shape", [(0, 3, 8, 8, 9), (2, 0, 8, 8, 9), (1, 1, 8, 8, 1)])
def test_empty_and_tiny_sizes(isa, shape):
    z = torch.randn(shape, requires_grad=True)
    out = K.pyramid_encode(z, PAPER, flip_p=0.5, seed=0)
    assert out.labels.shape == (*shape[:2], 130, (shape[-1] + 7) // 8)
    assert K.pyramid_decode(out.labels, PAPER, dim=shape[-1]).shape == shape
    out.total.sum().backward()
    assert z.grad.shape == shape and torch.isfinite(z.grad).all()


def test_neither_threads_nor_batch_split_change_a_bit():
    z = random_latents(PAPER, 100, torch.float32)
    whole, threads = K.pyramid_encode(z, PAPER, flip_p=0.2, seed=3), torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        other = K.pyramid_encode(z, PAPER, flip_p=0.2, seed=3)
    finally:
        torch.set_num_threads(threads)
    part = K.pyramid_encode(z[:1], PAPER, flip_p=0.2, seed=3)
    for a, b, c in zip(whole, other, part, strict=True):
        assert torch.equal(a, b) and torch.equal(a[:1], c)
