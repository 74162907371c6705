"""The distance of Gaussians whose answer is known, and what the features of clips see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from videoar.data.sprites import SpriteConfig, sample_batch
from videoar.evaluation.frechet import clip_features, distance_parts, frechet_distance, gaussian_distance
from videoar.tokenizer.autoencoder import VideoAutoencoder
from videoar.tokenizer.config import AutoencoderConfig


def spread(*sizes: float) -> torch.Tensor:
    return torch.diag(torch.tensor(sizes, dtype=torch.float64).square())


def test_gaussians_along_the_same_axes_differ_by_means_and_by_deviations():
    zero, mean = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    found = gaussian_distance(zero, spread(1, 2, 3), mean, spread(4, 2, 1))
    assert found == pytest.approx(1 + 4 + (1 - 4) ** 2 + (3 - 1) ** 2)
    assert gaussian_distance(mean, spread(1, 2, 0), mean, spread(1, 2, 0)) == pytest.approx(0, abs=1e-12)


def test_axes_matter():
    """Two dimensions have a closed form: tr (S S')^1/2 = (tr S S' + 2 det(S S')^1/2)^1/2."""
    zero = torch.zeros(2, dtype=torch.float64)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    one, other = spread(1, 3), turn @ spread(1, 3) @ turn.T
    product = one @ other
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = float(one.trace() + other.trace() - 2 * cross)
    assert gaussian_distance(zero, one, zero, other) == pytest.approx(expected) and expected > 1


def test_samples_of_gaussians_are_as_far_apart_as_these():
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 40_000, 4, generator=generator, dtype=torch.float64)
    assert frechet_distance(draw[0], draw[1]) < 2e-3
    assert frechet_distance(draw[0], 2 * draw[1] + 1) == pytest.approx(4 + 4, rel=0.03)


def features(count: int) -> torch.Tensor:
    """Two sets of features (2, count, 6) that lie along different axes."""
    draw = torch.randn(2, count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draw[1] = draw[1] @ torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    return draw


@pytest.mark.parametrize("count", [50, 4])  # 4 features span less than 6 dimensions
def test_numpy_finds_the_same_distance_from_the_plain_product(count):
    """tr (S S')^1/2 from the eigenvalues of S S' itself, which no step of ours forms."""
    one, other = (x.numpy() for x in features(count))
    covariances = [np.cov(x, rowvar=False) for x in (one, other)]
    values = np.linalg.eigvals(covariances[0] @ covariances[1])
    assert np.abs(values.imag).max() < 1e-9 * values.real.max()
    apart = np.sum((one.mean(0) - other.mean(0)) ** 2) + sum(np.trace(x) for x in covariances)
    expected = apart - 2 * np.sqrt(values.real.clip(min=0)).sum()
    assert frechet_distance(*features(count)) == pytest.approx(expected, rel=1e-6)
    own = [np.linalg.eigvalsh(x).clip(min=0) for x in covariances]  # as if both lay along the same axes
    assert frechet_distance(*features(count)) > 1.01 * (apart - 2 * np.sqrt(own[0] * own[1]).sum())


def test_covariances_that_commute_differ_by_their_deviations_along_shared_axes():
    generator = np.random.default_rng(0)
    axes, _ = np.linalg.qr(generator.standard_normal((5, 5)))
    one, other = generator.uniform(0.1, 3, (2, 5))  # standard deviations
    means = generator.standard_normal((2, 5))
    gaussians = [(mean, axes * deviation**2 @ axes.T) for mean, deviation in zip(means, (one, other), strict=True)]
    found = gaussian_distance(*(torch.from_numpy(x) for gaussian in gaussians for x in gaussian))
    assert found == pytest.approx(np.sum((means[0] - means[1]) ** 2) + np.sum((one - other) ** 2), rel=1e-9)


def test_a_shift_is_all_of_the_means_and_stands_in_its_half():
    draw = torch.randn(50, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shift = torch.tensor([0, 0, 0, 1.0, 0, 2.0], dtype=torch.float64)
    assert distance_parts(draw + shift, draw) == pytest.approx((5, 5, 0, 5), abs=1e-9)
    assert distance_parts(draw + shift.flip(0), draw) == pytest.approx((5, 5, 5, 0), abs=1e-9)
    assert distance_parts(draw - draw.mean(0), 2 * (draw - draw.mean(0))).means == pytest.approx(0, abs=1e-9)


def test_torchmetrics_has_the_same_formula():
    metrics = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    draw = features(50)
    means, covariances = draw.mean(1), [torch.cov(x.T) for x in draw]
    theirs = metrics._compute_fid(means[0], covariances[0], means[1], covariances[1])
    assert frechet_distance(draw[0], draw[1]) == pytest.approx(float(theirs))


@pytest.fixture(scope="module")
def autoencoder() -> VideoAutoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        latent_channels=3, patch=(1, 8), channels=(8, 12), strides=((4, 2),), blocks=1, time_kernels=((1, 1), (3, 1))
    )
    return VideoAutoencoder(config).eval()


def clips(seed: int) -> torch.Tensor:
    return sample_batch(24, seed, config=SpriteConfig(frames=9)).video


def test_features_see_pictures_and_motion(autoencoder):
    real = clip_features(autoencoder, clips(0), batch=7)
    assert real.shape == (24, 24) and real.dtype == torch.float64
    torch.testing.assert_close(clip_features(autoencoder, clips(0)), real, atol=1e-5, rtol=0)
    floor = frechet_distance(clip_features(autoencoder, clips(1)), real)
    still = clips(1)[:, :1].expand(-1, 9, -1, -1, -1)
    assert frechet_distance(clip_features(autoencoder, still), real) > 2 * floor
    assert frechet_distance(clip_features(autoencoder, 255 - clips(1)), real) > 2 * floor
    assert not autoencoder.encoder.conv_out._forward_pre_hooks


def test_what_does_not_fit_is_named(autoencoder):
    with pytest.raises(ValueError, match="several latent frames"):
        clip_features(autoencoder, clips(0)[:, :1])
    with pytest.raises(ValueError, match=r"expected features \(N >= 2, D\)"):
        frechet_distance(torch.zeros(3, 4), torch.zeros(3, 5))
