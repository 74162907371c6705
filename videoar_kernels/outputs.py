"""What a tensor must be to take an operator's result (`out=`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from videoar_kernels.argument_types import check_tensor

Inputs = Mapping[str, Tensor | None]
_NONE: Inputs = {}


def check_out(op: str, name: str, out: Tensor, like: Tensor, inputs: Inputs, others: Inputs = _NONE) -> None:
    """Raises ValueError unless `out` can take a result of `like`'s shape, dtype and device.

    Args:
        op: the public function's name.
        name: how its caller calls `out`.
        out: the tensor that will be written.
        like: the input that the result resembles.
        inputs: tensors of which an element is read where the result's is written; `out` may be exactly one of them, but
            not overlap one partly.
        others: tensors that `out` must be apart from.
    """
    check_tensor(op, name, out)
    read = (*inputs.values(), *others.values())
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, *read)):
        raise ValueError(f"{op}: expected tensors that need no gradient with {name}, got one that does")
    if out.shape != like.shape or out.dtype != like.dtype or out.device != like.device:
        raise ValueError(
            f"{op}: expected {name} like {tuple(like.shape)} {like.dtype} on {like.device}, "
            f"got {tuple(out.shape)} {out.dtype} on {out.device}"
        )
    dense = out.ndim == 0 or out.shape[-1] <= 1 or out.stride(-1) == 1
    if not dense or repeats_elements(out):
        raise ValueError(
            f"{op}: expected {name} with a contiguous last dimension and no element stored twice (no stride 0), "
            f"got strides {out.stride()}"
        )
    for other, tensor in inputs.items():
        if tensor is not None and shares_memory(out, tensor, or_same=True):
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
