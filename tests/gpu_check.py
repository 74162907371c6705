"""Proves the GPU half of this repository in one command: `make gpu-check`.

    make gpu-check OUT=folder [STAGES="build tests"] [LIMIT=540] [PYTHON=python3]

Stages run one after the other, each within its budget of seconds plus what those before it left over; one that fails
does not stop the next. The folder gets `gpu-check.json` (device, versions; per stage command, seconds, exit code,
counts, and the JSON it wrote) and `<stage>.log`. No network. The exit code is 0 only if every stage passed.
Not yet run on a GPU; tests/build/test_gpu_check.py runs its machinery on made-up stages.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "csrc" / "cuda"))
from check import find_nvcc
from stage_runner import GRACE, ROOT, Command, Stage, check, choose, sanitizer_counts

LIMIT = 540.0
DESCRIBING = 10.0  # seconds that importing PyTorch and asking for versions may take
VERSIONS = ("torch", "triton", "numpy", "pytest", "pytest-benchmark", "nvidia-ml-py", "cmake", "ninja")
# In this order: should time run short, what the bars ask for has been measured. A process each, for a kernel that goes
# astray takes its process's GPU with it.
BENCHMARKS = {
    "attention": ("attention_gpu",),
    "memory": ("rope", "norm", "bits", "kv_cache"),
    "rest": ("sampling", "pyramid", "attention", "attention_decode", "attention_backward", "training"),
}
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}


def stages(out: Path, architecture: str, nvcc: str | None, sanitizer: str | None) -> list[Stage]:
    """The stages of a GPU of CUDA architecture `architecture`, such as 90a."""
    python = sys.executable
    tests = (python, "-m", "pytest", "-p", "no:cacheprovider", "--durations=15")
    backends = "tests/kernels/test_backends.py"

    def pytest(name: str, *arguments: str) -> Command:
        report = out / f"{name}.xml"
        return Command((*tests, "-m", "gpu", f"--junitxml={report}", *arguments), report=report)

    def sanitize(tool: str) -> Stage:
        # The allocator would otherwise hide what lies beyond a tensor inside one large block.
        settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command = Command(
            (sanitizer or "", "--tool", tool, "--error-exitcode", "99", python, "tests/every_op.py", "cuda"),
            settings,
            sanitizer_counts,
            excuse="Device not supported",  # as where a sandbox stands between it and the driver
        )
        missing = "" if sanitizer else "no compute-sanitizer in PATH or CUDA_HOME/bin"
        compiled = Command((python, "tests/every_op.py", "cuda"))  # Triton keeps what it compiles
        return Stage(tool, 45, (compiled, command), missing)

    def profile(name: str, *options: str) -> Command:
        written = out / f"profile_{name}.json"
        run = (python, "-c", "from videoar.cli import app; app()", "profile", "--preset", name, "--device", "cuda")
        page = str(written.with_suffix(".html"))
        return Command((*run, *options, "--json", str(written), "--html", page), writes=(written,))

    units = ("--shape", "81x480x832", "--units", "cube(2, 2, 2)", "--steps", "4", "--rounds", "2")
    no_models = lacking("safetensors")
    tested = gpu_tests("kernels", "profiling", *([] if no_models else ["next_scale", "next_unit"]))
    shards = [pytest(f"tests-{number}", *files) for number, files in enumerate(sharded(tested, backends), 1)]

    making = (python, "setup.py", "--quiet", "build_ext", "--inplace")
    build = {"VIDEOAR_CUDA": "1" if nvcc else "0", "VIDEOAR_CUDA_ARCHS": architecture}
    no_kernels = "" if nvcc else "no nvcc in PATH or CUDA_HOME/bin: the CUDA C++ kernels are not built"

    def benchmark(name: str, families: Sequence[str]) -> Command:
        written = out / f"benchmarks-{name}.json"
        files = [f"benchmarks/test_{family}.py" for family in families]
        run = (python, "-m", "pytest", "-p", "no:cacheprovider", "--device", "cuda", "--seconds", "1")
        return Command((*run, "--save-to", str(written), *files), writes=(written,))

    return [
        Stage(
            "build",
            100,
            (
                # Triton's kernels, among them all of attention, can be measured without those of nvcc.
                Command(making, build, rescue=Command(making, {**build, "VIDEOAR_CUDA": "0"})),
                Command((python, "-m", "videoar_kernels.info")),
            ),
        ),
        *([Stage("cuda", 0, (), no_kernels)] if no_kernels else []),
        # Side by side, for most of their time goes into compiling Triton's kernels on one core.
        Stage("tests", 105, tuple(shards), lacking("pytest"), together=True),
        *([Stage("models", 0, (), no_models)] if no_models else []),
        Stage("equality", 20, (pytest("equality", backends),), lacking("pytest")),
        Stage(
            "profile",
            120,
            (profile("L", "--compare", "eager"), profile("XL", "--compare", "eager"), profile("1.3B", *units)),
            lacking("typer", "rich", "safetensors"),
            apart=True,
        ),
        sanitize("memcheck"),
        sanitize("racecheck"),
        Stage(
            "benchmarks",
            80,
            tuple(benchmark(name, families) for name, families in BENCHMARKS.items()),
            lacking("pytest", "pytest_benchmark", "safetensors"),
            apart=True,
        ),
    ]


def lacking(*modules: str) -> str:
    """Returns which of the modules this Python lacks, or ""."""
    names = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"no {', '.join(names)} in {sys.executable}" if names else ""


def sharded(files: Sequence[str], apart: str) -> list[list[str]]:
    """Files without `apart` in groups: each of attention's that waits for the compiler, and all else."""
    compiles = re.compile(r"mark\.gpu|\bisa\b")
    attention = [file for file in files if "test_attention" in file and compiles.search((ROOT / file).read_text())]
    rest = [file for file in files if file not in attention and file != apart]
    return [*([file] for file in attention), *([rest] if rest else [])]


def gpu_tests(*names: str) -> list[str]:
    """Returns the files in folders of tests/ with tests for a GPU; the others may import what this machine lacks."""
    folders = (ROOT / "tests" / name for name in names)
    files = (file for folder in folders for file in sorted(folder.glob("test_*.py")))
    asks = re.compile(r"mark\.gpu|[\"']cuda[\"']|\bisa\b")  # the fixture `isa` offers the GPU, too
    return [str(f.relative_to(ROOT)) for f in files if asks.search(f.read_text())]


def describe() -> dict[str, str]:
    """Device, driver and versions."""
    import torch

    properties = torch.cuda.get_device_properties()
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    facts = {
        "device": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "driver": _output(*query).splitlines()[0] if _output(*query) else "unknown",
        "cuda of torch": str(torch.version.cuda),
        "nvcc": (re.findall(r"release [^\n]+", _output(find_nvcc() or "nvcc", "--version")) or ["absent"])[0],
        "compute-sanitizer": find_sanitizer() or "absent",
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD") or "unknown",
        "local changes": "yes" if _output("git", "-C", str(ROOT), "status", "--porcelain", "-uno") else "no",
    }
    for name in VERSIONS:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "absent"
    return {**facts, "torch": torch.__version__}


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def find_sanitizer() -> str | None:
    """Returns the path of compute-sanitizer, if there is one."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    places = [home / "bin/compute-sanitizer", home / "compute-sanitizer/compute-sanitizer"]
    return shutil.which("compute-sanitizer") or next((str(path) for path in places if path.is_file()), None)


def architecture() -> str:
    """Returns what nvcc calls this GPU: with the features of its own generation from Hopper on."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}{'a' if (major, minor) == (9, 0) else ''}"


def why_not() -> str:
    """Returns why nothing can run here, or ""."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no PyTorch; choose another with PYTHON=..."
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} of {sys.executable} sees no NVIDIA GPU: nothing was checked"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="*", help="which ones; all if none are named")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all of them")
    options, start = parser.parse_args(arguments), time.monotonic()
    if reason := why_not():
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stage that runs is ended, too
    for variable, folder in CACHES.items():  # shared by the stages, and not in a home that may be read-only
        os.environ.setdefault(variable, str(ROOT / "build" / folder))
    try:
        chosen = choose(stages(out, architecture(), find_nvcc(), find_sanitizer()), options.stages)
    except ValueError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    facts = describe()
    left = options.limit - GRACE - (time.monotonic() - start)
    return 0 if check(chosen, out, left, facts) else 1


if __name__ == "__main__":
    sys.exit(main())
