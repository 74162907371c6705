"""What functions on packed bits ask of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar_kernels.argument_types import check_tensor, whole

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_float(name: str, argument: str, x: Tensor) -> None:
    """Raise TypeError unless x is a tensor of a supported floating type, ValueError unless it has a dimension."""
    check_tensor(name, argument, x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected {argument} of float32, float64, bfloat16 or float16, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError(f"{name}: expected {argument} of shape (..., d), got ()")


def check_packed(name: str, bits: Tensor, dim: int | None, like: Tensor | None = None) -> int:
    """Return the number of bits a token; raise unless `bits` can hold them and lie where `like` does."""
    check_tensor(name, "bits", bits)
    if like is not None and bits.device != like.device:
        raise ValueError(f"{name}: expected bits on {like.device}, got {bits.device}")
    if bits.dtype != torch.uint8:
        raise TypeError(f"{name}: expected bits of torch.uint8, got {bits.dtype}")
    if bits.ndim == 0:
        raise ValueError(f"{name}: expected bits of shape (..., ceil(dim / 8)), got ()")
    if dim is None:
        return 8 * bits.shape[-1]
    if whole(name, "dim", dim) < 0 or (dim + 7) // 8 != bits.shape[-1]:
        raise ValueError(
            f"{name}: expected bits of shape (..., {(dim + 7) // 8}) for dim {dim}, got {tuple(bits.shape)}"
        )
    return dim


def bits_a_token(name: str, bits: Tensor) -> int:
    """Return the number of bits a token where all bytes are whole."""
    try:
        return 8 * bits.shape[-1]
    except (AttributeError, IndexError):
        return check_packed(name, bits, None)


def signed64(name: str, argument: str, value: int) -> int:
    """Return a 64-bit number as the signed integer that operators take.

    Raises ValueError where it has more bits, TypeError where it is no whole number.
    """
    value = whole(name, argument, value)
    if 0 <= value < 2**63:
        return value
    if not 0 <= value < 2**64:
        raise ValueError(f"{name}: expected {argument} within [0, 2**64), got {value}")
    return value - 2**64


def expanded(
    name: str, argument: str, x: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return x broadcast to a shape, of this type and on this device, without a gradient."""
    check_tensor(name, argument, x)
    if x.is_complex():
        raise TypeError(f"{name}: expected {argument} of real numbers, got {x.dtype}")
    try:
        return x.detach().to(device, dtype).expand(shape)
    except RuntimeError:
        raise ValueError(f"{name}: expected {argument} broadcastable to {tuple(shape)}, got {tuple(x.shape)}") from None


def check_probability(name: str, p: float | Tensor) -> None:
    """Raise ValueError unless p lies within [0, 1]; a tensor's values are looked at on the CPU only."""
    if not isinstance(p, Tensor):
        if not 0 <= p <= 1:
            raise ValueError(f"{name}: expected p within [0, 1], got {p}")
    elif p.is_cpu and not torch.compiler.is_compiling():
        outside = p[~((p >= 0) & (p <= 1))]
        if outside.numel():
            raise ValueError(f"{name}: expected p within [0, 1], got {outside.flatten()[0].item()}")
