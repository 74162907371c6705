"""The loss tells whether a caption is read."""

from __future__ import annotations

import pytest
import torch

from videoar.data.captions import heldout_captions, parse_caption
from videoar.evaluation.caption_use import caption_use, wrong_caption


def test_a_wrong_caption_is_wrong_in_every_attribute():
    for seed, caption in enumerate(heldout_captions()):
        other = wrong_caption(caption, seed)
        assert all(a != b for a, b in zip(parse_caption(caption), parse_caption(other), strict=True))
        assert other == wrong_caption(caption, seed)


def test_reading_and_ignoring_a_caption_are_told_apart():
    captions = heldout_captions()[:10]
    batches = [(torch.arange(4), captions[:4]), (torch.arange(4, 10), captions[4:])]

    def reading(clips, said):
        cost = {True: 0.5, False: 1.0}
        return sum(0.8 if s is None else cost[s == captions[c]] for c, s in zip(clips, said, strict=True)) / len(said)

    assert caption_use(reading, batches) == pytest.approx((0.5, 1.0, 0.8, 1.0))
    assert caption_use(lambda clips, said: 0.7, batches) == pytest.approx((0.7, 0.7, 0.7, 0.0))
