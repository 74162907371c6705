"""What a tensor must be to take an operator's result (`out=`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from videoar_kernels.argument_types import check_tensor

Inputs = Mapping[str, Tensor | None]
NO_INPUTS: Inputs = {}


def check_out(op: str, name: str, out: Tensor, like: Tensor, inputs: Inputs, others: Inputs = NO_INPUTS) -> None:
    """Raises unless `out`, with a contiguous last dimension, can take a result of `like`'s shape, dtype and device.

    Args:
        op: the public function's name.
        name: how its caller calls `out`.
        out: the tensor that will be written.
        like: the input that the result resembles.
        inputs: tensors of which an element is read where the result's is written; `out` may be exactly one of them, but
            not overlap one partly.
        others: tensors that `out` must be apart from.

    Raises:
        TypeError: no tensor, or another dtype. ValueError: all else.
    """
    check_form(op, name, out, like.shape, like.dtype, like.device, (*inputs.values(), *others.values()))
    dense = out.ndim == 0 or out.shape[-1] <= 1 or out.stride(-1) == 1
    if not dense or repeats_elements(out):
        raise ValueError(
            f"{op}: expected {name} with a contiguous last dimension and no element stored twice (no stride 0), "
            f"got shape {tuple(out.shape)} and strides {out.stride()}"
        )
    check_apart(op, name, out, inputs, others)


def check_dense_out(
    op: str,
    name: str,
    out: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    inputs: Inputs,
    others: Inputs = NO_INPUTS,
) -> None:
    """Raises unless `out` is dense, of this shape and dtype and where the inputs are; the rest as `check_out`."""
    read = (*inputs.values(), *others.values())
    device = next(t.device for t in read if t is not None)
    check_form(op, name, out, shape, dtype, device, read)
    if not out.is_contiguous():
        raise ValueError(f"{op}: expected {name} dense, got shape {tuple(shape)} with strides {out.stride()}")
    check_apart(op, name, out, inputs, others)


def check_form(
    op: str,
    name: str,
    out: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    read: Sequence[Tensor | None],
) -> None:
    """Raises unless `out` has this shape, dtype and device, and no gradient is wanted of it or of what is read."""
    check_tensor(op, name, out)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, *read)):
        raise ValueError(f"{op}: expected tensors that need no gradient with {name}, got one that does; use no_grad()")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"{op}: expected {name} of shape {tuple(shape)}, got {tuple(out.shape)}")
    if out.dtype != dtype:
        raise TypeError(f"{op}: expected {name} of {dtype}, got {out.dtype}")
    if out.device != device:
        raise ValueError(f"{op}: expected {name} on {device}, got one on {out.device}")


def check_apart(op: str, name: str, out: Tensor, inputs: Inputs, others: Inputs) -> None:
    """Raises ValueError where `out` overlaps `others`, or `inputs` otherwise than by being one of them."""
    for other, tensor in inputs.items():
        if tensor is not None and shares_memory(out, tensor, or_same=tensor.dtype == out.dtype):
            raise ValueError(f"{op}: expected {name} apart from {other}, or exactly it, got a partial overlap")
    for other, tensor in others.items():
        if tensor is not None and shares_memory(out, tensor):
            raise ValueError(f"{op}: expected {name} apart from {other}, got an overlap")


def shares_memory(out: Tensor, tensor: Tensor, *, or_same: bool = False) -> bool:
    """Returns whether `out`, which holds no element twice, shares memory with a tensor.

    Views of other strides inside one another's range count as sharing. Under torch.compile nothing has an address, and
    the compiler copies what overlaps.

    Args:
        out: the tensor that will be written.
        tensor: one that is read.
        or_same: it may be `out` itself, element for element.
    """
    if torch.compiler.is_compiling() or out.numel() == 0 or tensor.numel() == 0 or out.device != tensor.device:
        return False
    offset = tensor.data_ptr() - out.data_ptr()
    dims, others = _moving(out), _moving(tensor)
    if offset >= _bytes(out, dims) or -offset >= _bytes(tensor, others):
        return False
    if out.element_size() != tensor.element_size() or offset % out.element_size():
        return True
    if offset == 0:
        return not (or_same and dims == others)
    dims = sorted(dims, reverse=True)
    return dims != sorted(others, reverse=True) or _spans(offset // out.element_size(), dims)


def repeats_elements(t: Tensor) -> bool:
    """Returns whether two of a tensor's elements lie at one place."""
    extent = 1
    for stride, size in sorted(_moving(t)):
        if stride < extent:
            return t.numel() > 0
        extent += stride * (size - 1)
    return False


def _moving(t: Tensor) -> list[tuple[int, int]]:
    """Returns (stride, size) of the dimensions of more than one element."""
    return [(s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n > 1]


def _bytes(t: Tensor, dims: list[tuple[int, int]]) -> int:
    return (1 + sum(s * (n - 1) for s, n in dims)) * t.element_size()


def _spans(offset: int, dims: list[tuple[int, int]]) -> bool:
    """Returns whether two elements of a layout, widest dimension first, lie `offset` apart."""
    if not dims:
        return offset == 0
    (stride, size), *inner = dims
    below = offset // stride
    return any(-size < n < size and _spans(offset - n * stride, inner) for n in (below, below + 1))
