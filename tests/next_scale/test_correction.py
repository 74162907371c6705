"""Cross-Frame Error Correction follows Eq. 8."""

from __future__ import annotations

import pytest
import torch

from videoar.next_scale.correction import CorrectionConfig, flip_probabilities

CONFIG = CorrectionConfig(p_min=0.05, p_max=0.25, delta=0.02)


def test_probabilities_lie_in_a_range_that_grows_with_time():
    p = flip_probabilities(500, 4, 3, CONFIG, seed=0)
    for frame in range(4):
        inner = p[:, frame, 1:]
        assert inner.min() >= 0.05 + 0.02 * frame - 1e-6 and inner.max() <= 0.25 + 0.02 * frame + 1e-6
        assert abs(float(inner.mean()) - (0.15 + 0.02 * frame)) < 0.01


@pytest.mark.parametrize("scales", [1, 3])
def test_the_first_scale_starts_above_the_frame_before(scales: int):
    p = flip_probabilities(500, 4, scales, CONFIG, seed=0)
    assert (p[:, 1:, 0] >= p[:, :-1, -1]).all()
    assert (p[:, 1:, 0] <= 0.25 + 0.02 * torch.arange(1, 4) + 1e-6).all()


def test_the_papers_values_are_the_default_and_draws_repeat():
    one = flip_probabilities(8, 5, 6, seed=3, offset=9)
    assert torch.equal(one, flip_probabilities(8, 5, 6, CorrectionConfig(0.0, 0.25, 0.01), seed=3, offset=9))
    assert not torch.equal(one, flip_probabilities(8, 5, 6, seed=3, offset=10))


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="p_min <= p_max"):
        CorrectionConfig(p_min=0.3, p_max=0.2)
