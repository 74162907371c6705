"""Copies from the host to a device, told without a GPU: on one they wait for it, and no CUDA graph can hold them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = "meta"  # stands for the GPU


def address(x: torch.Tensor) -> int:
    """Stands for data_ptr, so that tensors without memory are apart."""
    return (x.untyped_storage()._cdata << 32) + x.storage_offset() * x.element_size()


class HostCopies:
    """A context that writes down what copies to the meta device.

    As a runner it runs a step, and watches when it runs again, as when a graph captures it.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self.steps = 0

    def __enter__(self) -> HostCopies:
        self._modes = _Values(self.found), _Operators(self.found)
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def __call__(self, key: Hashable, step: Callable[[], None]) -> None:
        self.steps += 1
        step()
        with self:
            step()


class _Values(TorchFunctionMode):
    """Tensors made of Python's numbers."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in ("tensor", "as_tensor", "new_tensor") and not result.is_cpu:
            self.found.append(name)
        return result


class _Operators(TorchDispatchMode):
    """Operators whose result is elsewhere than one of their tensors."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function)
        copies = "copy" in name
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        # A number alone is handed to a kernel; masks go to this library's own operators, whose work lists are kept.
        from_host = any(x.is_cpu and (x.dim() or copies) for x in given) and not name.startswith("videoar_kernels.")
        if from_host and any(isinstance(x, torch.Tensor) and not x.is_cpu for x in tree_leaves(result)):
            self.found.append(name)
        return result
