"""The operators again in plain PyTorch: slow, obvious, on any device, in float64 too. They are the definition."""

from videoar_kernels.reference import attention, bits, kv_cache, linear, norm, philox, pyramid, rope

__all__ = ["attention", "bits", "kv_cache", "linear", "norm", "philox", "pyramid", "rope"]
