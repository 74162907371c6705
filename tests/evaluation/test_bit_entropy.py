"""Entropy counts what a bit says beyond what is known already."""

from __future__ import annotations

import pytest
import torch

from videoar.evaluation.bit_entropy import bit_entropy
from videoar_kernels.reference.bits import pack_bits

SCALES = ((1, 1), (2, 3))


def entropies(bits):
    return bit_entropy(pack_bits(bits), SCALES, bits.shape[-1])


def test_fair_coins_have_one_bit_and_constants_none():
    coins = torch.rand(2000, 3, 7, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    found = entropies(coins)
    for values in found:
        assert values == pytest.approx([1, 1], abs=2e-3)
    for values in entropies(torch.ones(4, 3, 7, 5, dtype=torch.bool)):
        assert values == [0, 0]


def test_a_bit_that_tells_only_the_frame_is_nothing_given_the_frame():
    bits = torch.zeros(10, 2, 7, 4, dtype=torch.bool)
    bits[:, 1] = True
    found = entropies(bits)
    assert found.marginal == pytest.approx([1, 1])
    assert found.frame == found.place == found.lowest_frame == [0, 0]


def test_a_bit_that_tells_only_the_place_is_nothing_given_the_place():
    bits = torch.zeros(10, 2, 7, 4, dtype=torch.bool)
    bits[:, :, 1:4] = True  # half of the second scale
    found = entropies(bits)
    assert found.frame == pytest.approx([0, 1]) and found.place == [0, 0]


def test_the_poorest_frame_is_named():
    bits = torch.rand(4000, 2, 7, 8, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.5, 0.1]).view(
        2, 1, 1
    )
    poor = -(0.1 * torch.tensor(0.1).log2() + 0.9 * torch.tensor(0.9).log2()).item()
    found = entropies(bits)
    assert found.lowest_frame == pytest.approx([poor, poor], abs=0.01)
    assert found.frame == pytest.approx([(1 + poor) / 2] * 2, abs=0.01)


def test_bits_of_other_scales_are_refused():
    with pytest.raises(ValueError, match=r"expected bits of shape \(B, T, 7, 1\), got \(1, 2, 5, 1\)"):
        bit_entropy(torch.zeros(1, 2, 5, 1, dtype=torch.uint8), SCALES, 8)
