"""Frechet distance between two sets of clips, on features of the video autoencoder's encoder.

    d = |m - m'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2),  of the features' means m and covariances S

A clip's features are taken from what the encoder hands to its last convolution, (C, T', H', W'): the mean over frames
and space, and the mean absolute difference between neighbouring latent frames; 2 C numbers. They are defined here:
figures compare with one another where the autoencoder is the same, and with nothing else.
Source: Heusel et al. 2017; the formula as in torchmetrics' FrechetInceptionDistance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from videoar.data.pixels import from_uint8
from videoar.tokenizer.autoencoder import VideoAutoencoder


@torch.no_grad()
def clip_features(autoencoder: VideoAutoencoder, videos: Tensor, *, batch: int = 32) -> Tensor:
    """Features float64 (N, 2 C) of clips (N, T, H, W, 3) uint8, `batch` of them at a time.

    Raises:
        ValueError: clips of a single latent frame, between which nothing changes.
    """
    seen: list[Tensor] = []
    hook = autoencoder.encoder.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = []
    try:
        for some in videos.split(batch):
            seen.clear()
            autoencoder.encode(from_uint8(some).to(autoencoder.latent_mean.device))
            x = seen[0].double()  # (B, C, T', H', W')
            if x.shape[2] < 2:
                raise ValueError(f"clip_features: expected clips of several latent frames, got {tuple(videos.shape)}")
            change = x.diff(dim=2).abs().mean(dim=(2, 3, 4))
            features.append(torch.cat([x.mean(dim=(2, 3, 4)), change], dim=1).cpu())
    finally:
        hook.remove()
    return torch.cat(features)


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """The distance between Gaussians fitted to two sets of features (N, D) and (M, D); grows as sets get smaller.

    Raises:
        ValueError: sets of less than two, or of different widths.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise ValueError(
            f"frechet_distance: expected features (N >= 2, D) and (M >= 2, D), got {tuple(one.shape)} and "
            f"{tuple(other.shape)}"
        )
    moments = [(x.double().mean(0), torch.cov(x.double().T).reshape(x.shape[1], -1)) for x in (one, other)]
    return gaussian_distance(*moments[0], *moments[1])


class DistanceParts(NamedTuple):
    """What a distance between features of clips is made of.

    Attributes:
        distance: of all features.
        means: its part |m - m'|^2; the rest is of the covariances.
        pictures: the distance of the first half of the features alone, means over frames and space.
        changes: and of the second, changes between latent frames.
    """

    distance: float
    means: float
    pictures: float
    changes: float


def distance_parts(one: Tensor, other: Tensor) -> DistanceParts:
    """Parts of the distance between two sets of `clip_features`, (N, 2 C) and (M, 2 C).

    `pictures` and `changes` do not add up to the distance where the one kind goes with the other.

    Raises:
        ValueError: as `frechet_distance`.
    """
    whole = frechet_distance(one, other)
    half = one.shape[1] // 2
    means = (one.double().mean(0) - other.double().mean(0)).square().sum()
    pictures, changes = (frechet_distance(one[:, part], other[:, part]) for part in (slice(half), slice(half, None)))
    return DistanceParts(whole, float(means), pictures, changes)


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """The distance between two Gaussians, means (D,) and covariances (D, D) in float64."""
    root = _root(covariance)
    # Similar to S S', but symmetric, so that its eigenvalues are real.
    product = root @ other_covariance @ root
    cross = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    squared = (mean - other_mean).square().sum()
    return float(squared + covariance.trace() + other_covariance.trace() - 2 * cross)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
