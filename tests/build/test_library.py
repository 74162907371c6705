"""The compiled library: what it may depend on, and that one binary serves every CPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import videoar_kernels
from videoar_kernels import library

PACKAGE = Path(videoar_kernels.__file__).parent
OPERATORS = PACKAGE / "libvideoar_ops.so"
BUILD = PACKAGE.parent / "build" / f"cmake-{sys.implementation.cache_tag}"
BUILT_ISAS = videoar_kernels._C.build_info()["cpu_isas"].split()
# An earlier build with other instruction sets, or of sources that are no more, may have left others.
OBJECTS = [
    path
    for isa in BUILT_ISAS
    for path in sorted(BUILD.glob(f"CMakeFiles/cpu_{isa}.dir/csrc/cpu/*.o"))
    if (PACKAGE.parent / "csrc" / "cpu" / path.stem).exists()
]
# The package is found from any folder, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])}
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")


def _symbols(*arguments: str) -> list[str]:
    return subprocess.run(["nm", *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


@needs_nm
def test_operators_use_only_the_stable_abi_of_pytorch():
    undefined = {line.split()[-1] for line in _symbols("-D", "--undefined-only", str(OPERATORS))}
    unstable = {s for s in undefined if re.match(r"_ZN?K?(2at|3c10|5torch)", s)}
    assert not unstable, f"symbols of PyTorch's unstable C++ interface: {sorted(unstable)}"


@needs_nm
@pytest.mark.skipif(not OBJECTS, reason="no build folder beside the package: the objects are not here to look at")
def test_kernels_share_no_code_between_instruction_sets():
    # The linker keeps one copy of a weak symbol, perhaps the AVX-512 one, which an older CPU then cannot run.
    for path in OBJECTS:
        isa = path.parents[2].name.removeprefix("cpu_").removesuffix(".dir")
        shared = [
            line
            for line in _symbols("-C", "--defined-only", str(path))
            if len(line.split()) > 2
            and line.split()[1] in "WVwv"
            and f"videoar::{isa}::" not in line
            and "DW.ref." not in line
        ]
        assert not shared, f"{path.name} ({isa}): {shared[:5]}"


@pytest.mark.skipif(not OBJECTS, reason="no build folder beside the package")
def test_every_kernel_file_was_built_for_every_instruction_set():
    sources = {p.name for p in (PACKAGE.parent / "csrc" / "cpu").glob("*.cpp")} - {"isa.cpp"}
    for isa in BUILT_ISAS:
        built = {p.name.removesuffix(".o") for p in OBJECTS if p.parents[2].name == f"cpu_{isa}.dir"}
        assert sources <= built, f"{isa}: {sources - built}"


def _run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**ENVIRONMENT, **environment}, cwd="/"
    )


def test_environment_variable_chooses_the_instruction_set():
    done = _run("from videoar_kernels import library; print(library.cpu_isa())", VIDEOAR_ISA="portable")
    assert done.stdout.strip() == "portable", done.stderr


def test_unknown_instruction_set_is_refused_at_import():
    done = _run("import videoar_kernels", VIDEOAR_ISA="sse9")
    assert done.returncode != 0 and "VIDEOAR_ISA='sse9', expected one of" in done.stderr


def test_setting_an_unknown_instruction_set_names_the_known_ones():
    with pytest.raises(ValueError, match=r"expected one of .*portable"):
        library.set_cpu_isa("sse9")


def test_kernels_do_not_import_the_models():
    done = _run("import sys, videoar_kernels; print([m for m in sys.modules if m.split('.')[0] == 'videoar'])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_info_names_an_implementation_of_every_operator_on_every_device():
    info = videoar_kernels.info()
    assert "swiglu" in info.operators
    for name, where in info.operators.items():
        assert where["cpu"].startswith("c++"), f"{name}: no compiled CPU kernel"
        assert where["cuda"] != "none", f"{name}: neither a GPU kernel nor a fallback"
    assert library.cpu_isa() in str(info)


def test_info_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "videoar_kernels.info"],
        capture_output=True,
        text=True,
        cwd="/",
        env=ENVIRONMENT,
        check=True,
    )
    # What a machine makes PyTorch warn of is none of ours.
    assert "swiglu" in done.stdout and "videoar_kernels.info" not in done.stderr


def test_threads_of_kernels_follow_pytorch():
    """Two OpenMP runtimes in one process would each keep threads of their own."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc/self/maps on this system")
    # In a process of its own: tests before this one may have loaded libraries that bring a runtime.
    done = _run(
        "import torch, videoar_kernels as vk; vk.swiglu(*torch.ones(2, 8)); print(open('/proc/self/maps').read())"
    )
    runtimes = {line.split()[-1] for line in done.stdout.splitlines() if re.search(r"lib(gomp|iomp5|omp)\b", line)}
    assert "libvideoar_ops" in done.stdout and len(runtimes) <= 1, (runtimes, done.stderr)
