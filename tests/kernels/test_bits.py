"""Packed bits: layout, quantization, flips, sampling and cross-entropy, on every instruction set."""

from __future__ import annotations

import itertools
import math

import numpy as np
import philox_numpy
import pytest
import torch
from closeness import assert_close

import videoar_kernels as K
from videoar_kernels import reference
from videoar_kernels.library import ops

DIMS = [1, 7, 8, 9, 48, 255, 256]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
R = reference.bits
IMPLEMENTATIONS = pytest.mark.parametrize("impl", [K, R], ids=["compiled", "reference"])


def numpy_pack(ones: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.packbits(ones.numpy(), axis=-1, bitorder="little"))


def numpy_unpack(bits: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1, count=dim, bitorder="little").astype(bool))


def views(shape: tuple[int, ...], dtype: torch.dtype):
    """Yield tensors of one shape (..., d): dense, sliced, transposed, expanded, with a strided last dimension."""
    yield torch.randn(shape).to(dtype)
    yield torch.randn(*shape[:-2], shape[-2] + 5, shape[-1] + 3).to(dtype)[..., 2:-3, 1:-2]
    yield torch.randn(shape[1], shape[0], *shape[2:]).to(dtype).transpose(0, 1)
    yield torch.randn(1, *shape[1:]).to(dtype).expand(shape)
    yield torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]


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
    flip = torch.from_numpy(philox_numpy.uniform((3, 11, dim), 9, 4) < 0.3)
    out = impl.flip_bits(numpy_pack(ones), 0.3, seed=9, offset=4, dim=dim)
    assert torch.equal(out, numpy_pack(ones ^ flip))


@IMPLEMENTATIONS
def test_p_may_differ_per_sample_and_per_token(impl, isa):
    packed = torch.randint(0, 256, (3, 50, 6), dtype=torch.uint8)
    uniform = philox_numpy.uniform((3, 50, 48), 1)
    for p in (torch.tensor(0.2), torch.tensor([0.0, 0.5, 1.0]), torch.rand(3, 50), torch.rand(3, 1).double()):
        wide = p.double().reshape(p.shape + (1,) * (3 - p.ndim)).numpy()
        flip = numpy_pack(torch.from_numpy(uniform < wide))
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


def numpy_sample(logits, uncond, guidance, temperature, seed, offset):
    x = logits.double().numpy()
    if uncond is not None:
        u = uncond.double().numpy()
        x = u + guidance * (x - u)
    if temperature == 0:
        return torch.from_numpy(x > 0)
    with np.errstate(over="ignore"):
        return torch.from_numpy(philox_numpy.uniform(x.shape, seed, offset) < 1 / (1 + np.exp(-(x / temperature))))


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
    expected = numpy_sample(logits, uncond, guidance.double().numpy()[..., None], 1.0, 3, 0)
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


def entropy64(logits, packed, weight, ids, scales):
    """Loss and accuracy, whole and per scale, token by token in float64 numpy."""
    x, one = logits.detach().double().numpy(), numpy_unpack(packed, logits.shape[-1]).numpy()
    nats = np.logaddexp(0, np.where(one, -x, x)).mean(-1)  # -log sigmoid(x), -log(1 - sigmoid(x))
    hits = ((x > 0) == one).mean(-1)
    weight = weight.expand(nats.shape).numpy().astype(float)
    ids = ids.expand(nats.shape).numpy()
    rows = [(nats * weight * (ids == s), hits * weight * (ids == s), weight * (ids == s)) for s in range(scales)]
    n, h, w = (np.array([row[i].sum() for row in rows]) for i in range(3))
    return [torch.as_tensor(v) for v in (n.sum() / w.sum(), n / w, h.sum() / w.sum(), h / w)]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_and_its_gradient(isa, dim, dtype):
    packed = numpy_pack(torch.rand(2, 7, dim) < 0.4)
    ids, weight = torch.tensor([0, 1, 1, 2, 2, 2, 2]), torch.rand(2, 7).double()
    for view in views((2, 7, dim), dtype):
        exact_in = (4 * view.detach()).double().to(dtype)
        x = exact_in.clone(memory_format=torch.preserve_format).requires_grad_()
        out = K.bit_cross_entropy(x, packed, weight=weight, scale_ids=ids, num_scales=3)
        for value, exact in zip(out, entropy64(x, packed, weight, ids, 3), strict=True):
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert value.dtype == wide
            assert_close(value, exact)
        coefficients = torch.randn(3)
        (2 * out.loss + (coefficients * out.per_scale).sum()).backward()
        x64 = exact_in.double().requires_grad_()
        ref = R.bit_cross_entropy(x64, packed, weight=weight, scale_ids=ids, num_scales=3)
        assert_close(ref.loss, entropy64(x, packed, weight, ids, 3)[0])
        (2 * ref.loss + (coefficients.double() * ref.per_scale).sum()).backward()
        assert_close(x.grad, x64.grad, x64.grad.to(dtype))


def test_cross_entropy_gradient_by_differences():
    packed = numpy_pack(torch.rand(2, 5, 9) < 0.5)
    logits = torch.randn(2, 5, 9, dtype=torch.float64, requires_grad=True)
    ids, weight = torch.tensor([0, 0, 1, 1, 1]), torch.rand(2, 1, dtype=torch.float64)

    def losses(x):
        return K.bit_cross_entropy(x, packed, weight=weight, scale_ids=ids, num_scales=2)[:2]

    assert torch.autograd.gradcheck(losses, logits)


@IMPLEMENTATIONS
def test_cross_entropy_of_large_logits_is_finite(impl, isa):
    logits = torch.tensor([[1000.0, -1000.0, 88.5, -88.5, 1e30, 0.0, -0.0, 30.0]], requires_grad=True)
    out = impl.bit_cross_entropy(logits, torch.tensor([[0b01010110]], dtype=torch.uint8))
    out.loss.backward()
    nats = [1000.0, 1000.0, 0.0, 0.0, 0.0, math.log(2), math.log(2), 30.0]
    assert_close(out.loss, torch.tensor(sum(nats) / 8, dtype=torch.float64))
    assert torch.isfinite(logits.grad).all()


@IMPLEMENTATIONS
def test_weightless_scales_are_nan_and_leave_the_gradient_finite(impl):
    logits = torch.randn(3, 8, requires_grad=True)
    packed = torch.zeros(3, 1, dtype=torch.uint8)
    weight, ids = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 0, 1])
    out = impl.bit_cross_entropy(logits, packed, weight=weight, scale_ids=ids, num_scales=3)
    assert out.per_scale.isnan().tolist() == [False, True, True]
    out.loss.backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad[2] == 0).all()


def test_cross_entropy_does_not_depend_on_threads():
    logits, packed = torch.randn(3000, 48), torch.randint(0, 256, (3000, 6), dtype=torch.uint8)
    loss, threads = K.bit_cross_entropy(logits, packed).loss, torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert torch.equal(K.bit_cross_entropy(logits, packed).loss, loss)
    finally:
        torch.set_num_threads(threads)


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


@pytest.mark.parametrize("dim", [7, 48])
def test_outputs_may_be_handed_in(isa, dim):
    x, uncond = torch.randn(3, 11, dim), torch.randn(3, 11, dim)
    quantized = K.bsq_quantize(x)
    bits, code = torch.full_like(quantized.bits, 255), torch.full_like(x, float("nan"))
    out = K.bsq_quantize(x, out=(bits, code))
    assert out.bits is bits and out.code is code
    assert torch.equal(bits, quantized.bits) and torch.equal(code, quantized.code)
    assert torch.equal(K.bits_to_code(bits, dim, out=code.fill_(0)), quantized.code)
    options = {"uncond": uncond, "guidance": 3.0, "seed": 4}
    sampled = K.sample_bits(x, **options)
    K.sample_bits(x, **options, out=(bits, code))
    assert torch.equal(bits, sampled.bits) and torch.equal(code, sampled.code)
    flipped = K.flip_bits(sampled.bits, 0.4, seed=8, dim=dim)
    assert K.flip_bits(sampled.bits, 0.4, seed=8, dim=dim, out=bits) is bits and torch.equal(bits, flipped)


@pytest.mark.parametrize("dim", [7, 48])
def test_outputs_may_be_the_inputs(isa, dim):
    x, uncond = torch.randn(5, 300, dim), torch.randn(5, 300, dim)
    bits = torch.empty(5, 300, (dim + 7) // 8, dtype=torch.uint8)
    sampled, quantized = K.sample_bits(x, uncond=uncond, guidance=2.0, seed=4), K.bsq_quantize(x)
    for place in (x.clone(), uncond.clone()):
        inputs = (place, uncond) if torch.equal(place, x) else (x, place)
        K.sample_bits(inputs[0], uncond=inputs[1], guidance=2.0, seed=4, out=(bits, place))
        assert torch.equal(bits, sampled.bits) and torch.equal(place, sampled.code)
    K.bsq_quantize(x, out=(bits, x))
    assert torch.equal(bits, quantized.bits) and torch.equal(x, quantized.code)
    flipped = K.flip_bits(bits, 0.3, seed=1, dim=dim)
    assert torch.equal(K.flip_bits(bits, 0.3, seed=1, dim=dim, out=bits), flipped)


@pytest.mark.parametrize("grad", [True, False])
def test_outputs_that_do_not_fit_are_refused(grad):
    x, bits, code = torch.randn(4, 16), torch.empty(4, 2, dtype=torch.uint8), torch.empty(4, 16)
    memory = torch.zeros(4, 17)
    shifted = memory.view(-1)[4:68].view(4, 16)
    with torch.set_grad_enabled(grad):
        with pytest.raises(ValueError, match=r"bsq_quantize: expected code of out of shape \(4, 16\)"):
            K.bsq_quantize(x, out=(bits, code[:2]))
        with pytest.raises(ValueError, match="expected code of out of shape"):
            K.bsq_quantize(x, out=(bits, memory[:, :16]))
        with pytest.raises(TypeError, match=r"expected bits of out of torch\.uint8"):
            K.sample_bits(x, seed=0, out=(bits.to(torch.int8), code))
        with pytest.raises(ValueError, match="to be an input or to share no memory"):
            K.bsq_quantize(memory.view(-1)[:64].view(4, 16), out=(bits, shifted))
        with pytest.raises(ValueError, match="expected bits and code of out to share no memory"):
            K.bsq_quantize(x, out=(code.view(torch.uint8).view(-1)[:8].view(4, 2), code))
        with pytest.raises(ValueError, match="flip_bits: expected out of shape"):
            K.flip_bits(bits, 0.5, seed=0, out=bits[:, :1])
    with pytest.raises(ValueError, match="where a gradient is wanted"):
        K.bsq_quantize(x.requires_grad_(), out=(bits, code))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("p", [1.5, -0.1, float("nan")])
def test_probabilities_lie_within_zero_and_one(p, grad):
    with torch.set_grad_enabled(grad):
        with pytest.raises(ValueError, match=rf"flip_bits: expected p within \[0, 1\], got {p}"):
            K.flip_bits(PACKED, p, seed=0)
        with pytest.raises(ValueError, match=r"flip_bits: expected p within \[0, 1\], got "):
            K.flip_bits(PACKED, torch.tensor([0.5, p]), seed=0)


@pytest.mark.parametrize("seed", [-1, 2**64, 2**70])
def test_seeds_have_64_bits(seed):
    for call in (K.flip_bits, K.sample_bits):
        arguments = (PACKED, 0.5) if call is K.flip_bits else (LOGITS,)
        with pytest.raises(ValueError, match=rf"expected seed within \[0, 2\*\*64\), got {seed}"):
            call(*arguments, seed=seed)
        with pytest.raises(ValueError, match=r"expected offset within \[0, 2\*\*64\)"):
            call(*arguments, seed=0, offset=seed)


@pytest.mark.parametrize("seed, offset", [(2**64 - 1, 2**63), (2**63, 2**64 - 1), (2**32, 5)])
def test_all_64_bits_of_seed_and_offset_count(isa, seed, offset):
    packed = torch.zeros(9, 6, dtype=torch.uint8)
    expected = torch.from_numpy(philox_numpy.uniform((9, 48), seed, offset) < 0.5)
    assert torch.equal(K.flip_bits(packed, 0.5, seed=seed, offset=offset), numpy_pack(expected))


@pytest.mark.parametrize("grad", [True, False])
def test_scalars_are_refused(grad):
    scalar, byte = torch.tensor(1.0), torch.tensor(1, dtype=torch.uint8)
    calls = [
        lambda: K.bsq_quantize(scalar),
        lambda: K.sample_bits(scalar, seed=0),
        lambda: K.pack_bits(byte),
        lambda: K.unpack_bits(byte),
        lambda: K.bits_to_code(byte),
        lambda: K.flip_bits(byte, 0.5, seed=0),
        lambda: K.bit_cross_entropy(scalar, byte),
    ]
    with torch.set_grad_enabled(grad):
        for call in calls:
            with pytest.raises(ValueError, match=r"got \(\)"):
                call()


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 30.0])
def test_cross_entropy_is_precise_at_every_size_of_the_loss(isa, scale):
    """One logarithm serves a token: its sum stays as precise where every term is tiny."""
    one = torch.rand(40, 48) < 0.5
    logits = torch.where(one, 1.0, -1.0) * (-torch.tensor(scale).log() if scale < 1 else 1 / scale) * torch.rand(40, 48)
    out = K.bit_cross_entropy(logits, numpy_pack(one)).loss.double()
    exact = entropy64(logits, numpy_pack(one), torch.ones(()), torch.zeros((), dtype=torch.int64), 1)[0]
    assert abs(out / exact - 1) < 1e-6


@pytest.mark.parametrize("dim", [97, 800, 1100])
def test_long_tokens(isa, dim):
    """Products of many factors are taken in pieces, and so are draws."""
    logits, one = torch.randn(5, dim), torch.rand(5, dim) < 0.5
    exact = entropy64(logits, numpy_pack(one), torch.ones(()), torch.zeros((), dtype=torch.int64), 1)[0]
    assert_close(K.bit_cross_entropy(logits, numpy_pack(one)).loss, exact)
    worst = torch.zeros(2, dim)
    assert_close(K.bit_cross_entropy(worst, numpy_pack(one[:2])).loss, torch.tensor(math.log(2), dtype=torch.float64))
    assert torch.equal(K.sample_bits(logits, seed=3).bits, numpy_pack(numpy_sample(logits, None, 1.0, 1.0, 3, 0)))
    flip = torch.from_numpy(philox_numpy.uniform((5, dim), 3) < 0.3)
    assert torch.equal(K.flip_bits(numpy_pack(one), 0.3, seed=3, dim=dim), numpy_pack(one ^ flip))


def op_samples():
    x, packed = torch.randn(2, 3, 9), torch.randint(0, 2, (2, 3, 2), dtype=torch.uint8)
    token, ids = torch.rand(2, 3).double(), torch.tensor([[0, 1, 1]] * 2, dtype=torch.int32)
    grad = x.clone().requires_grad_()
    _, _, _, _, totals = ops.bit_cross_entropy(x, packed, token, ids, 2)
    return [
        (ops.bsq_quantize, (grad,)),
        (ops.bsq_quantize_out, (x, packed.clone(), x.clone())),
        (ops.pack_bits, (x > 0,)),
        (ops.unpack_bits, (packed, 9)),
        (ops.bits_to_code, (packed, 9, torch.bfloat16)),
        (ops.flip_bits, (packed, 0.3, None, 9, 5, 0)),
        (ops.flip_bits, (packed, 0.0, token, 9, 5, 0)),
        (ops.bits_to_code_out, (packed, x.clone())),
        (ops.flip_bits_out, (packed, 0.3, None, 9, 5, 0, packed.clone())),
        (ops.sample_bits_out, (x, None, 1.0, None, 1.0, 5, None, 0, packed.clone(), x.clone())),
        (ops.sample_bits, (x, None, 1.0, None, 1.0, 5, None, 0)),
        (ops.sample_bits, (x, None, 1.0, None, 1.0, 0, torch.arange(len(x)), 0)),
        (ops.sample_bits, (x, x + 1, 1.0, token, 0.5, 5, None, 0)),
        (ops.bit_cross_entropy, (grad, packed, None, None, 1)),
        (ops.bit_cross_entropy, (grad, packed, token, ids, 2)),
        (ops.bit_cross_entropy_backward, (x[0, 0, 0], x[0, 0, :2], x, packed, token, ids, totals)),
    ]


@pytest.mark.parametrize("op, arguments", op_samples(), ids=lambda value: getattr(value, "__name__", ""))
def test_opcheck(op, arguments):
    torch.library.opcheck(op.default, arguments)


def test_compiles_without_a_graph_break():
    def step(x, packed, seed):
        quantized = K.bsq_quantize(x)
        flipped = K.flip_bits(quantized.bits, 0.25, seed=seed, dim=x.shape[-1])
        sampled = K.sample_bits(x, uncond=x * 0.5, guidance=2.0, seed=seed)
        loss = K.bit_cross_entropy(x, packed).loss + quantized.code.sum()
        return loss, flipped, sampled.code, K.pack_bits(K.unpack_bits(flipped, x.shape[-1]))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for length, seed in itertools.product((4, 6), (1, 2**40)):
        x, packed = torch.randn(2, length, 9), torch.randint(0, 2, (2, length, 2), dtype=torch.uint8)
        eager_in, compiled_in = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected, out = step(eager_in, packed, seed), compiled(compiled_in, packed, seed)
        for a, b in zip(expected, out, strict=True):
            assert torch.equal(a, b)
        expected[0].backward()
        out[0].backward()
        assert torch.equal(eager_in.grad, compiled_in.grad)


PACKED = torch.zeros(2, 3, 2, dtype=torch.uint8)
LOGITS = torch.zeros(2, 3, 9)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: K.bsq_quantize(LOGITS.long()), TypeError, "bsq_quantize: expected x of float32"),
        (
            lambda: K.pack_bits(LOGITS),
            TypeError,
            "pack_bits: expected bits of torch.bool or torch.uint8, got torch.float",
        ),
        (lambda: K.unpack_bits(PACKED, 17), ValueError, r"unpack_bits: expected bits of shape \(..., 3\) for dim 17"),
        (lambda: K.unpack_bits(PACKED.int()), TypeError, "unpack_bits: expected bits of torch.uint8, got torch.int32"),
        (lambda: K.bits_to_code(PACKED, 8), ValueError, r"bits_to_code: expected bits of shape \(..., 1\)"),
        (
            lambda: K.flip_bits(PACKED, torch.rand(3), seed=0),
            ValueError,
            r"flip_bits: expected p broadcastable to \(2, 3\)",
        ),
        (
            lambda: K.flip_bits(PACKED, torch.rand(2, 3, 1), seed=0),
            ValueError,
            "flip_bits: expected p over the leading",
        ),
        (
            lambda: K.sample_bits(LOGITS, uncond=LOGITS[:1], seed=0),
            ValueError,
            "sample_bits: expected uncond like logits",
        ),
        (
            lambda: K.sample_bits(LOGITS, seed=torch.zeros(len(LOGITS) + 1, dtype=torch.int64)),
            ValueError,
            "sample_bits: expected seed of int64, one for each of the samples",
        ),
        (
            lambda: K.sample_bits(LOGITS, seed=torch.zeros(len(LOGITS))),
            ValueError,
            "sample_bits: expected seed of int64",
        ),
        (lambda: K.sample_bits(LOGITS, temperature=-1, seed=0), ValueError, "sample_bits: expected temperature >= 0"),
        (
            lambda: K.bit_cross_entropy(LOGITS, PACKED[:1]),
            ValueError,
            r"expected bits of shape \(2, 3, 2\), got \(1, 3, 2\)",
        ),
        (lambda: K.bit_cross_entropy(LOGITS, PACKED, dim=8), ValueError, "bit_cross_entropy: expected dim 9, got 8"),
        (
            lambda: K.bit_cross_entropy(LOGITS, PACKED, weight=torch.ones(4)),
            ValueError,
            "expected weight broadcastable",
        ),
    ],
)
def test_errors_name_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_scale_ids_out_of_range_are_an_error():
    with pytest.raises(RuntimeError, match="scale_ids"):
        K.bit_cross_entropy(LOGITS, PACKED, scale_ids=torch.tensor([0, 1, 2]), num_scales=2)
