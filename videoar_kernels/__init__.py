"""Kernels for autoregressive video models. Every name is documented where it is defined."""

from videoar_kernels.attention import range_attention
from videoar_kernels.kv_cache import CacheView, KVCache
from videoar_kernels.masks import RangeMask
from videoar_kernels.norm import adaln_norm, gated_residual, swiglu
from videoar_kernels.report import info
from videoar_kernels.rope import multiscale_positions, qk_norm_rope, rope_3d, rope_3d_, unit_positions

__all__ = [
    "CacheView",
    "KVCache",
    "RangeMask",
    "adaln_norm",
    "gated_residual",
    "info",
    "multiscale_positions",
    "qk_norm_rope",
    "range_attention",
    "rope_3d",
    "rope_3d_",
    "swiglu",
    "unit_positions",
]
