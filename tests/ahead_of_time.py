"""Compiles Triton kernels for GPUs that aren't there, and reads what the compiler made."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture."""

    ptx: str
    shared: int  # bytes of shared memory
    registers: int
    stack: int  # bytes of local memory, where registers spill


def compile_kernel(
    kernel: triton.JITFunction,
    types: dict[str, str],
    constants: dict[str, object],
    capability: int,
    *,
    warps: int,
    stages: int = 3,
    aligned: tuple[str, ...] = (),
) -> Compiled:
    """Compiles for a compute capability such as 90.

    Args:
        kernel: the jitted function.
        types: of its arguments, such as "*bf16"; those that are neither here nor constants are "i32".
        constants: its constexpr arguments.
        capability: of the GPU.
        warps, stages: as at a launch.
        aligned: integer arguments that are multiples of 16; pointers are too.
    """
    names = list(inspect.signature(kernel.fn).parameters)
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={
            (names.index(n),): [["tt.divisibility", 16]] for n, t in signature.items() if t[0] == "*" or n in aligned
        },
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = _resources(compiled.asm["cubin"])
    return Compiled(compiled.asm["ptx"], compiled.metadata.shared, registers, stack)


def _resources(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(cubin)
    try:
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    finally:
        os.unlink(file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])
