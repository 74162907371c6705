"""Both papers' pipelines take the same prompts, seeds and lengths, and refuse the same."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from tiny_sprites import tiny_sprites

from videoar.next_scale.config import preset
from videoar.next_scale.pipeline import SamplingDefaults, VideoPipeline
from videoar.next_scale.transformer import NextScaleTransformer
from videoar.next_unit import UnitPipeline
from videoar.text import WordEncoder, WordEncoderConfig
from videoar.tokenizer import TokenizerConfig, VideoTokenizer

TOKENIZER = TokenizerConfig(
    bits=8,
    scales=((1, 1), (2, 2)),
    patch=(4, 8),
    channels=(8, 8),
    strides=((1, 2),),
    blocks=1,
    time_kernels=((1, 1),) * 2,
)


@cache
def pipeline(name: str) -> VideoPipeline | UnitPipeline:
    if name == "UnitPipeline":
        return tiny_sprites("frame")
    torch.manual_seed(0)
    config = preset("tiny", bits=8, scales=TOKENIZER.scales, frames=2)
    words = WordEncoder(WordEncoderConfig(("red",), width=config.text_width, length=config.text_len))
    return VideoPipeline(
        VideoTokenizer(TOKENIZER).eval(), NextScaleTransformer(config).eval(), words, SamplingDefaults(frames=5)
    )


PIPELINES = pytest.mark.parametrize("name", ["UnitPipeline", "VideoPipeline"])


@PIPELINES
@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ("red", {}, "expected prompts as a list, got 'red'"),
        (3, {}, "expected prompts as a list, got 3"),
        (None, {}, "expected prompts as a list, got None"),
        ([], {}, "expected at least one prompt, got none"),
        (["red"], {"frames": 5.0}, "expected frames as int, got 5.0"),
        (["red"], {"frames": 0}, "frame"),
        (["red"], {"seed": 1.5}, "expected seeds as int, got 1.5"),
        (["red"], {"seed": True}, "expected seeds as int, got True"),
        (["red"], {"seed": "1"}, "expected seeds as int, got '1'"),
        (["red"], {"seed": [np.float64(1)]}, "expected seeds as int, got "),
        (["red"], {"seed": [1, 2]}, "expected 1 seeds"),
        (["red"], {"seed": 1 << 64}, "expected .*seeds"),
    ],
)
def test_what_makes_no_sense_is_refused(name, prompts, options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        pipeline(name).generate(prompts, **options)


@PIPELINES
@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), np.array([7, 7]), torch.tensor([7, 7]), (7, np.int32(7))])
def test_whole_numbers_of_any_kind_are_seeds(name, seed):
    generate, prompts = pipeline(name).generate, ["red", ""]
    expected = generate(prompts, seed=7, frames=5)
    assert torch.equal(generate(prompts, seed=seed, frames=np.int64(5)), expected)
    assert not torch.equal(generate(prompts, seed=[7, 8], frames=5), expected)


@PIPELINES
def test_a_pipeline_serves_after_what_it_refused(name):
    with pytest.raises(ValueError, match=r"expected .*seeds"):
        pipeline(name).generate(["red"], seed=1 << 64)
    assert pipeline(name).generate(["red"], frames=5).shape[2] == 5
