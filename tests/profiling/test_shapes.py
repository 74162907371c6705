"""Sizes of clips as the command line takes them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from videoar.next_scale.config import preset
from videoar.profiling.shapes import Shape, fitted, parse_scales, parse_shape, scales_of
from videoar.tokenizer import TokenizerConfig


def test_the_ucf_grid_gets_the_papers_scales():
    assert scales_of(8, 8) == preset("L").scales


def test_oblong_grids_keep_their_proportion_to_the_last_scale():
    scales = scales_of(24, 42)
    assert scales[0] == (1, 1) and scales[-1] == (24, 42)
    assert all(a <= b for a, b in pairwise(scales))


def test_shapes_and_scales_are_read():
    assert parse_shape("17x128x256") == Shape(17, 128, 256)
    assert parse_scales("1,2,4") == ((1, 1), (2, 2), (4, 4))
    assert parse_scales("1x1,3x5") == ((1, 1), (3, 5))


@pytest.mark.parametrize("text", ["17x128", "17 x 128 x 128", "0x16x16", "ax1x1", ""])
def test_other_texts_are_no_shape(text):
    with pytest.raises(ValueError, match="frames x height x width"):
        parse_shape(text)


@pytest.mark.parametrize("text", ["", "1,", "0,1", "1x2x3", "a"])
def test_other_texts_are_no_scales(text):
    with pytest.raises(ValueError, match="--scales"):
        parse_scales(text)


def test_a_preset_is_fitted_to_a_clip():
    config, tokenizer, shape = fitted(preset("L"), TokenizerConfig(), Shape(9, 256, 128), None)
    assert config.frames == 3 and config.scales[-1] == (16, 8) and tokenizer.scales == config.scales
    assert shape == Shape(9, 256, 128)
    assert fitted(preset("L"), TokenizerConfig(), None, None)[2] == Shape(17, 128, 128)
    assert fitted(preset("L"), TokenizerConfig(), None, ((1, 1), (4, 4)))[2] == Shape(17, 64, 64)


@pytest.mark.parametrize("shape", [Shape(16, 128, 128), Shape(17, 120, 128)])
def test_clips_that_the_tokenizer_cannot_hold_are_refused(shape):
    with pytest.raises(ValueError, match=r"1 \+ n \* 4 frames and multiples of 16"):
        fitted(preset("L"), TokenizerConfig(), shape, None)


def test_scales_that_miss_the_grid_are_refused():
    with pytest.raises(ValueError, match="to be 8x8"):
        fitted(preset("L"), TokenizerConfig(), Shape(17, 128, 128), ((1, 1), (4, 4)))
