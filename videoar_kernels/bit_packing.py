"""Bits packed eight a byte, and their code.

Packed bits are uint8 (..., ceil(d / 8)): bit j of a token is bit `j mod 8` of byte `j div 8`, padding bits are zero.
Source: BSQ (Zhao et al. 2024), Eq. 3.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.bit_checks import check_float, check_out, check_packed
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into


def pack_bits(bits: Tensor) -> Tensor:
    """Pack eight bits a byte.

    Args:
        bits: (..., d), bool or uint8; anything but zero is a one.
    Returns:
        uint8 (..., ceil(d / 8)), little-endian, padding bits zero.
    Raises:
        TypeError, ValueError: another dtype, or no dimension.
    """
    return run(ops.pack_bits.default, lambda: _check_ones(bits), bits)


def _check_ones(bits: Tensor) -> None:
    if bits.dtype not in (torch.bool, torch.uint8):
        raise TypeError(f"pack_bits: expected bits of torch.bool or torch.uint8, got {bits.dtype}")
    if bits.ndim == 0:
        raise ValueError("pack_bits: expected bits of shape (..., d), got ()")


def unpack_bits(bits: Tensor, dim: int | None = None) -> Tensor:
    """Unpack eight bits a byte.

    Args:
        bits: uint8 (..., ceil(dim / 8)).
        dim: bits a token, by default eight per byte.
    Returns:
        bool (..., dim).
    Raises:
        TypeError, ValueError: `bits` is not uint8, or does not fit `dim`.
    """
    check = functools.partial(check_packed, "unpack_bits", bits, dim)
    return run(ops.unpack_bits.default, check, bits, check() if dim is None else dim)


def bits_to_code(
    bits: Tensor, dim: int | None = None, dtype: torch.dtype = torch.float32, *, out: Tensor | None = None
) -> Tensor:
    """Return the code of packed bits.

    Args:
        bits: uint8 (..., ceil(dim / 8)).
        dim: bits a token, by default eight per byte.
        dtype: of the result.
        out: (..., dim), dense, to write to; its dtype counts.
    Returns:
        (..., dim), ±1/sqrt(dim).
    Raises:
        TypeError, ValueError: `bits` is not uint8, or does not fit `dim`; `out` does not fit.
    Source: BSQ, Eq. 3.
    """
    check = functools.partial(check_packed, "bits_to_code", bits, dim)
    if out is None:
        return run(ops.bits_to_code.default, check, bits, check() if dim is None else dim, dtype)

    def check_code() -> None:
        check_float("bits_to_code", "out", out)
        check_out("bits_to_code", "out", out, (*bits.shape[:-1], check()), out.dtype, bits)

    if dim is not None and out.shape[-1:] != (dim,):
        check_code()
    run_into(out, ops.bits_to_code_out.default, check_code, bits, out)
    return out


@register_fake("videoar_kernels::bits_to_code_out")
def _(bits, code):
    return None


@register_fake("videoar_kernels::pack_bits")
def _(ones):
    return ones.new_empty((*ones.shape[:-1], (ones.shape[-1] + 7) // 8), dtype=torch.uint8)


@register_fake("videoar_kernels::unpack_bits")
def _(bits, dim):
    return bits.new_empty((*bits.shape[:-1], dim), dtype=torch.bool)


@register_fake("videoar_kernels::bits_to_code")
def _(bits, dim, dtype):
    return bits.new_empty((*bits.shape[:-1], dim), dtype=dtype)


def _reference_code_out(bits, code):
    code.copy_(reference.bits.bits_to_code(bits, code.shape[-1], code.dtype))


register_fallback("pack_bits", reference.bits.pack_bits)
register_fallback("unpack_bits", reference.bits.unpack_bits)
register_fallback("bits_to_code", reference.bits.bits_to_code)
register_fallback("bits_to_code_out", _reference_code_out)
