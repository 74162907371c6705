"""How operators on packed bits are called: outputs handed in, what is refused, dispatcher and compiler."""

from __future__ import annotations

import itertools

import pytest
import torch

import videoar_kernels as K
from videoar_kernels.library import ops

PACKED = torch.zeros(2, 3, 2, dtype=torch.uint8)
LOGITS = torch.zeros(2, 3, 9)


@pytest.mark.parametrize("dim", [7, 48])
def test_outputs_may_be_handed_in(isa, dim):
    x, uncond = torch.randn(3, 11, dim), torch.randn(3, 11, dim)
    quantized = K.bsq_quantize(x)
    bits, code = torch.full_like(quantized.bits, 255), torch.full_like(x, float("nan"))
    out = K.bsq_quantize(x, out=(bits, code))
    assert out.bits is bits and out.code is code
    assert torch.equal(bits, quantized.bits) and torch.equal(code, quantized.code)
    assert torch.equal(K.bits_to_code(bits, dim, out=code.fill_(0)), quantized.code)
    half = code.to(torch.bfloat16).fill_(0)
    for dtype in (None, torch.bfloat16):
        assert torch.equal(K.bits_to_code(bits, dim, dtype, out=half), quantized.code.to(torch.bfloat16))
    options = {"uncond": uncond, "guidance": 3.0, "seed": 4}
    sampled = K.sample_bits(x, **options)
    K.sample_bits(x, **options, out=(bits, code))
    assert torch.equal(bits, sampled.bits) and torch.equal(code, sampled.code)
    flipped = K.flip_bits(sampled.bits, 0.4, seed=8, dim=dim)
    assert K.flip_bits(sampled.bits, 0.4, seed=8, dim=dim, out=bits) is bits and torch.equal(bits, flipped)
    ones = torch.ones(3, 11, dim, dtype=torch.bool)
    assert K.unpack_bits(flipped, dim, out=ones) is ones and torch.equal(ones, K.unpack_bits(flipped, dim))
    assert K.pack_bits(ones, out=bits.fill_(255)) is bits and torch.equal(bits, flipped)


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
        with pytest.raises(ValueError, match="expected code of out dense"):
            K.bsq_quantize(x, out=(bits, memory[:, :16]))
        with pytest.raises(TypeError, match=r"expected bits of out of torch\.uint8"):
            K.sample_bits(x, seed=0, out=(bits.to(torch.int8), code))
        with pytest.raises(ValueError, match="expected code of out apart from x, or exactly it"):
            K.bsq_quantize(memory.view(-1)[:64].view(4, 16), out=(bits, shifted))
        with pytest.raises(ValueError, match="expected bits of out apart from code of out"):
            K.bsq_quantize(x, out=(code.view(torch.uint8).view(-1)[:8].view(4, 2), code))
        with pytest.raises(ValueError, match="flip_bits: expected out of shape"):
            K.flip_bits(bits, 0.5, seed=0, out=bits[:, :1])
        ones = torch.empty(4, 16, dtype=torch.bool)
        for wrong in (ones[:2], ones[:, :15]):
            with pytest.raises(ValueError, match=r"unpack_bits: expected out of shape \(4, 16\), got"):
                K.unpack_bits(bits, out=wrong)
        with pytest.raises(ValueError, match=r"unpack_bits: expected out dense, got .* strides \(17, 1\)"):
            K.unpack_bits(bits, out=torch.empty(4, 17, dtype=torch.bool)[:, :16])
        with pytest.raises(TypeError, match=r"unpack_bits: expected out of torch\.bool"):
            K.unpack_bits(bits, out=ones.to(torch.uint8))
        shared = torch.empty(64, dtype=torch.uint8)
        with pytest.raises(ValueError, match="unpack_bits: expected out apart from bits, got an overlap"):
            K.unpack_bits(shared[:8].view(4, 2), out=shared.view(torch.bool).view(4, 16))
        with pytest.raises(ValueError, match=r"pack_bits: expected out of shape \(4, 2\), got"):
            K.pack_bits(ones, out=bits[:2])
        with pytest.raises(ValueError, match="pack_bits: expected out dense, got"):
            K.pack_bits(ones, out=torch.empty(4, 3, dtype=torch.uint8)[:, :2])
        with pytest.raises(TypeError, match=r"pack_bits: expected out of torch\.uint8"):
            K.pack_bits(ones, out=bits.to(torch.int8))
        with pytest.raises(ValueError, match="pack_bits: expected out apart from bits"):
            K.pack_bits(ones, out=ones.view(torch.uint8).view(-1)[8:16].view(4, 2))
    with pytest.raises(ValueError, match="need no gradient with code of out"):
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
        (lambda: K.bits_to_code(PACKED, dtype=torch.int32), TypeError, "bits_to_code: expected dtype of float32"),
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
        (
            lambda: K.sample_bits(LOGITS, uncond=LOGITS, guidance=float("nan"), seed=0),
            ValueError,
            "sample_bits: expected a finite guidance, got nan",
        ),
        (
            lambda: K.sample_bits(LOGITS, uncond=LOGITS, guidance=float("inf"), seed=0),
            ValueError,
            "sample_bits: expected a finite guidance, got inf",
        ),
        (
            lambda: K.sample_bits(LOGITS, guidance=2.0, seed=0),
            ValueError,
            "sample_bits: expected guidance 1 without uncond, got 2.0",
        ),
        (
            lambda: K.sample_bits(LOGITS, guidance=torch.ones(3), seed=0),
            ValueError,
            "sample_bits: expected uncond with a tensor of guidance, got None",
        ),
        (
            lambda: K.sample_bits(LOGITS[0, 0], seed=torch.zeros(0, dtype=torch.int64)),
            ValueError,
            "sample_bits: expected seed of int64, one for each of the samples",
        ),
        (
            lambda: K.bits_to_code(PACKED, dtype=torch.bfloat16, out=torch.zeros(2, 3, 16)),
            TypeError,
            "bits_to_code: expected out of torch.bfloat16, got torch.float32",
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
@pytest.mark.parametrize("grad", [True, False])
def test_errors_name_what_was_expected(call, error, message, grad):
    with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("grad", [True, False])
def test_scales_that_do_not_exist_are_refused(grad):
    def entropy(ids, num_scales, dtype=torch.int64):
        ids = torch.tensor(ids, dtype=dtype)
        return K.bit_cross_entropy(LOGITS.clone().requires_grad_(grad), PACKED, scale_ids=ids, num_scales=num_scales)

    with torch.set_grad_enabled(grad):
        for wrong in (2, -1, 2**32, -(2**32)):
            with pytest.raises(ValueError, match=rf"expected scale_ids in .* = \[0, 2\), got {wrong}$"):
                entropy([0, 1, wrong], 2)
        with pytest.raises(ValueError, match=r"expected scale_ids in .*, got 2$"):
            entropy([0, 1, 2], 2, torch.int32)
        for dtype in (torch.float32, torch.bool):
            with pytest.raises(TypeError, match=rf"expected scale_ids of an integer dtype, got {dtype}"):
                entropy([0, 1, 1], 2, dtype)
        for wrong in (0, -1, 2**16 + 1, 2**32, 2**63 - 1):
            with pytest.raises(ValueError, match=rf"expected num_scales in \[1, 2\*\*16\], got {wrong}"):
                K.bit_cross_entropy(LOGITS, PACKED, num_scales=wrong)
            # The operator itself says so, too, before it asks for memory.
            with pytest.raises(RuntimeError, match=r"expected num_scales in \[1, 2\*\*16\]"):
                ops.bit_cross_entropy(LOGITS, PACKED, None, None, wrong)
        K.bit_cross_entropy(LOGITS, PACKED, num_scales=50)
        with pytest.raises(TypeError, match=r"expected num_scales as int, got 1\.5"):
            K.bit_cross_entropy(LOGITS, PACKED, num_scales=1.5)
        assert entropy([0, 1, 1], 2, torch.uint8).per_scale.shape == (2,)


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
        (ops.pack_bits_out, (x > 0, packed.clone())),
        (ops.unpack_bits_out, (packed, x > 0)),
        (ops.bits_to_code, (packed, 9, 2)),
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
