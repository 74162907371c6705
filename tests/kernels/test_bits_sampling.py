"""Sampled bits: the draws of float64, whatever the dtype, the instruction set and the threads."""

from __future__ import annotations

import philox_numpy
import pytest
import torch
from packed_numpy import numpy_pack, numpy_sample, views

import videoar_kernels as K
from videoar_kernels import reference

DIMS = [1, 7, 8, 9, 48, 255, 256]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
R = reference.bits
IMPLEMENTATIONS = pytest.mark.parametrize("impl", [K, R], ids=["compiled", "reference"])


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sampling_draws_the_bits_of_float64(isa, dim, dtype):
    for logits, uncond in zip(views((3, 6, dim), dtype), views((3, 6, dim), dtype), strict=True):
        for base, guidance, temperature in (
            (None, 1.0, 1.0),
            (uncond, 3.5, 0.7),
            (uncond, -1.0, 2.0),
            (uncond, 2.0, 0),
        ):
            expected = numpy_sample(logits, base, guidance, temperature, 77, 3)
            options = {"uncond": base, "guidance": guidance, "temperature": temperature, "seed": 77, "offset": 3}
            for impl in (K, R):
                out = impl.sample_bits(logits, **options)
                assert torch.equal(out.bits, numpy_pack(expected))
                assert torch.equal(out.code, impl.bits_to_code(out.bits, dim, dtype))


def test_many_samples_agree_with_float64_to_the_last_bit(isa):
    logits, uncond = 3 * torch.randn(2, 3000, 48), 3 * torch.randn(2, 3000, 48)
    out = K.sample_bits(logits, uncond=uncond, guidance=6.0, temperature=0.9, seed=5)
    assert torch.equal(out.bits, numpy_pack(numpy_sample(logits, uncond, 6.0, 0.9, 5, 0)))


@IMPLEMENTATIONS
def test_extreme_logits(impl, isa):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 200.0, -200.0, 1e30, -1e30, 3e38] * 4)[None]
    one = [False, True, False, True, False, True, False, True] * 4
    for temperature in (1.0, 0.0):
        assert impl.unpack_bits(impl.sample_bits(x, seed=0, temperature=temperature).bits).tolist() == [one]


@IMPLEMENTATIONS
def test_guidance_may_differ_per_token(impl, isa):
    logits, uncond, guidance = torch.randn(2, 5, 16), torch.randn(2, 5, 16), 4 * torch.rand(2, 5)
    out = impl.sample_bits(logits, uncond=uncond, guidance=guidance, seed=3)
    expected = numpy_sample(logits, uncond, guidance.double().cpu().numpy()[..., None], 1.0, 3, 0)
    assert torch.equal(out.bits, numpy_pack(expected))


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_seed_per_sample_draws_each_as_if_alone(impl, isa, dtype):
    for logits, uncond in zip(views((3, 5, 2, 9), dtype), views((3, 5, 2, 9), dtype), strict=True):
        guidance = 4 * torch.rand(3, 5, 2, dtype=torch.float64)
        seeds = [7, 2**63 - 1, 0]
        for temperature in (0.8, 0):
            options = dict(temperature=temperature, offset=3)
            drawn = impl.sample_bits(logits, uncond=uncond, guidance=guidance, seed=torch.tensor(seeds), **options)
            for i, seed in enumerate(seeds):
                one = slice(i, i + 1)
                alone = K.sample_bits(logits[one], uncond=uncond[one], guidance=guidance[one], seed=seed, **options)
                assert torch.equal(drawn.bits[one], alone.bits)
                assert torch.equal(drawn.code[one], alone.code)


@IMPLEMENTATIONS
@pytest.mark.parametrize("grad", [True, False])
def test_an_empty_batch_has_no_seeds(impl, grad):
    with torch.set_grad_enabled(grad):
        drawn = impl.sample_bits(torch.zeros(0, 5, 9), seed=torch.zeros(0, dtype=torch.int64))
    assert drawn.bits.shape == (0, 5, 2) and drawn.code.shape == (0, 5, 9)


def test_sampled_bits_are_as_frequent_as_their_probability():
    logits = torch.tensor([-4.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0, 6.0]).expand(40000, 8)
    share = K.unpack_bits(K.sample_bits(logits, seed=8).bits).double().mean(0)
    p = torch.sigmoid(logits[0].double())
    assert ((share - p).abs() < 5 * (p * (1 - p) / 40000).sqrt()).all()


@pytest.mark.parametrize("dim", [9, 48])
def test_neither_threads_nor_batch_split_change_a_bit(dim):
    logits = torch.randn(4, 700, dim)
    whole = K.sample_bits(logits, seed=6)
    packed = K.flip_bits(whole.bits, 0.2, seed=6, dim=dim)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert torch.equal(K.sample_bits(logits, seed=6).bits, whole.bits)
        assert torch.equal(K.flip_bits(whole.bits, 0.2, seed=6, dim=dim), packed)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(K.sample_bits(logits[:2], seed=6).bits, whole.bits[:2])


@pytest.mark.parametrize("dim", [97, 800, 1100])
def test_tokens_longer_than_a_draw(isa, dim):
    logits, one = torch.randn(5, dim), torch.rand(5, dim) < 0.5
    assert torch.equal(K.sample_bits(logits, seed=3).bits, numpy_pack(numpy_sample(logits, None, 1.0, 1.0, 3, 0)))
    flip = torch.as_tensor(philox_numpy.uniform((5, dim), 3) < 0.3)
    assert torch.equal(K.flip_bits(numpy_pack(one), 0.3, seed=3, dim=dim), numpy_pack(one ^ flip))
