"""Kernels for autoregressive video models. Every name is documented where it is defined."""

from videoar_kernels.attention import range_attention
from videoar_kernels.bit_entropy import bit_cross_entropy
from videoar_kernels.bit_packing import bits_to_code, pack_bits, unpack_bits
from videoar_kernels.bits import bsq_quantize, flip_bits, sample_bits
from videoar_kernels.gated_activation import swiglu
from videoar_kernels.kv_cache import CacheView, KVCache
from videoar_kernels.linear import PackedLinear, pack_linear_weight, packed_linear, unpack_linear_weight
from videoar_kernels.masks import RangeMask
from videoar_kernels.norm import adaln_norm, gated_residual
from videoar_kernels.norm_rope import qk_norm_rope
from videoar_kernels.positions import multiscale_positions, unit_positions
from videoar_kernels.pyramid import pyramid_encode, pyramid_resample
from videoar_kernels.pyramid_sum import pyramid_decode, pyramid_step
from videoar_kernels.report import info
from videoar_kernels.rope import rope_3d, rope_3d_

__all__ = [
    "CacheView",
    "KVCache",
    "PackedLinear",
    "RangeMask",
    "adaln_norm",
    "bit_cross_entropy",
    "bits_to_code",
    "bsq_quantize",
    "flip_bits",
    "gated_residual",
    "info",
    "multiscale_positions",
    "pack_bits",
    "pack_linear_weight",
    "packed_linear",
    "pyramid_decode",
    "pyramid_encode",
    "pyramid_resample",
    "pyramid_step",
    "qk_norm_rope",
    "range_attention",
    "rope_3d",
    "rope_3d_",
    "sample_bits",
    "swiglu",
    "unit_positions",
    "unpack_bits",
    "unpack_linear_weight",
]
