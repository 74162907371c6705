"""Linear layers with weights packed once, for inference.

    packed_linear(x) = x @ weight^T + bias

At few rows such a layer is bound by reading its weights, so they are kept in bfloat16 where the model allows it, in the
order in which the kernel reads them, whatever the dtype of x.
Source: the blocked layouts of GotoBLAS (Goto & van de Geijn 2008); pairs of inputs side by side, as AVX-512's and ARM's
bfloat16 dot products want them.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from videoar_kernels import reference
from videoar_kernels.argument_types import check_tensor, whole
from videoar_kernels.bit_checks import FLOATS
from videoar_kernels.fallback import register_fallback
from videoar_kernels.library import ops, register_fake, run, run_into
from videoar_kernels.outputs import NO_INPUTS, check_apart, check_form, repeats_elements

WEIGHT_DTYPES = (torch.bfloat16, torch.float32)
ELEMENT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PANEL = 16
_op, _out_op = ops.packed_linear.default, ops.packed_linear_out.default


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Puts the weight of a linear layer into the order in which `packed_linear` reads it.

    Outputs come in panels of 16, inputs in pairs; both are filled up with zeros. The layout is the same for every
    instruction set, so packed weights can be stored.

    Args:
        weight: (N, K), bfloat16 or float32, any strides. N outputs, K inputs.

    Returns:
        weight's dtype: bfloat16 (ceil(N / 16), ceil(K / 2), 16, 2) or float32 (ceil(N / 16), ceil(K / 2), 2, 16).

    Raises:
        ValueError: weight is no matrix. TypeError: another dtype.

    Source: Goto & van de Geijn 2008. Not differentiable.
    """
    _check_weight(weight)
    return ops.pack_linear_weight(weight.detach())


def unpack_linear_weight(packed: Tensor, out_features: int, in_features: int) -> Tensor:
    """Returns the weight that `pack_linear_weight` packed.

    Args:
        packed: from `pack_linear_weight`.
        out_features: N.
        in_features: K.

    Returns:
        (N, K) of packed's dtype.

    Raises:
        ValueError: packed is not of the shape that N and K give. TypeError: another dtype.

    Source: as `pack_linear_weight`.
    """
    _check_packed("unpack_linear_weight", packed, out_features, in_features)
    return reference.linear.unpack_linear_weight(packed, out_features, in_features).contiguous()


def packed_linear(
    x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Returns x @ weight^T + bias for a packed weight.

    Products are summed in float32 and rounded once, to x's dtype. With bfloat16 weights, float32 and float16 inputs are
    not rounded before. A row's result has the same bits for any number of threads and whatever else is in the batch;
    it may differ by rounding between instruction sets.

    Args:
        x: (..., K), float32, bfloat16 or float16.
        packed: from `pack_linear_weight`.
        out_features: N.
        bias: (N,), float32, float64, bfloat16 or float16.
        out: (..., N), where to write, at inference only: x's dtype, rows dense and at one distance from each other,
            apart from the inputs.

    Returns:
        (..., N) of x's dtype; `out` where given.

    Raises:
        ValueError: shapes, devices or `out` do not fit. TypeError: dtypes.

    Source: as `pack_linear_weight`. Differentiable in x and bias, through the unpacked weight; slow, packing is for
    inference. Saved for backward: packed.
    """
    if out is None:
        return run(_op, lambda: _check(x, packed, out_features, bias), x, packed, bias, out_features)
    run_into(
        out,
        _out_op,
        lambda: _check_out(x, packed, out_features, bias, out),
        x,
        packed,
        bias,
        out_features,
        out,
    )
    return out


class PackedLinear(nn.Module):
    """`nn.Linear` with a packed weight, for inference.

    Args:
        in_features: K.
        out_features: N.
        bias: whether there is a bias; it is kept in float32.
        dtype: of the weight, bfloat16 or float32.
        device: of the buffers.

    Raises:
        ValueError: a negative size. TypeError: another dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if dtype not in WEIGHT_DTYPES:
            raise TypeError(f"PackedLinear: expected dtype of {WEIGHT_DTYPES}, got {dtype}")
        if in_features < 0 or out_features < 0:
            raise ValueError(
                f"PackedLinear: expected sizes of at least 0, got {out_features} outputs and {in_features} inputs"
            )
        self.in_features, self.out_features = in_features, out_features
        shape = _packed_shape(dtype, out_features, in_features)
        self.register_buffer("packed", torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, dtype: torch.dtype | None = None) -> PackedLinear:
        """Packs a layer.

        Args:
            linear: the layer; it may be dropped afterwards.
            dtype: of the packed weight, bfloat16 or float32; the layer's if None.
        """
        weight = linear.weight.detach()
        with torch.device("meta"):
            packed = cls(linear.in_features, linear.out_features, linear.bias is not None, dtype=dtype or weight.dtype)
        packed.packed = pack_linear_weight(weight.to(dtype or weight.dtype))
        if linear.bias is not None:
            packed.bias = linear.bias.detach().float()
        return packed.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"PackedLinear: expected x (..., {self.in_features}), got {tuple(x.shape)}")
        return packed_linear(x, self.packed, self.out_features, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"dtype={self.packed.dtype}"
        )


def _packed_shape(dtype: torch.dtype, out_features: int, in_features: int) -> tuple[int, int, int, int]:
    inner = (PANEL, 2) if dtype == torch.bfloat16 else (2, PANEL)
    return (out_features + PANEL - 1) // PANEL, (in_features + 1) // 2, *inner


def _check_weight(weight: Tensor) -> None:
    check_tensor("pack_linear_weight", "weight", weight)
    if weight.ndim != 2:
        raise ValueError(f"pack_linear_weight: expected weight (out_features, in_features), got {tuple(weight.shape)}")
    if weight.dtype not in WEIGHT_DTYPES:
        raise TypeError(f"pack_linear_weight: expected weight of {WEIGHT_DTYPES}, got {weight.dtype}")


def _check_packed(op: str, packed: Tensor, out_features: int, in_features: int) -> None:
    check_tensor(op, "packed", packed)
    if packed.dtype not in WEIGHT_DTYPES:
        raise TypeError(f"{op}: expected packed of {WEIGHT_DTYPES}, got {packed.dtype}")
    if whole(op, "out_features", out_features) < 0 or whole(op, "in_features", in_features) < 0:
        raise ValueError(f"{op}: expected sizes of at least 0, got {out_features} outputs and {in_features} inputs")
    expected = _packed_shape(packed.dtype, out_features, in_features)
    if packed.shape != expected:
        raise ValueError(
            f"{op}: expected packed {expected} for {in_features} inputs and {out_features} outputs, "
            f"got {tuple(packed.shape)}"
        )


def _check(x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None) -> None:
    check_tensor("packed_linear", "x", x)
    if x.dtype not in ELEMENT_DTYPES:
        raise TypeError(f"packed_linear: expected x of one of {ELEMENT_DTYPES}, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError("packed_linear: expected x (..., in_features), got ()")
    _check_packed("packed_linear", packed, out_features, x.shape[-1])
    if packed.device != x.device or not packed.is_contiguous():
        raise ValueError(
            f"packed_linear: expected packed contiguous on {x.device}, got strides {packed.stride()} on {packed.device}"
        )
    if bias is not None:
        check_tensor("packed_linear", "bias", bias)
    if bias is not None and (bias.shape != (out_features,) or bias.device != x.device):
        raise ValueError(
            f"packed_linear: expected bias ({out_features},) on {x.device}, got {tuple(bias.shape)} on {bias.device}"
        )
    if bias is not None and bias.dtype not in FLOATS:
        raise TypeError(f"packed_linear: expected bias of float32, float64, bfloat16 or float16, got {bias.dtype}")


def _check_out(x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None, out: Tensor) -> None:
    _check(x, packed, out_features, bias)
    shape, read = (*x.shape[:-1], out_features), {"x": x, "packed": packed, "bias": bias}
    check_form("packed_linear", "out", out, shape, x.dtype, x.device, tuple(read.values()))
    if repeats_elements(out) or not _has_even_rows(out):
        raise ValueError(
            "packed_linear: expected out with contiguous rows at one distance from each other, all apart, "
            f"got shape {shape} and strides {out.stride()}"
        )
    check_apart("packed_linear", "out", out, NO_INPUTS, read)


def _has_even_rows(x: Tensor) -> bool:
    """Returns whether its leading dimensions are one, with one stride."""
    *rows, (width, between) = [(n, s) for n, s in zip(x.shape, x.stride(), strict=True)]
    rows = [(n, s) for n, s in rows if n != 1]
    even = all(a[1] == b[0] * b[1] for a, b in itertools.pairwise(rows))
    return x.numel() == 0 or (even and (width == 1 or between == 1))


def _save(ctx, inputs, output):
    x, packed, bias, out_features = inputs
    ctx.save_for_backward(packed)
    ctx.in_features, ctx.out_features = x.shape[-1], out_features
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx, grad_out):
    (packed,) = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        weight = reference.linear.unpack_linear_weight(packed, ctx.out_features, ctx.in_features)
        grad_x = (grad_out.float() @ weight.float()).to(grad_out.dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
        grad_bias = grad_out.float().sum_to_size(ctx.out_features).to(ctx.bias_dtype)
    return grad_x, None, grad_bias, None


torch.library.register_autograd("videoar_kernels::packed_linear", _gradients, setup_context=_save)


@register_fake("videoar_kernels::pack_linear_weight")
def _(weight):
    return weight.new_empty(_packed_shape(weight.dtype, *weight.shape))


@register_fake("videoar_kernels::packed_linear")
def _(x, packed, bias, out_features):
    return x.new_empty((*x.shape[:-1], out_features))


@register_fake("videoar_kernels::packed_linear_out")
def _(x, packed, bias, out_features, out):
    return None


def _reference_out(x, packed, bias, out_features, out):
    out.copy_(reference.linear.packed_linear(x, packed, bias, out_features))


register_fallback("pack_linear_weight", reference.linear.pack_linear_weight)
register_fallback("packed_linear", reference.linear.packed_linear)
register_fallback("packed_linear_out", _reference_out)
