"""Loads the compiled operators and tells what was built."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

ISAS = ("portable", "avx2", "avx512", "avx512_bf16")

_path = Path(os.environ.get("VIDEOAR_LIBRARY") or Path(__file__).parent / "libvideoar_ops.so")
if not _path.exists():
    raise ImportError(
        f"videoar_kernels: the compiled operators are missing ({_path}); "
        "run `pip install --no-build-isolation -e .` in the repository, or `make build`"
    )
torch.ops.load_library(str(_path))

ops = torch.ops.videoar_kernels

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_AUTOGRAD = torch._C.DispatchKey.AutogradCPU
_is_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded
_exclude = torch._C._dispatch_tls_set_dispatch_key_excluded


def run(op: Callable, check: Callable[[], object], first: Tensor | list[Tensor], *rest: object):
    """Returns op(first, *rest); bad arguments raise what `check` raises.

    At inference on the CPU the C++ kernel's own checks come first, and Python's autograd layer and `check` are skipped:
    they would take longer than a small operator. `check` then only explains a refusal.

    Args:
        op: an operator's overload, such as `ops.swiglu.default`.
        check: raises ValueError or TypeError where an argument is wrong.
        first: the operator's first tensor, or list of tensors; its device decides.
        rest: the other arguments.
    """
    leading = first[0] if type(first) is list else first
    try:
        checked_first = _is_grad_enabled() or not leading.is_cpu or _is_compiling()
    except AttributeError:  # no tensor
        check()
        raise
    if checked_first:
        check()
        return op(first, *rest)
    # As torch._C._AutoDispatchBelowAutograd does, in a third of its time.
    above = not _is_excluded(_AUTOGRAD)  # under torch.inference_mode autograd is excluded already
    if above:
        _exclude(_AUTOGRAD, True)
    try:
        return op._op(first, *rest)  # what op() itself calls
    except Exception:
        check()
        raise
    finally:
        if above:
            _exclude(_AUTOGRAD, False)


def run_into(written: Tensor | Sequence[Tensor], op: Callable, check: Callable, first: Tensor | list[Tensor], *rest):
    """`run` for an operator that writes into `written`; autograd sees the change, as after PyTorch's own operators."""
    result = run(op, check, first, *rest)
    if not _is_compiling():
        torch.autograd.graph.increment_version(written)
    return result


def register_fake(name: str) -> Callable:
    """`torch.library.register_fake`, refusing a CPU tensor among tensors of the meta device, which get here too."""

    def register(function: Callable) -> Callable:
        @functools.wraps(function)
        def checked(*args):
            tensors = (u for t in args for u in (t if isinstance(t, (list, tuple)) else (t,)) if isinstance(u, Tensor))
            first = next(tensors)
            if first.is_cpu and not isinstance(first, FakeTensor):
                raise RuntimeError(f"{name}: expected all tensors on one device, got some on cpu and some on meta")
            return function(*args)

        torch.library.register_fake(name)(checked)
        return function

    return register


def cpu_isa() -> str:
    """Returns the instruction set that CPU kernels run with now, one of `ISAS`."""
    return ops.cpu_isa("")


def set_cpu_isa(name: str) -> str:
    """Makes CPU kernels run with instruction set `name`; returns the one used before.

    Raises:
        ValueError: `name` is unknown, or this CPU or build does not support it.
    """
    before = cpu_isa()
    if not name or ops.cpu_isa(name) != name:
        raise ValueError(f"set_cpu_isa: expected one of {available_isas()}, got {name!r}")
    return before


def available_isas() -> tuple[str, ...]:
    """Returns the instruction sets that this build has and this CPU supports."""
    before = cpu_isa()
    available = tuple(name for name in ISAS if ops.cpu_isa(name) == name)
    ops.cpu_isa(before)
    return available


_wanted = os.environ.get("VIDEOAR_ISA", "")
if _wanted and cpu_isa() != _wanted:
    raise ImportError(f"videoar_kernels: VIDEOAR_ISA={_wanted!r}, expected one of {available_isas()}")
