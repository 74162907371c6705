"""The tokenizer's objective (paper S, Eq. 4): a weighted sum of named terms, each a function of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.tokenizer.quantizer import Quantized, Scales


@dataclass(frozen=True)
class PixelLossConfig:
    """What shapes the pixel loss.

    Args:
        squared: share of the squared error in it; the rest is the absolute error.
        contrast: extra weight of a pixel that departs from its smooth surroundings.
        edge: the same, from its nearest surroundings.
        motion: extra weight of a pixel that changes between frames.
    """

    squared: float = 0.5
    contrast: float = 8.0
    edge: float = 0.0
    motion: float = 4.0


@dataclass(frozen=True)
class LossConfig(PixelLossConfig):
    """Weights of the terms of Eq. 4 and what shapes them.

    Args:
        reconstruction: weight of the pixel loss.
        commitment: weight of the distance from the latent to its quantized sum.
        entropy: weight of the bit entropy terms.
        sharpness: slope of the soft bit, sigmoid(sharpness * sqrt(d) * residual).
    """

    reconstruction: float = 1.0
    commitment: float = 0.05
    entropy: float = 0.02
    sharpness: float = 4.0


def pixel_weight(video: Tensor, *, contrast: float, edge: float, motion: float) -> Tensor:
    """How much each pixel counts: 1 on a smooth still background, more where the picture departs from it.

    Args:
        video: (B, 3, T, H, W) in [-1, 1].
        contrast: weight of the distance to the mean of the surroundings, 24 pixels wide.
        edge: weight of the distance to the mean of the nearest surroundings, 6 pixels wide.
        motion: weight of the change since the frame before.

    Returns:
        (B, 1, T, H, W), with mean 1 over each clip.
    """
    change = (video[:, :, 1:] - video[:, :, :-1]).abs().amax(1)
    change = F.pad(change, (0, 0, 0, 0, 1, 0))  # (B, T, H, W)
    weight = 1 + motion * change.clamp(max=1)
    for cell, strength in ((8, contrast), (2, edge)):
        if strength:
            weight = weight + strength * _departure(video, cell).clamp(max=1)
    return (weight / weight.mean((1, 2, 3), keepdim=True)).unsqueeze(1)


def _departure(video: Tensor, cell: int) -> Tensor:
    """Largest distance of a pixel's colours to the mean of 3 x 3 cells around it: (B, T, H, W)."""
    flat = video.transpose(1, 2).flatten(0, 1)  # (B T, 3, H, W)
    height, width = flat.shape[-2:]
    smooth = F.adaptive_avg_pool2d(flat, (-(-height // cell), -(-width // cell)))
    smooth = F.avg_pool2d(smooth, 3, 1, 1, count_include_pad=False)  # over few cells: over pixels it is slow
    smooth = F.interpolate(smooth, (height, width), mode="bilinear")
    return (flat - smooth).abs().amax(1).unflatten(0, (video.shape[0], -1))


def reconstruction_loss(output: Tensor, video: Tensor, config: PixelLossConfig) -> Tensor:
    """Mean of squared and absolute error, weighted by `pixel_weight`."""
    weight = pixel_weight(video, contrast=config.contrast, edge=config.edge, motion=config.motion)
    error = output - video
    return (weight * (config.squared * error.square() + (1 - config.squared) * error.abs())).mean()


def commitment_loss(z: Tensor, quantized: Tensor) -> Tensor:
    """Mean squared length of what the bits leave of a latent."""
    return (z - quantized.detach()).square().sum(-1).mean()


def entropy_loss(residual: Tensor, scales: Scales, *, sharpness: float) -> Tensor:
    """Entropy of each bit in a clip less its entropy over clips, at the same scale and frame index, in nats a bit.

    Conditional on the frame index because a bit that only tells the first frame from the others looks lively in the
    marginal. Taken bit by bit, as the relatives do, its memory is linear in d.

    Args:
        residual: (B, T, N, d), the values whose signs are the bits.
        scales: heights and widths.
        sharpness: slope of the soft bit.
    """
    logit = residual * (sharpness * residual.shape[-1] ** 0.5)
    loss, start = residual.new_zeros(()), 0
    for height, width in scales:
        soft = logit[:, :, start : start + height * width]
        start += height * width
        probability = torch.sigmoid(soft)
        sure = F.binary_cross_entropy_with_logits(soft, probability)
        mean = probability.mean((0, 2))  # (T, d)
        loss = loss + sure - binary_entropy(mean).mean()
    return loss / len(scales)


def binary_entropy(probability: Tensor) -> Tensor:
    """Entropy of a bit in nats."""
    p = probability.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def tokenizer_loss(
    output: Tensor, video: Tensor, z: Tensor, quantized: Quantized, scales: Scales, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective and its unweighted terms by name."""
    terms = {
        "reconstruction": reconstruction_loss(output, video, config),
        "commitment": commitment_loss(z, quantized.full),
        "entropy": entropy_loss(quantized.residual, scales, sharpness=config.sharpness),
    }
    total = sum(getattr(config, name) * value for name, value in terms.items())
    return total, {name: value.detach() for name, value in terms.items()}
