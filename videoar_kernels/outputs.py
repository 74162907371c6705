"""What a tensor must be to take an operator's result (`out=`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def check_out(op: str, name: str, out: Tensor, like: Tensor, inputs: Mapping[str, Tensor | None]) -> None:
    """Raises ValueError unless `out` can take a result of `like`'s shape, dtype and device.

    Args:
        op: the public function's name.
        name: how its caller calls `out`.
        out: the tensor that will be written.
        like: the input that the result resembles.
        inputs: the other tensors; `out` may be exactly one of those it is called by, but not overlap one partly.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, *inputs.values())):
        raise ValueError(f"{op}: expected tensors that need no gradient with {name}, got one that does")
    if out.shape != like.shape or out.dtype != like.dtype or out.device != like.device:
        raise ValueError(
            f"{op}: expected {name} like {tuple(like.shape)} {like.dtype} on {like.device}, "
            f"got {tuple(out.shape)} {out.dtype} on {out.device}"
        )
    dense = out.ndim == 0 or out.shape[-1] <= 1 or out.stride(-1) == 1
    if not dense or _overlaps_itself(out):
        raise ValueError(
            f"{op}: expected {name} with a contiguous last dimension and no element stored twice (no stride 0), "
            f"got strides {out.stride()}"
        )
    for other, tensor in inputs.items():
        if tensor is not None and overlaps_partly(out, tensor):
            raise ValueError(f"{op}: expected {name} apart from {other}, or exactly it, got a partial overlap")


def overlaps_partly(out: Tensor, tensor: Tensor) -> bool:
    """Returns whether the two share memory without being the same view of it.

    Views of other strides inside one another's range count as overlapping. Under torch.compile nothing has an address,
    and the compiler copies what overlaps.
    """
    if torch.compiler.is_compiling() or out.numel() == 0 or tensor.numel() == 0 or out.device != tensor.device:
        return False
    offset = tensor.data_ptr() - out.data_ptr()
    if offset >= _bytes(out) or -offset >= _bytes(tensor):
        return False
    dims = _nested(out)
    if dims != _nested(tensor) or out.element_size() != tensor.element_size() or offset % out.element_size():
        return True
    return offset != 0 and _spans(offset // out.element_size(), dims)


def _nested(t: Tensor) -> list[tuple[int, int]]:
    """Returns (stride, size) of the dimensions of more than one element, widest first."""
    return sorted(((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n > 1), reverse=True)


def _bytes(t: Tensor) -> int:
    return (1 + sum(s * (n - 1) for s, n in _nested(t))) * t.element_size()


def _overlaps_itself(t: Tensor) -> bool:
    extent = 1
    for stride, size in reversed(_nested(t)):
        if stride < extent:
            return t.numel() > 0
        extent += stride * (size - 1)
    return False


def _spans(offset: int, dims: list[tuple[int, int]]) -> bool:
    """Returns whether two elements of a layout lie `offset` apart."""
    if not dims:
        return offset == 0
    (stride, size), *inner = dims
    below = offset // stride
    return any(-size < n < size and _spans(offset - n * stride, inner) for n in (below, below + 1))
