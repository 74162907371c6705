"""Packed bits: layout, quantization and flips, on every instruction set."""

from __future__ import annotations

import philox_numpy
import pytest
import torch
from packed_numpy import numpy_pack, views

import videoar_kernels as K
from videoar_kernels import reference

DIMS = [1, 7, 8, 9, 48, 255, 256]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
R = reference.bits
IMPLEMENTATIONS = pytest.mark.parametrize("impl", [K, R], ids=["compiled", "reference"])


@pytest.mark.parametrize("dim", DIMS)
def test_packing_is_little_endian_with_zero_padding(isa, dim):
    ones = torch.rand(3, 5, dim) < 0.5
    packed = K.pack_bits(ones)
    assert torch.equal(packed, numpy_pack(ones))
    assert torch.equal(K.pack_bits(ones.to(torch.uint8) * 37), packed)
    assert torch.equal(K.unpack_bits(packed, dim), ones)
    assert torch.equal(K.unpack_bits(packed)[..., dim:], torch.zeros(3, 5, -dim % 8, dtype=torch.bool))
    assert torch.equal(R.pack_bits(ones), packed) and torch.equal(R.unpack_bits(packed, dim), ones)


@IMPLEMENTATIONS
def test_any_byte_but_zero_is_a_one(impl):
    ones = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    assert torch.equal(impl.unpack_bits(impl.pack_bits(ones), 64), ones != 0)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_gives_the_signs_and_the_code(isa, dim, dtype):
    for x in views((3, 6, dim), dtype):
        for impl in (K, R):
            out = impl.bsq_quantize(x)
            assert torch.equal(out.bits, numpy_pack(x.contiguous() > 0))
            expected = torch.where(x > 0, 1.0, -1.0).double() / dim**0.5
            assert out.code.dtype == dtype and torch.equal(out.code, expected.to(dtype))
            assert torch.equal(impl.bits_to_code(out.bits, dim, dtype), out.code)


@IMPLEMENTATIONS
def test_zero_and_nan_are_bit_zero(impl):
    x = torch.tensor([[0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45]])
    assert impl.unpack_bits(impl.bsq_quantize(x).bits, 7).tolist() == [[False] * 3 + [True, False, True, False]]


@IMPLEMENTATIONS
def test_the_code_passes_its_gradient_straight_through(impl):
    x = torch.randn(2, 3, 9, requires_grad=True)
    grad = torch.randn(2, 3, 9)
    impl.bsq_quantize(x).code.backward(grad)
    assert torch.equal(x.grad, grad)


@IMPLEMENTATIONS
@pytest.mark.parametrize("dim", DIMS)
def test_flips_are_the_philox_events_of_each_element(impl, isa, dim):
    ones = torch.rand(3, 11, dim) < 0.5
    flip = torch.as_tensor(philox_numpy.uniform((3, 11, dim), 9, 4) < 0.3)
    out = impl.flip_bits(numpy_pack(ones), 0.3, seed=9, offset=4, dim=dim)
    assert torch.equal(out, numpy_pack(ones ^ flip))


@IMPLEMENTATIONS
def test_p_may_differ_per_sample_and_per_token(impl, isa):
    packed = torch.randint(0, 256, (3, 50, 6), dtype=torch.uint8)
    uniform = philox_numpy.uniform((3, 50, 48), 1)
    for p in (torch.tensor(0.2), torch.tensor([0.0, 0.5, 1.0]), torch.rand(3, 50), torch.rand(3, 1).double()):
        wide = p.double().reshape(p.shape + (1,) * (3 - p.ndim)).cpu().numpy()
        flip = numpy_pack(torch.as_tensor(uniform < wide))
        assert torch.equal(impl.flip_bits(packed, p, seed=1), packed ^ flip)


@IMPLEMENTATIONS
def test_p_zero_keeps_and_p_one_flips_every_bit(impl):
    packed = torch.randint(0, 256, (40, 6), dtype=torch.uint8)
    assert torch.equal(impl.flip_bits(packed, 0.0, seed=0), packed)
    assert torch.equal(impl.flip_bits(packed, 1.0, seed=0), ~packed)


@pytest.mark.parametrize("p", [0.01, 0.25, 0.5])
def test_flips_happen_as_often_as_asked(p):
    flipped = K.unpack_bits(K.flip_bits(torch.zeros(20000, 6, dtype=torch.uint8), p, seed=123))
    deviation = (p * (1 - p) / flipped.numel()) ** 0.5
    assert abs(flipped.double().mean().item() - p) < 5 * deviation
    per_bit = flipped.double().mean(0)
    assert (per_bit - p).abs().max() < 5 * (p * (1 - p) / 20000) ** 0.5


@pytest.mark.parametrize("seed, offset", [(2**64 - 1, 2**63), (2**63, 2**64 - 1), (2**32, 5)])
def test_all_64_bits_of_seed_and_offset_count(isa, seed, offset):
    packed = torch.zeros(9, 6, dtype=torch.uint8)
    expected = torch.as_tensor(philox_numpy.uniform((9, 48), seed, offset) < 0.5)
    assert torch.equal(K.flip_bits(packed, 0.5, seed=seed, offset=offset), numpy_pack(expected))


@pytest.mark.parametrize("dim", [48, 45])
def test_outputs_that_outgrow_the_cache(dim):
    """They are written past the cache, short ones are not."""
    times = (80 << 20) // dim // 1000
    x = torch.randn(1000, dim).bfloat16()
    small = K.bsq_quantize(x)
    large = K.bsq_quantize(x.repeat(times, 1))
    assert torch.equal(large.code.view(times, 1000, dim), small.code.expand(times, 1000, dim))
    assert torch.equal(large.bits.view(times, 1000, -1), small.bits.expand(times, 1000, -1))
    ones = K.unpack_bits(large.bits, dim)
    assert torch.equal(ones.view(times, 1000, dim), (x > 0).expand(times, 1000, dim))
    assert torch.equal(K.bits_to_code(large.bits, dim, torch.bfloat16), large.code)


@pytest.mark.parametrize("shape", [(0, 5, 9), (2, 0, 9), (1, 1, 1), (3, 0)])
def test_empty_and_tiny_sizes(isa, shape):
    x = torch.randn(shape)
    out = K.bsq_quantize(x)
    assert torch.equal(out.bits, R.bsq_quantize(x).bits) and out.code.shape == shape
    assert torch.equal(
        K.flip_bits(out.bits, 0.5, seed=0, dim=shape[-1]), R.flip_bits(out.bits, 0.5, seed=0, dim=shape[-1])
    )
    assert torch.equal(K.sample_bits(x, seed=0).bits, R.sample_bits(x, seed=0).bits)
    assert torch.equal(K.pack_bits(K.unpack_bits(out.bits, shape[-1])), out.bits)


def test_inputs_are_left_alone():
    x, packed = torch.randn(2, 3, 9), torch.randint(0, 2, (2, 3, 2), dtype=torch.uint8)
    before = x.clone(), packed.clone()
    K.bsq_quantize(x), K.sample_bits(x, uncond=x, guidance=2.0, seed=1), K.flip_bits(packed, 0.5, seed=1, dim=9)
    assert torch.equal(x, before[0]) and torch.equal(packed, before[1])
