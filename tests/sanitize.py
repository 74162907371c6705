"""Runs the kernel tests on a library built with AddressSanitizer and UBSan: `make sanitize`.

Every instruction set is in it, the AVX-512 ones emulated. The build has a folder of its own; a copy of the package
beside it, made of links, loads it and the sanitized planner. Before the tests, a poisoned tensor must be noticed:
otherwise the sanitizers are not at work and a clean run would mean nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-sanitize"
PACKAGE = BUILD / "package"
REPORTS = BUILD / "reports"
# Compilers and subprocesses would run sanitized too, for minutes, and show nothing about the kernels.
LEFT_OUT = "not graph_break and not opcheck and not gpu"

CONTROL = """
import ctypes, sys, torch, videoar_kernels
from videoar_kernels import _C, library
for file in (library._path, _C.__file__):
    assert str(file).startswith(sys.argv[1]), f"{file} was loaded instead of the sanitized one"
    assert b"__ubsan_handle" in open(file, "rb").read(), f"{file} was built without UBSan"
x = torch.ones(4096)
ctypes.CDLL(None).__asan_poison_memory_region(ctypes.c_void_p(x.data_ptr() + 4096), ctypes.c_size_t(64))
for isa in library.available_isas():
    library.set_cpu_isa(isa)
    if isa == sys.argv[2]:
        videoar_kernels.swiglu(x, x)
"""


def build() -> None:
    """Builds into a folder of its own and links the Python files beside the libraries."""
    wanted = {"VIDEOAR_SANITIZE": "address,undefined", "VIDEOAR_TEST_LIBRARY": "emulated", "VIDEOAR_CUDA": "0"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **wanted}, check=True)
    for source in (ROOT / "videoar_kernels").rglob("*.py"):
        _link(PACKAGE / source.relative_to(ROOT), source)
    for planner in (BUILD / "lib").glob("_C*.so"):
        _link(PACKAGE / "videoar_kernels" / planner.name, planner)
    _link(PACKAGE / "videoar_kernels" / "libvideoar_ops.so", BUILD / "test_libraries" / "libvideoar_emulated.so")


def _link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def environment() -> dict[str, str]:
    """Returns what loads the sanitizers before everything else, and the sanitized package before any other."""
    compiler = os.environ.get("CXX", "g++")
    runtimes = [
        subprocess.run([compiler, f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True).stdout
        for name in ("asan", "ubsan")
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(text.strip() for text in runtimes),
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={REPORTS}/asan",  # Python and PyTorch leak at exit
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={REPORTS}/ubsan",
        "PYTHONPATH": f"{PACKAGE}:{ROOT}",
        "PYTHONSAFEPATH": "1",  # the working directory holds the other library
        "VIDEOAR_LIBRARY": "",
    }


def require_sanitizers(env: dict[str, str]) -> None:
    """Fails unless reading poisoned memory is noticed in the kernels of every instruction set."""
    for isa in ("portable", "avx2", "avx512", "avx512_bf16", "none"):
        command = [sys.executable, "-c", CONTROL, str(BUILD), isa]
        done = subprocess.run(command, env={**env, "ASAN_OPTIONS": "detect_leaks=0"}, capture_output=True, text=True)
        noticed = done.returncode != 0 and "use-after-poison" in done.stderr and f"videoar::{isa}::" in done.stderr
        if noticed != (isa != "none") or (isa == "none" and done.returncode != 0):
            raise SystemExit(f"sanitize: the sanitizers do not watch the kernels ({isa}):\n{done.stderr[-2000:]}")
    print("poisoned memory is noticed in the kernels of every instruction set")


def main() -> None:
    build()
    env = environment()
    require_sanitizers(env)
    REPORTS.mkdir(exist_ok=True)
    for old in REPORTS.iterdir():
        old.unlink()
    tests = sys.argv[1:] or ["tests/kernels"]
    done = subprocess.run([sys.executable, "-m", "pytest", "-k", LEFT_OUT, *tests], cwd=ROOT, env=env)
    reports = sorted(REPORTS.iterdir())
    for path in reports:
        print(f"--- {path.name}\n{path.read_text()[:6000]}")
    print(f"sanitize: {len(reports)} reports" if reports else "sanitize: no reports")
    sys.exit(done.returncode or bool(reports))


if __name__ == "__main__":
    main()
