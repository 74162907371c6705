"""What each term of the tokenizer's objective rewards."""

from __future__ import annotations

import torch

from videoar.tokenizer.losses import (
    LossConfig,
    PixelLossConfig,
    commitment_loss,
    entropy_loss,
    pixel_weight,
    reconstruction_loss,
    tokenizer_loss,
)
from videoar.tokenizer.quantizer import quantize

SCALES = ((1, 1), (2, 2))


def sprite_video():
    video = torch.full((2, 3, 4, 32, 32), -0.2)
    video[:, 0, :, 8:16, 8:16] = 0.9
    video[:, 1, 2:, 20:28, 20:28] = 0.9  # appears in frame 2
    return video


def test_pixels_that_depart_from_their_surroundings_or_change_count_more():
    weight = pixel_weight(sprite_video(), contrast=8, edge=0, motion=4)
    assert weight.shape == (2, 1, 4, 32, 32)
    torch.testing.assert_close(weight.mean((1, 2, 3, 4)), torch.ones(2))
    assert weight[0, 0, 0, 12, 12] > 3 * weight[0, 0, 0, 1, 30]
    assert weight[0, 0, 2, 24, 24] > 1.2 * weight[0, 0, 3, 24, 24]  # it changes in frame 2 only


def test_without_contrast_and_motion_all_pixels_count_alike():
    assert torch.equal(pixel_weight(sprite_video(), contrast=0, edge=0, motion=0), torch.ones(2, 1, 4, 32, 32))


def test_a_perfect_reconstruction_costs_nothing():
    video = sprite_video()
    assert reconstruction_loss(video, video, PixelLossConfig()) == 0
    assert reconstruction_loss(video + 0.1, video, PixelLossConfig()) > 0


def test_commitment_is_the_squared_distance_to_the_bits():
    z, total = torch.zeros(1, 1, 2, 2, 4), torch.full((1, 1, 2, 2, 4), 0.5)
    assert commitment_loss(z, total) == 1.0


def test_entropy_rewards_sure_bits_that_differ_between_clips():
    signs = torch.where(torch.rand(64, 3, 5, 16) < 0.5, -1.0, 1.0)
    lively = entropy_loss(signs, SCALES, sharpness=4)
    unsure = entropy_loss(signs * 0.01, SCALES, sharpness=4)
    constant = entropy_loss(torch.ones(64, 3, 5, 16), SCALES, sharpness=4)
    assert lively < unsure - 0.5
    assert lively < constant - 0.5


def test_a_bit_that_tells_only_the_frame_index_earns_no_entropy():
    by_frame = torch.ones(64, 3, 5, 16)
    by_frame[:, 0] = -1
    assert abs(entropy_loss(by_frame, SCALES, sharpness=4)) < 1e-3


def test_every_term_reaches_the_latents():
    for name in ("reconstruction", "commitment", "entropy"):
        only = {other: float(other == name) for other in ("reconstruction", "commitment", "entropy")}
        z = torch.randn(2, 4, 2, 2, 8, requires_grad=True)
        quantized = quantize(z, SCALES)
        output = quantized.total.mean((2, 3, 4))[:, None, :, None, None].expand(-1, 3, -1, 32, 32)
        total, terms = tokenizer_loss(output, sprite_video(), z, quantized, SCALES, LossConfig(**only))
        torch.testing.assert_close(total.detach(), terms[name])
        total.backward()
        assert z.grad.abs().sum() > 0
