"""Packed bits wherever they lie: kernels move sixteen bytes at once where they can, and must not where they cannot."""

from __future__ import annotations

import philox_numpy
import pytest
import torch
from packed_numpy import numpy_pack

import videoar_kernels as K

SHAPES = [(5, 48), (3, 8), (1, 8), (7, 40), (64, 16), (5, 13), (300, 24)]
OFFSETS = [0, 1, 2, 4, 8, 15, 16]


def placed(x: torch.Tensor, offset: int, gap: int = 0) -> torch.Tensor:
    """The rows of x (rows, width), `offset` bytes after an aligned address and `gap` bytes apart, among ones."""
    rows, width = x.shape
    storage = torch.ones(offset + rows * (width + gap) + 16, dtype=torch.uint8)
    view = storage[offset : offset + rows * (width + gap)].view(rows, width + gap)[:, :width]
    view = view.view(torch.bool) if x.dtype == torch.bool else view
    return view.copy_(x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gap", [0, 3, 8])
def test_bits_are_packed_from_and_unpacked_at_any_address(isa, shape, gap):
    rows, dim = shape
    ones = torch.rand(rows, dim) < 0.5
    packed = numpy_pack(ones)
    for offset in OFFSETS:
        assert torch.equal(K.pack_bits(placed(ones, offset, gap)), packed)
        assert torch.equal(K.pack_bits(placed(ones.to(torch.uint8) * 64, offset, gap)), packed)
        assert torch.equal(K.unpack_bits(placed(packed, offset, gap), dim), ones)
        out = placed(packed, offset).fill_(255)
        assert torch.equal(K.pack_bits(ones, out=out), packed)
        out = placed(ones, offset).fill_(True)
        assert torch.equal(K.unpack_bits(packed, dim, out=out), ones)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gap", [0, 3])
def test_bits_are_flipped_at_any_address(isa, shape, gap):
    rows, dim = shape
    ones = torch.rand(rows, dim) < 0.5
    packed = numpy_pack(ones)
    uniform = torch.as_tensor(philox_numpy.uniform(shape, 7, 2))
    per_token = torch.rand(rows, dtype=torch.float64)
    per_token[::3] = 0
    per_token[1::3] = 1
    for p in (0.0, 0.3, 1.0, per_token):
        below = uniform < (p[:, None] if isinstance(p, torch.Tensor) else p)
        expected = numpy_pack(ones ^ below)
        for offset in OFFSETS:
            bits = placed(packed, offset, gap)
            assert torch.equal(K.flip_bits(bits, p, seed=7, offset=2, dim=dim), expected)
            if gap == 0:
                K.flip_bits(bits, p, seed=7, offset=2, dim=dim, out=bits)
                assert torch.equal(bits, expected)


@pytest.mark.parametrize("per_token", [False, True])
def test_many_bits_are_flipped_as_few_are(isa, per_token):
    rows = (1 << 21) // 6 + 1  # six bytes each, and four more than whole accesses of 16 bytes
    bits = torch.randint(0, 256, (rows, 6), dtype=torch.uint8)
    p = torch.rand(rows, dtype=torch.float64) if per_token else 0.2
    flipped = K.flip_bits(bits, p, seed=3)
    assert torch.equal(K.flip_bits(placed(bits, 1), p, seed=3), flipped)
    last = numpy_pack(torch.as_tensor(philox_numpy.words(48, 3, first=48 * (rows - 1)) >> 8) < philox_bound(p))
    assert torch.equal(flipped[-1] ^ bits[-1], last)


def philox_bound(p: float | torch.Tensor) -> torch.Tensor:
    return (p[-1] if isinstance(p, torch.Tensor) else torch.tensor(p, dtype=torch.float64)) * 2**24
