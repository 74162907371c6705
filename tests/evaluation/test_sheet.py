"""Contact sheets show clips in rows and say what was asked and measured."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from videoar.data.sprites import SpriteConfig, sample_batch
from videoar.evaluation.sheet import contact_sheet


def test_a_sheet_is_written_and_holds_the_frames(tmp_path):
    batch = sample_batch(3, seed=0)
    sheet = contact_sheet(batch.video, batch.captions, tmp_path / "sheet.png", columns=17, zoom=1)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), np.asarray(sheet))
    assert sheet.size == (17 * 66, 3 * 82)
    assert np.array_equal(np.asarray(sheet)[16:80, 66 * 16 : 66 * 16 + 64], batch.video[0, 16].numpy())


def test_what_was_asked_and_seen_is_green_and_the_rest_red():
    batch = sample_batch(1, seed=0)
    right = np.asarray(contact_sheet(batch.video, batch.captions))[:16]
    wrong = np.asarray(contact_sheet(batch.video[:, :1], batch.captions))[:16]
    for red, green, title in ((False, True, right), (True, True, wrong)):
        assert (title == (190, 30, 30)).all(-1).any() == red
        assert (title == (20, 120, 50)).all(-1).any() == green


def test_sprites_that_leave_and_enter_again_are_measured_as_such():
    batch = sample_batch(8, seed=0, config=SpriteConfig(wrap=True))
    reds = [
        (np.asarray(contact_sheet(batch.video, batch.captions, wrap=wrap)) == (190, 30, 30)).all(-1).sum()
        for wrap in (True, False)
    ]
    assert reds[0] == 0 < reds[1]


def test_clips_of_different_length_and_other_captions_go_together():
    short, long = sample_batch(1, seed=0).video[0, :1], sample_batch(1, seed=1).video[0]
    assert contact_sheet([short, long], ["a still", ""], columns=5).width == 5 * 130
    with pytest.raises(ValueError, match="expected a caption for each"):
        contact_sheet([short, long], ["one"])
