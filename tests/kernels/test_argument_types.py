"""Arguments of another kind than asked for: each function names the argument, and nothing is cut off or read raw."""

from __future__ import annotations

import re

import pytest
import torch

import videoar_kernels as K
from videoar_kernels import RangeMask

SCALES = [(1, 1), (2, 2)]
POSITIONS = torch.zeros(3, 3, dtype=torch.int64)
HEADS, TOKENS, LOGITS = torch.ones(1, 2, 3, 12), torch.ones(1, 4, 8), torch.ones(3, 9)
BITS, PLANES, LABELS = torch.zeros(3, 2).byte(), torch.ones(1, 1, 2, 2, 9), torch.zeros(1, 1, 5, 2).byte()
PACKED = K.pack_linear_weight(torch.ones(4, 8))


def append(k=HEADS, v=HEADS, **options):
    K.KVCache(1, 1, 2, 8, 12).append(0, k, v, **options)


# Each takes its tensors by name; those in the second column may be None.
CALLS = [
    (K.adaln_norm, {"x": TOKENS}, {"scale": TOKENS, "shift": TOKENS[0, 0], "weight": TOKENS[0, 0]}, {}),
    (K.gated_residual, {"x": TOKENS, "y": TOKENS, "gate": TOKENS}, {"out": torch.empty_like(TOKENS)}, {}),
    (K.swiglu, {"gate": TOKENS, "up": TOKENS}, {"out": torch.empty_like(TOKENS)}, {}),
    (K.rope_3d, {"x": HEADS, "positions": POSITIONS}, {"out": torch.empty_like(HEADS)}, {}),
    (K.rope_3d_, {"x": HEADS, "positions": POSITIONS}, {}, {}),
    (
        K.qk_norm_rope,
        {"q": HEADS, "k": HEADS, "positions": POSITIONS},
        {"q_weight": HEADS[0, 0, 0], "k_weight": HEADS[0, 0, 0]},
        {},
    ),
    (K.range_attention, {"q": HEADS, "k": HEADS, "v": HEADS}, {"out": torch.empty_like(HEADS)}, {}),
    (K.bsq_quantize, {"x": LOGITS}, {}, {}),
    (K.pack_bits, {"bits": LOGITS > 0}, {}, {}),
    (K.unpack_bits, {"bits": BITS}, {}, {}),
    (K.bits_to_code, {"bits": BITS}, {}, {}),
    (K.flip_bits, {"bits": BITS}, {}, {"p": 0.5, "seed": 1}),
    (K.sample_bits, {"logits": LOGITS}, {"uncond": LOGITS}, {"seed": 1}),
    (K.bit_cross_entropy, {"logits": LOGITS, "bits": BITS}, {"weight": LOGITS[:, 0], "scale_ids": POSITIONS[0]}, {}),
    (K.pyramid_encode, {"z": PLANES}, {}, {"scales": SCALES}),
    (K.pyramid_resample, {"x": PLANES}, {}, {"scales": SCALES}),
    (K.pyramid_decode, {"bits": LABELS}, {}, {"scales": SCALES, "dim": 9}),
    (K.pyramid_step, {"total": PLANES[0], "bits": LABELS[0, :, :1]}, {}, {"scale": (1, 1)}),
    (K.pack_linear_weight, {"weight": LOGITS}, {}, {}),
    (K.packed_linear, {"x": TOKENS, "packed": PACKED}, {"bias": TOKENS[0, 0, :4]}, {"out_features": 4}),
    (K.unpack_linear_weight, {"packed": PACKED}, {}, {"out_features": 4, "in_features": 8}),
    (append, {"k": HEADS, "v": HEADS}, {"k_weight": HEADS[0, 0, 0], "positions": POSITIONS}, {}),
    (RangeMask.from_dense, {"dense": LOGITS > 0}, {}, {}),
]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("call, tensors, optional, others", CALLS, ids=[case[0].__name__ for case in CALLS])
def test_what_is_no_tensor_is_named(call, tensors, optional, others, grad):
    with torch.set_grad_enabled(grad):
        call(**tensors, **optional, **others)
        for name, wrongs in [*((n, ("x", [1.0], 2.0, None)) for n in tensors), *((n, ("x", 2.0)) for n in optional)]:
            for wrong in wrongs:
                message = rf"{name} as a tensor, got {type(wrong).__name__}$"
                with pytest.raises(TypeError, match=message):
                    call(**{**tensors, **optional, **others, name: wrong})


@pytest.mark.parametrize(
    "name, call",
    [
        ("seed", lambda n: K.flip_bits(BITS, 0.5, seed=n)),
        ("offset", lambda n: K.flip_bits(BITS, 0.5, seed=1, offset=n)),
        ("offset", lambda n: K.sample_bits(LOGITS, seed=1, offset=n)),
        ("seed", lambda n: K.pyramid_encode(PLANES, SCALES, flip_p=0.5, seed=n)),
        ("offset", lambda n: K.pyramid_encode(PLANES, SCALES, flip_p=0.5, seed=1, offset=n)),
        ("keep", lambda n: K.pyramid_decode(LABELS, SCALES, dim=9, keep=n)),
        ("num_scales", lambda n: K.bit_cross_entropy(LOGITS, BITS, num_scales=n)),
        ("text_len", lambda n: K.multiscale_positions(n, 2, SCALES)),
        ("frames", lambda n: K.multiscale_positions(1, n, SCALES)),
        ("grid", lambda n: K.unit_positions((1, n, 1))),
        ("start", lambda n: K.unit_positions((1, 1, 1), start=(0, n, 0))),
        ("sink", lambda n: K.KVCache(1, 1, 1, 8, 8, sink=n)),
        ("window", lambda n: K.KVCache(1, 1, 1, 8, 8, window=n)),
        ("capacity", lambda n: K.KVCache(1, 1, 1, n, 8)),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_no_fraction_counts_as_a_whole_number(name, call, grad):
    with torch.set_grad_enabled(grad):
        for wrong in (1.5, "1"):
            with pytest.raises(TypeError, match=rf"expected {name} as int, got {re.escape(repr(wrong))}$"):
                call(wrong)


def test_fractions_in_a_tensor_do_not_seed():
    with pytest.raises(TypeError, match=r"flip_bits: expected seed as int, got tensor\(1.5000\)"):
        K.flip_bits(BITS, 0.5, seed=torch.tensor(1.5))
    whole = K.flip_bits(BITS, 0.5, seed=torch.tensor(7))
    assert torch.equal(whole, K.flip_bits(BITS, 0.5, seed=7))


def test_mask_and_scale_of_attention():
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for scale in (float("nan"), float("inf"), -float("inf")):
                with pytest.raises(ValueError, match="range_attention: expected a finite scale, got"):
                    K.range_attention(HEADS, HEADS, HEADS, scale=scale)
            with pytest.raises(TypeError, match="range_attention: expected mask as RangeMask or None, got Tensor"):
                K.range_attention(HEADS, HEADS, HEADS, torch.ones(3, 3))


def test_values_of_any_real_dtype_serve_and_complex_ones_do_not():
    for dtype in (torch.uint8, torch.uint16, torch.float8_e4m3fn, torch.bfloat16, torch.bool):
        assert torch.equal(K.flip_bits(BITS, torch.ones(3, dtype=dtype), seed=1), ~BITS)
        with pytest.raises(ValueError, match=r"flip_bits: expected p within \[0, 1\], got 2"):
            K.flip_bits(BITS, torch.full((3,), 2.0).to(dtype) if dtype != torch.bool else torch.tensor(2.0), seed=1)
    for call in (
        lambda p: K.flip_bits(BITS, p, seed=1),
        lambda p: K.pyramid_encode(PLANES, SCALES, flip_p=p, seed=1),
        lambda p: K.bit_cross_entropy(LOGITS, BITS, weight=p),
        lambda p: K.sample_bits(LOGITS, uncond=LOGITS, guidance=p, seed=1),
    ):
        with pytest.raises(TypeError, match=r"of real numbers, got torch\.complex64"):
            call(torch.ones((), dtype=torch.complex64))


def test_another_device_is_named():
    meta = {"device": "meta"}
    for call in (
        lambda: K.bit_cross_entropy(LOGITS, BITS.to(**meta)),
        lambda: K.pyramid_step(PLANES[0], LABELS[0, :, :1].to(**meta), (1, 1)),
        lambda: K.sample_bits(LOGITS, uncond=LOGITS.to(**meta), seed=1),
        lambda: K.sample_bits(LOGITS, seed=torch.zeros(3, dtype=torch.int64, **meta)),
    ):
        with pytest.raises(ValueError, match=r"expected .* on cpu, got .*meta"):
            call()


def test_masks_too_long_are_refused_before_anything_is_made():
    with pytest.raises(ValueError, match="multiscale: expected length in all between 0 and 2147483647, got"):
        RangeMask.multiscale(0, 2**31 - 1, [(1, 1), (2, 2)])
    for window in (2**63, 2**64, 10**30):
        assert RangeMask.units([1, 2, 3], window=window) == RangeMask.units([1, 2, 3])
