"""Runs benchmark cases on the meta device, whose operators refuse operands of different devices as a GPU's do.

    python tests/benchmarks/device_probe.py rope norm ...

Prints a line for each set of cases, and one for each call that makes numbers on the CPU or mixes devices. A process of
its own: tests/kernels has files of the same names as benchmarks.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator

import closeness
import registry
import session
import torch
from registry import Absent, Case, CaseSet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from videoar import next_scale

DEVICE = "meta"
MOST_CASES = 2  # of a set
# PyTorch's words where a tensor is asked for its values, or an operator has none of this device.
NEEDS_VALUES = ("meta tensor", "Meta tensor", "Found input tensors on meta device")


NUMBERS = (torch.float32, torch.bfloat16, torch.float16)  # masks and positions are planned on the CPU, in others


class Elsewhere(TorchDispatchMode):
    """Refuses numbers on the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for x in tree_leaves(results):
            if isinstance(x, torch.Tensor) and x.is_cpu and x.dtype in NUMBERS and x.dim() > 0:
                raise AssertionError(f"{function} made numbers of shape {tuple(x.shape)} on the CPU")
        return results


def compared(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Stands for a comparison of values."""
    assert a.device == b.device == torch.device(DEVICE), f"compared on {a.device} and {b.device}"
    return True


def compared_all(*results: object, **options: object) -> None:
    """Stands for a comparison of two or three results."""
    first, *others = (tree_leaves(x) for x in results if x is not None)
    for leaves in others:
        for a, b in zip(first, leaves, strict=True):
            compared(a, b)


def address(x: torch.Tensor) -> int:
    """Stands for data_ptr, so that tensors without memory are apart."""
    return (x.untyped_storage()._cdata << 32) + x.storage_offset() * x.element_size()


def make_models_short() -> None:
    """Leaves one layer of every model: the others are like it."""
    whole = next_scale.preset
    next_scale.preset = lambda name, **options: whole(name, **options | {"depth": 1})


def leave_values_out() -> None:
    torch.compile = lambda function=None, **options: function
    torch.equal = compared
    torch.testing.assert_close = compared_all
    closeness.assert_close = compared_all
    torch.Tensor.data_ptr = address
    torch.UntypedStorage.data_ptr = lambda storage: storage._cdata


def fault(call: Callable[[], object]) -> str:
    """Runs a call up to where it asks for values; returns what it did wrong, or ""."""
    try:
        with Elsewhere():
            call()
    except Exception as error:
        text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        return "" if any(word in text for word in NEEDS_VALUES) else text
    return ""


def calls_of(case: Case) -> Iterator[tuple[str, Callable[[], object]]]:
    yield from (("verify", case.verify), ("ours", case.ours))
    yield from ((name, call) for name, call in case.peers.items() if not isinstance(call, Absent))
    yield from case.yardsticks.items()


def probe(cases: CaseSet) -> None:
    generator, number = cases.generate(False), 0
    while number < MOST_CASES and (case := session.next_case(generator, DEVICE)) is not None:
        number += 1
        for name, call in calls_of(case):
            with torch.set_grad_enabled(case.grad):
                wrong = fault(call)
            if wrong:
                print(f"WRONG {cases.name} ({case.shape}), {name}: {wrong}")
    print(f"{cases.name}: {number} cases", flush=True)


def main(names: list[str]) -> None:
    leave_values_out()
    make_models_short()
    for name in names:
        module = f"test_{name}"
        importlib.import_module(module)
        for cases in registry.sets_of(module):
            probe(cases)


if __name__ == "__main__":
    main(sys.argv[1:])
