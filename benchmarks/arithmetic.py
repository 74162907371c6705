"""How fast this machine draws Philox words and sums softplus with nothing else to do: the floor of operators on bits.

A small library is compiled from the kernels' own headers, for the instruction set in use, and run on all threads over
numbers that stay in the first cache.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from videoar_kernels.library import cpu_isa

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
FLAGS = {"portable": [], "avx2": AVX2, "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
COUNT = 1 << 23


@cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which("c++")
    if compiler is None:
        raise RuntimeError("no c++ in PATH to measure the arithmetic floor with")
    isa = cpu_isa()
    options = [
        "-std=c++20",
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wno-psabi",
        "-shared",
        "-fPIC",
        "-fopenmp",
    ]
    names = [f"-DVIDEOAR_ISA={isa}", *(f"-DVIDEOAR_HAS_{name.upper()}" for name in FLAGS)]
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:  # a library that is loaded needs its file no more
        library = Path(folder) / "arithmetic.so"
        subprocess.run([compiler, *options, *FLAGS[isa], *names, "-o", library, source], check=True)
        return ctypes.CDLL(str(library))


def elements_per_second(name: str) -> float:
    """Returns the rate of a function of arithmetic.cpp over all threads, best of five."""
    threads = torch.get_num_threads()
    call = getattr(_library(), name)
    call.argtypes = [ctypes.c_int64]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(call, [COUNT // threads] * threads))
            best = max(best, COUNT / (time.perf_counter() - start))
    return best


def philox() -> float:
    """Returns uniforms drawn per second."""
    return elements_per_second("draw_words")


def softplus() -> float:
    """Returns elements of a cross-entropy per second."""
    return elements_per_second("sum_softplus")


def sigmoid(dtype: torch.dtype) -> float:
    """Returns elements of a cross-entropy's gradient in `dtype` per second."""
    return elements_per_second("share_sigmoid_f32" if dtype == torch.float32 else "share_sigmoid_bf16")
