"""Builds the compiled kernels with CMake and ninja; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc" / "cuda"))
from check import ROOT, find_nvcc, known_architectures


def cuda_arguments(torch) -> list[str]:
    """CMake's arguments: CUDA kernels need nvcc and a PyTorch that has CUDA; VIDEOAR_CUDA=0 or 1 decides otherwise."""
    choice, nvcc = os.environ.get("VIDEOAR_CUDA", "auto"), find_nvcc()
    possible = nvcc is not None and torch.version.cuda is not None
    if choice == "1" and not possible:
        raise SystemExit(f"VIDEOAR_CUDA=1, but nvcc: {nvcc}, CUDA of this PyTorch: {torch.version.cuda}")
    if choice == "0" or not possible:
        return ["-DVIDEOAR_CUDA=OFF"]
    # GPUs newer than all of these compile sm_80's PTX for themselves.
    architectures = os.environ.get("VIDEOAR_CUDA_ARCHS") or ";".join(known_architectures(nvcc, ("80", "90a", "100")))
    return ["-DVIDEOAR_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DVIDEOAR_CUDA_ARCHS={architectures}"]


class CMakeBuild(build_ext):
    """Runs CMake once for both libraries."""

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        package = Path("videoar_kernels")
        self.build_into(ROOT / package if in_place else Path(self.build_lib).resolve() / package)

    def build_into(self, output: Path) -> None:
        try:
            import pybind11
            import torch
        except ImportError as error:
            raise SystemExit(
                f"videoar: {error.name} is needed to build; install torch and pybind11 first, then use "
                "`pip install --no-build-isolation -e .`"
            ) from None
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        if sanitize := os.environ.get("VIDEOAR_SANITIZE"):
            # Such a build is for tests only: it stays in its own folder.
            build = build.with_name(f"{build.name}-sanitize")
            output = build / "lib"
        build.mkdir(parents=True, exist_ok=True)
        arguments = [
            f"-DTORCH_DIR={Path(torch.__file__).parent}",
            f"-DTORCH_VERSION={torch.__version__}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DOUTPUT_DIR={output}",
            f"-DVIDEOAR_VERSION={self.distribution.get_version()}",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('VIDEOAR_BUILD_TYPE', 'Release')}",
            f"-DVIDEOAR_CPU_ISAS={os.environ.get('VIDEOAR_CPU_ISAS', 'portable avx2 avx512 avx512_bf16')}",
            f"-DVIDEOAR_SANITIZE={sanitize or ''}",
            *cuda_arguments(torch),
        ]
        # cmake and ninja may live in the virtual environment alone, which need not be activated.
        scripts = sysconfig.get_path("scripts")
        environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}
        # Two builds into one folder would corrupt each other.
        with open(build / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *arguments]
            subprocess.run(configure, check=True, env=environment)
            jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
            # A library for tests (tests/csrc/CMakeLists.txt) instead of the usual one; the planner serves both.
            test_library = os.environ.get("VIDEOAR_TEST_LIBRARY")
            target = ["--target", f"videoar_{test_library}", "_C"] if test_library else []
            subprocess.run(["cmake", "--build", str(build), "-j", jobs, *target], check=True, env=environment)


setup(ext_modules=[Extension("videoar_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
