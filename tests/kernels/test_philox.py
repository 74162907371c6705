"""The random generator: known answers, indexing by logical element, and every bit equal to an independent one."""

from __future__ import annotations

import philox_numpy
import pytest
import torch

import videoar_kernels as bits
from videoar_kernels.reference import philox

KNOWN = [  # counter, key, output: the published test vectors of Random123
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = [0, 1, 2**31, 2**32 + 7, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_known_answers(counter, key, expected):
    out = philox.philox_block([torch.tensor([word]) for word in counter], key)
    assert tuple(int(word) for word in out) == expected
    as_integer = sum(word << (32 * i) for i, word in enumerate(counter))
    assert tuple(philox_numpy.block(as_integer, key[0] + (key[1] << 32))) == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("offset", [0, 5, 2**32, 2**63 + 11, 2**64 - 3])
def test_reference_equals_an_independent_generator(seed, offset):
    out = philox.philox_words(37, seed, offset)
    assert out.tolist() == philox_numpy.words(37, seed, offset).tolist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("offset", [0, 5, 2**32, 2**63 + 11, 2**64 - 3])
def test_compiled_generator_equals_an_independent_one(isa, seed, offset):
    drawn = bits.flip_bits(torch.zeros(7, 6, dtype=torch.uint8), 0.5, seed=seed, offset=offset, dim=43)
    expected = philox_numpy.uniform((7, 43), seed, offset) < 0.5
    assert torch.equal(bits.unpack_bits(drawn, 43), torch.as_tensor(expected))


def test_an_element_draws_the_same_number_in_any_shape():
    flat = philox.philox_uniform(240, seed=3)
    assert torch.equal(philox.philox_uniform((2, 3, 40), seed=3).flatten(), flat)
    assert torch.equal(philox.philox_uniform(17, seed=3), flat[:17])


def test_seed_and_offset_change_everything():
    base = philox.philox_words(4096, 1, 1)
    for seed, offset in ((2, 1), (1, 2), (1 + 2**32, 1), (1, 1 + 2**32)):
        assert (philox.philox_words(4096, seed, offset) == base).sum() == 0


def test_uniforms_are_even_and_below_one():
    u = philox.philox_uniform(1 << 20, seed=11)
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, bins=64, min=0, max=1)
    chi_square = ((counts - (1 << 14)) ** 2 / (1 << 14)).sum().item()
    assert chi_square < 63 + 5 * (2 * 63) ** 0.5
    lagged = torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1].item()
    assert abs(lagged) < 5 / 1024
