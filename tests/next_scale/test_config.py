"""Presets are the paper's models."""

from __future__ import annotations

import pytest
import torch

from videoar.next_scale.config import PRESETS, TransformerConfig, preset
from videoar.next_scale.transformer import NextScaleTransformer


def parameters(config: TransformerConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in NextScaleTransformer(config).parameters())


@pytest.mark.parametrize("name, paper", [("L", 926e6), ("XL", 2.0e9), ("4B", 4e9)])
def test_presets_have_the_papers_size_within_eight_percent(name: str, paper: float):
    assert abs(parameters(PRESETS[name]) / paper - 1) < 0.08


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="'XXL'"):
        preset("XXL")


def test_a_preset_takes_changes():
    assert preset("tiny", depth=5).depth == 5


@pytest.mark.parametrize("changes", [{"heads": 7}, {"heads": 12, "kv_heads": 5}, {"context": "none"}])
def test_impossible_shapes_are_refused(changes: dict):
    with pytest.raises(ValueError, match="TransformerConfig: expected"):
        TransformerConfig(**changes)


def test_the_first_loss_is_log_2_a_bit():
    model = NextScaleTransformer(PRESETS["tiny"])
    config = model.config
    tokens = torch.randn(2, 3, config.tokens_per_frame, config.bits)
    logits = model(torch.randn(2, config.text_len, config.text_width), tokens, tokens)
    assert not logits.any()
