"""Runs the kernel tests on the CUDA kernels without a GPU: `make cuda-on-cpu`.

A library of its own compiles csrc/cuda as C++ (tests/csrc/cuda_on_cpu.h) and registers these kernels for the CPU, where
the threads of a block are fibers. Before the tests, a size that only the GPU's kernels refuse must be refused:
otherwise the CPU's own kernels would be tested.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = (
    "bits",
    "bits_addresses",
    "bits_calls",
    "bits_entropy",
    "bits_sampling",
    "gated_activation",
    "kv_append",
    "kv_cache",
    "kv_move",
    "launches",
    "norm",
    "outputs",
    "pyramid",
    "rope",
    "rope_calls",
)
# What is about PyTorch rather than kernels, takes fibers many seconds and shows nothing more, or runs the same again.
LEFT_OUT = " and ".join(
    f"not {name}"
    for name in ("graph_break", "opcheck", "gpu", "gradcheck", "outgr", "random_sequences", "avx2", "avx512")
)

CONTROL = """
import torch, videoar_kernels
videoar_kernels.rope_3d(torch.ones(1, 1, 1, 258), torch.zeros(1, 3))
"""


def main() -> int:
    if platform.machine() not in ("x86_64", "AMD64"):
        print("cuda-on-cpu: skipped, fibers are written for x86-64")
        return 0
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(build, cwd=ROOT, env={**os.environ, "VIDEOAR_TEST_LIBRARY": "cuda_on_cpu"}, check=True)
    folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}" / "test_libraries"
    library = folder / "libvideoar_cuda_on_cpu.so"
    environment = {**os.environ, "VIDEOAR_LIBRARY": str(library), "PYTHONPATH": str(ROOT)}
    control = subprocess.run([sys.executable, "-c", CONTROL], cwd=ROOT, env=environment, capture_output=True, text=True)
    if control.returncode == 0 or "at most 256 on a GPU" not in control.stderr:
        print(f"cuda-on-cpu: the CUDA kernels are not at work\n{control.stderr[-2000:]}")
        return 1
    tests = sys.argv[1:] or [f"tests/kernels/test_{name}.py" for name in FAMILIES]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-k", LEFT_OUT, *tests], cwd=ROOT, env=environment
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
