"""Random Frame Mask draws which earlier frames each frame sees."""

from __future__ import annotations

import torch

from videoar.next_scale.frame_mask import random_frame_keep


def test_the_share_of_hidden_frames_is_p():
    keep = random_frame_keep(100, 0.3, seed=1)
    assert keep.shape == (100, 100)
    assert abs(float((~keep).float().mean()) - 0.3) < 0.02


def test_the_same_seed_and_offset_draw_the_same_and_samples_differ():
    one = random_frame_keep(8, 0.5, seed=1, offset=7, batch=3)
    assert torch.equal(one, random_frame_keep(8, 0.5, seed=1, offset=7, batch=3))
    assert not torch.equal(one, random_frame_keep(8, 0.5, seed=1, offset=8, batch=3))
    assert not torch.equal(one[0], one[1])


def test_nothing_is_hidden_at_zero():
    assert random_frame_keep(5, 0.0, seed=0).all()
