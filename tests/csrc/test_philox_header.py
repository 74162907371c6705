"""The generator's host and device functions, compiled by the C++ compiler alone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER = shutil.which("c++")


@pytest.mark.skipif(COMPILER is None, reason="no c++ in PATH")
def test_philox_header(tmp_path):
    program = tmp_path / "test_philox"
    source = Path(__file__).with_name("test_philox.cpp")
    subprocess.run([COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
