"""What a call costs before any work: tiny inputs, gradients off, against an operator that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from closeness import assert_close
from registry import Call, Case, cases
from torch import Tensor

import videoar_kernels as vk
from videoar_kernels import reference as ref

MOST = 3e-6  # seconds beyond the empty operator


def calls() -> dict[str, tuple[Call, Callable[[], object]]]:
    """Every public operator on tiny inputs: name -> (call, its definition on the same inputs)."""
    x, y = torch.randn(2, 1, 4, 16)  # (B, L, C) each
    q, k, v = torch.randn(3, 1, 2, 4, 16)  # (B, H, L, D) each
    choices = x > 0
    bits, positions, weight = torch.ones(1, 4, 2, dtype=torch.uint8), torch.zeros(4, 3), torch.ones(16)
    total, scale, frames = torch.randn(1, 2, 2, 16), (2, 2), torch.randn(1, 1, 2, 2, 16)  # (B, T, H, W, d)
    labels = bits[None]
    linear, result, mask = torch.randn(16, 16), torch.empty_like(q), vk.RangeMask.units([2, 2])
    packed = vk.pack_linear_weight(linear)
    return {
        "swiglu": (lambda: vk.swiglu(x, y), lambda: ref.norm.swiglu(x, y)),
        "adaln_norm": (lambda: vk.adaln_norm(x, y, y), lambda: ref.norm.adaln_norm(x, y, y)),
        "gated_residual": (lambda: vk.gated_residual(x, y, y), lambda: ref.norm.gated_residual(x, y, y)),
        "rope_3d": (lambda: vk.rope_3d(q, positions), lambda: ref.rope.rope_3d(q, positions)),
        "qk_norm_rope": (
            lambda: vk.qk_norm_rope(q, k, weight, weight, positions),
            lambda: ref.rope.qk_norm_rope(q, k, weight, weight, positions),
        ),
        "range_attention": (lambda: vk.range_attention(q, k, v), lambda: ref.attention.range_attention(q, k, v)),
        "range_attention, a mask": (
            lambda: vk.range_attention(q, k, v, mask),
            lambda: ref.attention.range_attention(q, k, v, mask),
        ),
        "range_attention to out": (
            lambda: vk.range_attention(q, k, v, out=result),
            lambda: ref.attention.range_attention(q, k, v),
        ),
        "packed_linear": (lambda: vk.packed_linear(x, packed, 16), lambda: x @ linear.T),
        "packed_linear, a bias": (
            lambda: vk.packed_linear(x, packed, 16, weight),
            lambda: torch.nn.functional.linear(x, linear, weight),
        ),
        "bsq_quantize": (lambda: vk.bsq_quantize(x), lambda: ref.bits.bsq_quantize(x)),
        "pack_bits": (lambda: vk.pack_bits(choices), lambda: ref.bits.pack_bits(choices)),
        "unpack_bits": (lambda: vk.unpack_bits(bits), lambda: ref.bits.unpack_bits(bits)),
        "bits_to_code": (lambda: vk.bits_to_code(bits), lambda: ref.bits.bits_to_code(bits)),
        "flip_bits": (lambda: vk.flip_bits(bits, 0.5, seed=1), lambda: ref.bits.flip_bits(bits, 0.5, seed=1)),
        "sample_bits": (lambda: vk.sample_bits(x, seed=1), lambda: ref.bits.sample_bits(x, seed=1)),
        "bit_cross_entropy": (
            lambda: vk.bit_cross_entropy(x, bits),
            lambda: ref.bits.bit_cross_entropy(x, bits),
        ),
        "pyramid_resample": (
            lambda: vk.pyramid_resample(frames, [scale]),
            lambda: ref.pyramid.pyramid_resample(frames, [scale]),
        ),
        "pyramid_decode": (
            lambda: vk.pyramid_decode(labels, [scale]),
            lambda: ref.pyramid.pyramid_decode(labels, [scale]),
        ),
        "pyramid_encode": (
            lambda: vk.pyramid_encode(frames, [scale]),
            lambda: ref.pyramid.pyramid_encode(frames, [scale]),
        ),
        "pyramid_step": (
            lambda: vk.pyramid_step(total, bits, scale),
            lambda: ref.pyramid.pyramid_step(total, bits, scale),
        ),
    }


@cases("overhead")
def overhead(full: bool) -> Iterator[Case]:
    x = torch.randn(8)
    for name, (ours, definition) in calls().items():
        yield Case(
            op=f"call of {name}",
            shape="tiny",
            dtype=torch.float32,
            ours=ours,
            verify=lambda ours=ours, definition=definition: compare_all(ours(), definition()),
            yardsticks={"aten.alias": lambda: torch.ops.aten.alias.default(x)},
            bars={"beyond aten.alias": MOST},
        )


def compare_all(ours: object, exact: object) -> None:
    """Compares tensors, and tuples of them."""
    if isinstance(ours, Tensor):
        if ours.is_floating_point():
            assert_close(ours, exact, exact.to(ours.dtype) * (1 + 1e-6))
        else:
            assert torch.equal(ours, exact)
    elif ours is not None:
        for a, b in zip(ours, exact, strict=True):
            compare_all(a, b)


def test_overhead(case, compare):
    compare(case)
