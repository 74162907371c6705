"""Quantization for training: the pyramid's bits, cut short and corrupted, with a gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from videoar.tokenizer.quantizer import quantize
from videoar_kernels.reference.bits import unpack_bits
from videoar_kernels.reference.pyramid import pyramid_decode, pyramid_encode

SCALES = ((1, 1), (2, 2), (2, 2), (4, 4))
ALL = torch.tensor([4, 4, 4])


def latents():
    return torch.randn(3, 2, 4, 4, 8, dtype=torch.float64)


def test_without_dropout_or_flips_it_is_the_pyramid():
    z = latents()
    found, expected = quantize(z, SCALES), pyramid_encode(z, SCALES)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.total, expected.total)
    torch.testing.assert_close(found.full, expected.total)


def test_each_clip_keeps_its_own_number_of_scales():
    z, keep = latents(), torch.tensor([1, 3, 4])
    found = quantize(z, SCALES, keep=keep).total
    for clip, kept in enumerate(keep.tolist()):
        bits = pyramid_encode(z[clip : clip + 1], SCALES).labels
        expected = pyramid_decode(bits, SCALES, dim=8, keep=kept, dtype=torch.float64)
        torch.testing.assert_close(found[clip : clip + 1], expected)


def test_bits_are_the_signs_of_the_residuals():
    found = quantize(latents(), SCALES)
    assert torch.equal(found.residual > 0, unpack_bits(found.labels, 8))


def test_flips_reach_the_decoder_and_later_scales_answer_them():
    z = latents()
    flip = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    found, clean = quantize(z, SCALES, keep=ALL, flip=flip, seed=5), quantize(z, SCALES)
    torch.testing.assert_close(found.total[0], clean.total[0])
    assert (found.total[1:] - clean.total[1:]).abs().amax((1, 2, 3, 4)).min() > 0.1
    torch.testing.assert_close(found.total, found.full)  # one set of flips in both
    assert torch.equal(found.labels[:, :, 0], clean.labels[:, :, 0])
    assert not torch.equal(found.labels[1], clean.labels[1])


def test_the_gradient_passes_each_kept_scale_straight_through():
    z = latents().requires_grad_()
    weight = torch.randn(3, 2, 4, 4, 8, dtype=torch.float64)
    keep = torch.tensor([1, 2, 4])
    (quantize(z, SCALES, keep=keep).total * weight).sum().backward()

    soft = z.detach().clone().requires_grad_()
    flat = soft.flatten(0, 1).movedim(-1, 1)
    parts = [F.interpolate(F.adaptive_avg_pool2d(flat, s), (4, 4), mode="bilinear") for s in SCALES]
    parts = [part.movedim(1, -1).unflatten(0, (3, 2)) for part in parts]
    total = torch.stack([sum(parts[:kept])[clip] for clip, kept in enumerate(keep.tolist())])
    (total * weight).sum().backward()
    torch.testing.assert_close(z.grad, soft.grad)
