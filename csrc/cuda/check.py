"""Compiles every CUDA kernel with nvcc for every architecture and fails on warnings and register spills.

No GPU and no CUDA PyTorch is needed: kernels see no PyTorch header. `make cuda-check` runs this.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
FLAGS = ("-std=c++20", "-O3", "-cubin", "-Xptxas=-v", "-Werror", "all-warnings", "--expt-relaxed-constexpr")


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one kernel; sizes in bytes."""

    file: str
    architecture: str
    name: str
    registers: int
    spills: int
    shared: int


def find_nvcc() -> str | None:
    """Returns the path of nvcc, or None."""
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def compile_kernels(nvcc: str, source: Path, architecture: str) -> list[Kernel]:
    """Compiles one file for one architecture.

    Raises:
        RuntimeError: nvcc failed or warned; the message is its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, f"-arch={architecture}", "-o", f"{folder}/out.cubin", str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
    output = result.stdout + result.stderr
    if result.returncode != 0:
        raise RuntimeError(f"{source.name} for {architecture}:\n{output}")
    kernels = []
    for block in output.split("Compiling entry function ")[1:]:
        mangled = re.search(r"'(\w+)'", block).group(1)
        # The function's own properties come right after its name; those of functions it calls follow.
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", block)
        shared = re.search(r"(\d+) bytes smem", block)
        registers = int(re.search(r"Used (\d+) registers", block).group(1))
        kernels.append(
            Kernel(
                source.name, architecture, demangled(mangled), registers, sum(map(int, spills)),
                int(shared.group(1)) if shared else 0,
            )
        )  # fmt: skip
    return kernels


def demangled(name: str) -> str:
    """Returns a readable kernel name, or the name itself without a demangler."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        return name
    full = subprocess.run([tool, name], capture_output=True, text=True).stdout.strip()
    # Without return type, namespaces and parameters.
    return re.sub(r"^void |\w+::|\(anonymous namespace\)::|\(.*?Params\)$", "", full)


def main() -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        print("cuda-check: skipped, no nvcc on this machine")
        return 0
    sources = sorted(FOLDER.glob("*.cu"))
    spilling = 0
    print(f"{'file':<16} {'arch':<8} {'registers':>9} {'spills B':>9} {'shared B':>9}  kernel")
    for source in sources:
        for architecture in ARCHITECTURES:
            try:
                kernels = compile_kernels(nvcc, source, architecture)
            except RuntimeError as error:
                print(f"cuda-check: failed\n{error}")
                return 1
            for k in kernels:
                spilling += k.spills > 0
                print(f"{k.file:<16} {k.architecture:<8} {k.registers:>9} {k.spills:>9} {k.shared:>9}  {k.name}")
    if spilling:
        print(f"cuda-check: failed, {spilling} kernels spill registers")
        return 1
    print(f"cuda-check: {len(sources)} files compile for {', '.join(ARCHITECTURES)} without warnings or spills")
    return 0


if __name__ == "__main__":
    sys.exit(main())
