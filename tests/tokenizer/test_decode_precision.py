"""A decoder that computes in another dtype than the encoder: for inference where float32 is slow."""

from __future__ import annotations

import pytest
import torch
from tokenizer.lively import CONFIGS, FOLDED, lively


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_pixels_of_a_bfloat16_decoder_are_those_of_float32_up_to_rounding(name):
    model = lively(CONFIGS[name])
    height, width = model.config.scales[-1]
    latent = torch.randn(2, 3, height, width, model.config.bits)
    exact = model.decode(latent)
    assert model.decode_in(torch.bfloat16) is model and model.decoding == torch.bfloat16
    found = model.decode(latent)
    assert found.shape == exact.shape and found.dtype == torch.float32
    assert 0 < rms(found - exact) < 0.03 * rms(exact)
    state, parts = None, []
    for chunk in latent.split(1, dim=1):
        state, video = reversed(model.decode_chunk(chunk, state))
        parts.append(video)
    assert rms(torch.cat(parts, dim=2) - exact) < 0.03 * rms(exact)


@torch.no_grad()
def test_what_becomes_bits_stays_in_float32():
    model = lively(FOLDED)
    side = 4 * model.config.space_stride
    video = torch.rand(1, 3, 5, side, side) * 2 - 1
    bits = model.tokenize(video)
    assert torch.equal(model.decode_in(torch.bfloat16).tokenize(video), bits)
    assert model.detokenize(bits).dtype == torch.float32
    assert lively(FOLDED, torch.float64).decode(torch.randn(1, 1, 4, 4, 12).double()).dtype == torch.float64


def test_a_rounded_decoder_is_not_saved(tmp_path):
    model = lively(FOLDED).decode_in(torch.bfloat16)
    with pytest.raises(ValueError, match="got one that decodes in torch"):
        model.save_pretrained(tmp_path)
    lively(FOLDED).bfloat16().save_pretrained(tmp_path)
