"""Kernels for autoregressive video models. Every name is documented where it is defined."""

from videoar_kernels.kv_cache import CacheView, KVCache
from videoar_kernels.norm import swiglu
from videoar_kernels.report import info

__all__ = ["CacheView", "KVCache", "info", "swiglu"]
