"""What a CUDA build is made of, on machines without a GPU: kernels compiled by nvcc, bindings by the C++ compiler."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++")
FAMILIES = ("bits", "bit_entropy", "kv_cache", "norm", "pyramid", "rope")


def load_check():
    spec = importlib.util.spec_from_file_location("cuda_check", ROOT / "csrc" / "cuda" / "check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_check"] = module
    spec.loader.exec_module(module)
    return module


check = load_check()


def cuda_arguments(monkeypatch):
    """setup.py's, with a PyTorch that has CUDA."""
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name in ("CUDACXX", "VIDEOAR_CUDA", "VIDEOAR_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    return runpy.run_path(str(ROOT / "setup.py"))["cuda_arguments"]


def write_nvcc(path: Path, architectures: tuple[int, ...] = (80, 90, 100)) -> Path:
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n" + "".join(f"echo compute_{number}\n" for number in architectures))
    path.chmod(0o755)
    return path


def test_an_nvcc_that_is_not_on_the_path_is_the_one_that_cmake_takes(tmp_path, monkeypatch):
    arguments = cuda_arguments(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "on_path"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert arguments(torch) == ["-DVIDEOAR_CUDA=OFF"]
    for folder in ("bin", "on_path", "chosen"):
        nvcc = write_nvcc(tmp_path / folder / "nvcc")
        if folder == "chosen":
            monkeypatch.setenv("CUDACXX", str(nvcc))
        assert arguments(torch)[:2] == ["-DVIDEOAR_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    monkeypatch.setenv("VIDEOAR_CUDA", "0")
    assert arguments(torch) == ["-DVIDEOAR_CUDA=OFF"]


def test_architectures_that_nvcc_does_not_know_are_left_out(tmp_path, monkeypatch):
    arguments = cuda_arguments(monkeypatch)
    for folder, known, expected in (("new", (80, 90, 100, 120), "80;90a;100"), ("old", (70, 80, 90), "80;90a")):
        nvcc = write_nvcc(tmp_path / folder / "nvcc", known)
        monkeypatch.setenv("CUDACXX", str(nvcc))
        assert arguments(torch)[2] == f"-DVIDEOAR_CUDA_ARCHS={expected}"
        assert check.known_architectures(str(nvcc), check.ARCHITECTURES)[-1] == f"sm_{expected.split(';')[-1]}"
    monkeypatch.setenv("VIDEOAR_CUDA_ARCHS", "120")  # asked for: nvcc may refuse it
    assert arguments(torch)[2] == "-DVIDEOAR_CUDA_ARCHS=120"


requires_nvcc = pytest.mark.skipif(check.find_nvcc() is None, reason="no nvcc on this machine")


@requires_nvcc
@pytest.mark.parametrize("architecture", check.ARCHITECTURES)
def test_kernels_compile_within_their_bounds(architecture):
    if not check.known_architectures(check.find_nvcc(), [architecture]):
        pytest.skip(f"this nvcc does not know {architecture}")
    kernels = check.compile_all(check.find_nvcc(), architecture)
    assert {kernel.file.removesuffix(".cu") for kernel in kernels} >= set(FAMILIES)
    assert [kernel for kernel in kernels if not kernel.fits] == []


SPILLS = """
__global__ void __launch_bounds__(1024, 2) sum_all(const float* x, float* y) {
  float value[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) value[i] = x[threadIdx.x + 1024 * i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) y[threadIdx.x + 1024 * i] = value[i] * value[(i * 37 + 5) % 128];
}
"""


@requires_nvcc
def test_a_kernel_that_spills_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "KEPT", tmp_path / "kept")
    source = tmp_path / "spills.cu"
    source.write_text(SPILLS)
    for _ in range(2):  # the second time from what was kept
        (kernel,) = check.compile_kernels(check.find_nvcc(), source, "sm_90a")
        assert kernel.name.startswith("sum_all") and kernel.spills > 0 and not kernel.fits
    source.write_text(SPILLS + "unknown")
    with pytest.raises(RuntimeError, match=r"spills\.cu for sm_90a"):
        check.compile_kernels(check.find_nvcc(), source, "sm_90a")


@pytest.mark.skipif(COMPILER is None, reason="no c++ in PATH")
@pytest.mark.parametrize("family", FAMILIES)
def test_bindings_compile_for_cuda(family):
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++20", "-fsyntax-only", "-DUSE_CUDA", "-DVIDEOAR_HAS_PORTABLE", "-fvisibility=hidden"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", include]
    done = subprocess.run([COMPILER, *flags, ROOT / f"csrc/binding/{family}.cpp"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
