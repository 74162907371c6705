"""Bits packed eight a byte, and their code.

Packed bits are uint8 (..., ceil(d / 8)): bit j of a token is bit `j mod 8` of byte `j div 8`, padding bits are zero.
Source: BSQ (Zhao et al. 2024), Eq. 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.argument_types import check_tensor
from videoar_kernels.bit_checks import FLOATS, bits_a_token, check_float, check_packed
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into
from videoar_kernels.outputs import NO_INPUTS, check_dense_out

_NUMBERS = {dtype: i for i, dtype in enumerate(FLOATS)}  # as in DType, csrc/cpu/dtype.h

# Looking an overload up takes 0.2 us.
_BITS_TO_CODE = ops.bits_to_code.default
_BITS_TO_CODE_OUT = ops.bits_to_code_out.default
_PACK_BITS = ops.pack_bits.default
_PACK_BITS_OUT = ops.pack_bits_out.default
_UNPACK_BITS = ops.unpack_bits.default
_UNPACK_BITS_OUT = ops.unpack_bits_out.default


def pack_bits(bits: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Pack eight bits a byte.

    Args:
        bits: (..., d), bool or uint8; anything but zero is a one.
        out: uint8 (..., ceil(d / 8)), dense, to write to.
    Returns:
        uint8 (..., ceil(d / 8)), little-endian, padding bits zero.
    Raises:
        TypeError, ValueError: another dtype, or no dimension; `out` does not fit.
    """
    if out is None:
        return run(_PACK_BITS, lambda: _check_ones(bits), bits)
    run_into(out, _PACK_BITS_OUT, lambda: _check_ones(bits, out), bits, out)
    return out


def _check_ones(bits: Tensor, out: Tensor | None = None) -> None:
    check_tensor("pack_bits", "bits", bits)
    if bits.dtype not in (torch.bool, torch.uint8):
        raise TypeError(f"pack_bits: expected bits of torch.bool or torch.uint8, got {bits.dtype}")
    if bits.ndim == 0:
        raise ValueError("pack_bits: expected bits of shape (..., d), got ()")
    if out is not None:
        shape = (*bits.shape[:-1], (bits.shape[-1] + 7) // 8)
        check_dense_out("pack_bits", "out", out, shape, torch.uint8, {"bits": bits})


def unpack_bits(bits: Tensor, dim: int | None = None, *, out: Tensor | None = None) -> Tensor:
    """Unpack eight bits a byte.

    Args:
        bits: uint8 (..., ceil(dim / 8)).
        dim: bits a token, by default eight per byte.
        out: bool (..., dim), dense, to write to.
    Returns:
        bool (..., dim).
    Raises:
        TypeError, ValueError: `bits` is not uint8, or does not fit `dim`; `out` does not fit.
    """
    if dim is None:
        dim = bits_a_token("unpack_bits", bits)
    if out is None:
        return run(_UNPACK_BITS, lambda: check_packed("unpack_bits", bits, dim), bits, dim)

    def check() -> None:
        check_packed("unpack_bits", bits, dim)
        check_dense_out("unpack_bits", "out", out, (*bits.shape[:-1], dim), torch.bool, NO_INPUTS, {"bits": bits})

    if not isinstance(out, Tensor) or out.shape[-1:] != (dim,):
        check()
    run_into(out, _UNPACK_BITS_OUT, check, bits, out)
    return out


def bits_to_code(
    bits: Tensor, dim: int | None = None, dtype: torch.dtype | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Return the code of packed bits.

    Args:
        bits: uint8 (..., ceil(dim / 8)).
        dim: bits a token, by default eight per byte.
        dtype: of the result; None: that of `out`, or float32.
        out: (..., dim), dense, to write to.
    Returns:
        (..., dim), ±1/sqrt(dim).
    Raises:
        TypeError, ValueError: `bits` is not uint8, or does not fit `dim`; `dtype` is not floating; `out` does not fit.
    Source: BSQ, Eq. 3.
    """
    if dim is None:
        dim = bits_a_token("bits_to_code", bits)
    if out is None:
        number = 0 if dtype is None else _NUMBERS.get(dtype, -1)
        return run(_BITS_TO_CODE, lambda: _check_code(bits, dim, dtype), bits, dim, number)

    def check() -> None:
        check_packed("bits_to_code", bits, dim)
        check_float("bits_to_code", "out", out)
        shape = (*bits.shape[:-1], dim)
        check_dense_out("bits_to_code", "out", out, shape, dtype or out.dtype, NO_INPUTS, {"bits": bits})

    if not isinstance(out, Tensor) or out.shape[-1:] != (dim,) or dtype not in (None, out.dtype):
        check()
    run_into(out, _BITS_TO_CODE_OUT, check, bits, out)
    return out


def _check_code(bits: Tensor, dim: int, dtype: torch.dtype) -> None:
    check_packed("bits_to_code", bits, dim)
    if dtype is not None and dtype not in _NUMBERS:
        raise TypeError(f"bits_to_code: expected dtype of float32, float64, bfloat16 or float16, got {dtype}")


@register_fake("videoar_kernels::pack_bits_out")
def _(ones, bits):
    return None


@register_fake("videoar_kernels::unpack_bits_out")
def _(bits, ones):
    return None


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
    return bits.new_empty((*bits.shape[:-1], dim), dtype=FLOATS[dtype])


def _reference_code_out(bits, code):
    code.copy_(reference.bits.bits_to_code(bits, code.shape[-1], code.dtype))


def _reference_pack_out(ones, bits):
    bits.copy_(reference.bits.pack_bits(ones))


def _reference_unpack_out(bits, ones):
    ones.copy_(reference.bits.unpack_bits(bits, ones.shape[-1]))


def _reference_code(bits, dim, dtype):
    return reference.bits.bits_to_code(bits, dim, FLOATS[dtype])


register_fallback("pack_bits", reference.bits.pack_bits)
register_fallback("pack_bits_out", _reference_pack_out)
register_fallback("unpack_bits_out", _reference_unpack_out)
register_fallback("unpack_bits", reference.bits.unpack_bits)
register_fallback("bits_to_code", _reference_code)
register_fallback("bits_to_code_out", _reference_code_out)
