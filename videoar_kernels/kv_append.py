"""The operators that write into a cache's buffers and move what is there: fake kernels, fallbacks. For `KVCache`."""

from __future__ import annotations

from videoar_kernels import reference
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import register_fake

DEFAULTS = (1e-6, (), 10000.0, True)  # eps, dims, theta, interleaved, as in the operators' schemas


@register_fake("videoar_kernels::kv_cache_append")
def _(k_caches, v_caches, ks, vs, k_weights, positions, start, sink, *rotation):
    return None


@register_fake("videoar_kernels::kv_cache_append_layer")
def _(k_cache, v_cache, k, v, k_weight, positions, start, sink, *rotation):
    return None


@register_fake("videoar_kernels::kv_cache_move")
def _(caches, moves):
    return None


def _reference_append(k_caches, v_caches, ks, vs, k_weights, positions, start, sink, *rotation):
    eps, dims, theta, interleaved = rotation + DEFAULTS[len(rotation) :]
    rest = (positions, start, sink, eps, dims or None, theta, interleaved)
    reference.kv_cache.kv_cache_append(k_caches, v_caches, ks, vs, k_weights, *rest)


def _reference_append_layer(k_cache, v_cache, k, v, k_weight, *rest):
    _reference_append([k_cache], [v_cache], [k], [v], [] if k_weight is None else [k_weight], *rest)


register_fallback("kv_cache_append", _reference_append)
register_fallback("kv_cache_append_layer", _reference_append_layer)
register_fallback("kv_cache_move", reference.kv_cache.kv_cache_move)
