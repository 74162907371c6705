"""Random operands, and the results and gradients of a function of them."""

from __future__ import annotations

import torch


def random(shape, dtype):
    return None if shape is None else torch.randn(shape).to(dtype)


def double(tensors):
    return [None if t is None else t.double() for t in tensors]


def outputs_and_gradients(function, tensors, grad_out):
    """The result of function(*tensors), then the gradient of each tensor that is not None."""
    inputs = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    out = function(*inputs)
    present = [t for t in inputs if t is not None]
    return [out, *torch.autograd.grad(out, present, grad_out.to(out.dtype))]
