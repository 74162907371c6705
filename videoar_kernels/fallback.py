"""What runs where no compiled kernel exists: Triton on GPUs where there is one, else the reference.

A device without a kernel of its own runs the plain PyTorch reference, and `videoar_kernels.info()` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DEVICES = ("CUDA", "XPU", "MPS")
_library = torch.library.Library("videoar_kernels", "IMPL")
_registered: dict[str, dict[str, str]] = {device: {} for device in DEVICES}


def register_fallback(name: str, function: Callable, *, label: str = "reference", devices=DEVICES) -> None:
    """Makes `function` run operator `name` on every device of `devices` that has no kernel for it yet.

    Args:
        name: operator name without namespace.
        function: takes and returns what the operator's schema says.
        label: what `info()` shows.
        devices: dispatch keys.
    """
    for device in devices:
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"videoar_kernels::{name}", device):
            continue
        _library.impl(name, function, device)
        _registered[device][name] = label


def into_out(op: Callable) -> Callable:
    """Returns the `out` form of an operator that has none on this device."""

    def function(*arguments):
        *inputs, out = arguments
        out.copy_(op(*inputs))

    return function


def gradients_of(function: Callable, inputs: Sequence[Tensor | None], grad_out: Tensor) -> tuple[Tensor, ...]:
    """Returns the gradients of `function` by autograd; no elements for an absent input."""
    with torch.enable_grad():
        inputs = [t if t is None else t.detach().requires_grad_() for t in inputs]
        present = [t for t in inputs if t is not None]
        grads = iter(torch.autograd.grad(function(*inputs), present, grad_out))
        return tuple(grad_out.new_empty(0) if t is None else next(grads) for t in inputs)


def registered(device: str) -> dict[str, str]:
    """Returns operator name -> label of what was registered from Python for a dispatch key."""
    return _registered.get(device, {})
