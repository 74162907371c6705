"""What host and device share, and the machine that runs CUDA kernels on the CPU, compiled by the C++ compiler alone."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER = shutil.which("c++")
SOURCES = sorted(Path(__file__).parent.glob("test_*.cpp"))


@pytest.mark.skipif(COMPILER is None, reason="no c++ in PATH")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_header(source, tmp_path):
    if source.stem == "test_cuda_on_cpu" and platform.machine() != "x86_64":
        pytest.skip("fibers are written for x86-64")
    program = tmp_path / source.stem
    command = [COMPILER, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, source]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
