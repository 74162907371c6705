"""What is built and what would run for each operator."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from videoar_kernels import _C, fallback, library


@dataclass(frozen=True)
class Info:
    """Build, machine and operators; `str()` gives the printed form."""

    build: dict[str, str]
    machine: dict[str, str]
    operators: dict[str, dict[str, str]]  # name -> device -> implementation

    def __str__(self) -> str:
        lines = ["Build"]
        lines += [f"  {key:<20} {value or '-'}" for key, value in self.build.items()]
        lines += ["Machine"]
        lines += [f"  {key:<20} {value}" for key, value in self.machine.items()]
        devices = list(next(iter(self.operators.values())))
        lines += ["Operators" + " " * 23 + "".join(f"{device:<24}" for device in devices)]
        lines += [
            f"  {name:<30}" + "".join(f"{where[device]:<24}" for device in devices)
            for name, where in sorted(self.operators.items())
        ]
        return "\n".join(lines)


def operator_names() -> list[str]:
    """Returns the names of all registered tensor operators."""
    prefix = "videoar_kernels::"
    names = [n.removeprefix(prefix) for n in torch._C._dispatch_get_all_op_names() if n.startswith(prefix)]
    return sorted(n for n in names if n != "cpu_isa")


def info() -> Info:
    """Returns what this installation was built with and what runs on each device."""
    build = {key: str(value) for key, value in _C.build_info().items()}
    cuda = torch.cuda.is_available()
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "cpu isa in use": library.cpu_isa(),
        "cpu isas available": " ".join(library.available_isas()),
        "torch": torch.__version__,
        "triton": "yes" if importlib.util.find_spec("triton") else "no",
        "gpu": torch.cuda.get_device_name() if cuda else "none",
    }
    operators = {}
    for name in operator_names():
        operators[name] = {
            "cpu": _implementation(name, "CPU", f"c++ ({library.cpu_isa()})"),
            "cuda": _implementation(name, "CUDA", "cuda"),
        }
    return Info(build, machine, operators)


def without_kernel(names: Iterable[str], device: str = "cuda") -> list[str]:
    """Returns those of these operators that the reference runs on a device, or nothing does."""
    return [name for name in names if _implementation(name, device.upper(), "compiled") in ("reference", "none")]


def _implementation(name: str, key: str, compiled: str) -> str:
    if name in fallback.registered(key):
        return fallback.registered(key)[name]
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"videoar_kernels::{name}", key):
        return compiled
    return "none"
