"""Compiles every CUDA kernel with nvcc for every architecture; fails on warnings and where a kernel exceeds its bounds.

No GPU and no CUDA PyTorch is needed: kernels see no PyTorch header. `make cuda-check` runs this. What compiles is kept
under build/cuda-check until nvcc or a source changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
FLAGS = ("-std=c++20", "-O3", "-cubin", "-Xptxas=-v", "-Werror", "all-warnings")
KEPT = ROOT / "build" / "cuda-check"
# No spills; two blocks of 256 threads fit a multiprocessor's registers, and shared memory needs no opting in.
MOST_REGISTERS, MOST_SHARED = 128, 48 * 1024


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one kernel; sizes in bytes."""

    file: str
    architecture: str
    name: str
    registers: int
    spills: int
    shared: int

    @property
    def fits(self) -> bool:
        return self.spills == 0 and self.registers <= MOST_REGISTERS and self.shared <= MOST_SHARED


def find_nvcc() -> str | None:
    """Returns the path of nvcc: CUDACXX if that is set, else in PATH, else in CUDA_HOME; None where there is none."""
    if chosen := os.environ.get("CUDACXX"):
        return shutil.which(chosen)
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def known_architectures(nvcc: str, wanted: Sequence[str]) -> list[str]:
    """Returns those of `wanted` ("90a", "sm_90a") that this nvcc compiles for: CUDA 12.6 has no Blackwell, say."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    numbers = set(re.findall(r"compute_(\d+)", listed))
    return [name for name in wanted if not numbers or re.search(r"\d+", name).group() in numbers]


def sources() -> list[Path]:
    return sorted(FOLDER.glob("*.cu"))


def compile_kernels(nvcc: str, source: Path, architecture: str) -> list[Kernel]:
    """Compiles one file for one architecture.

    Raises:
        RuntimeError: nvcc failed or warned; the message is its output.
    """
    kept = KEPT / f"{source.stem}-{architecture}-{_fingerprint(nvcc, source)}.json"
    if kept.exists():
        return [Kernel(**values) for values in json.loads(kept.read_text())]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, f"-arch={architecture}", "-o", f"{folder}/out.cubin", str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
    output = result.stdout + result.stderr
    if result.returncode != 0:
        raise RuntimeError(f"{source.name} for {architecture}:\n{output}")
    found = []
    for block in output.split("Compiling entry function ")[1:]:
        # The function's own properties come right after its name; those of functions it calls follow.
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", block)
        shared = re.search(r"(\d+) bytes smem", block)
        registers = int(re.search(r"Used (\d+) registers", block).group(1))
        sizes = (registers, sum(map(int, spills)), int(shared.group(1)) if shared else 0)
        found.append((re.search(r"'(\w+)'", block).group(1), *sizes))
    names = demangled([name for name, *_ in found])
    kernels = [Kernel(source.name, architecture, name, *f[1:]) for name, f in zip(names, found, strict=True)]
    KEPT.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps([asdict(kernel) for kernel in kernels]))
    return kernels


def compile_all(nvcc: str, architecture: str) -> list[Kernel]:
    """Compiles every file for one architecture, as many at once as there are cores."""
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        parts = pool.map(lambda source: compile_kernels(nvcc, source, architecture), sources())
        return [kernel for part in parts for kernel in part]


def _fingerprint(nvcc: str, source: Path) -> str:
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    headers = (path for pattern in ("*.cuh", "*.h", "../*.h", "../cpu/*.h") for path in sorted(FOLDER.glob(pattern)))
    digest = hashlib.sha256((version + " ".join(FLAGS) + Path(__file__).read_text()).encode())
    for path in (source, *headers):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def demangled(names: list[str]) -> list[str]:
    """Returns readable kernel names, or the names themselves without a demangler."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not names:
        return names
    full = subprocess.run([tool, *names], capture_output=True, text=True).stdout.splitlines()
    # Without return type, namespaces and parameters.
    return [re.sub(r"^void |\w+::|\(anonymous namespace\)::|\([^()]*\)$", "", name) for name in full]


def main() -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        print("cuda-check: skipped, no nvcc on this machine")
        return 0
    print(f"{'file':<18} {'arch':<8} {'registers':>9} {'spills B':>9} {'shared B':>9}  kernel")
    large = 0
    architectures = known_architectures(nvcc, ARCHITECTURES)
    for architecture in architectures:
        try:
            kernels = compile_all(nvcc, architecture)
        except RuntimeError as error:
            print(f"cuda-check: failed\n{error}")
            return 1
        for k in kernels:
            large += not k.fits
            print(f"{k.file:<18} {k.architecture:<8} {k.registers:>9} {k.spills:>9} {k.shared:>9}  {k.name}")
    if large:
        print(f"cuda-check: failed, {large} kernels spill or exceed {MOST_REGISTERS} registers or {MOST_SHARED} bytes")
        return 1
    print(f"cuda-check: {len(sources())} files compile for {', '.join(architectures)} without warnings or spills")
    return 0


if __name__ == "__main__":
    sys.exit(main())
