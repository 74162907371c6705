"""What a figure depends on: processor, memory, system and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

import videoar_kernels
from videoar_kernels import library
from videoar_kernels.report import info

PACKAGES = ("torch", "numpy", "triton", "flash-attn", "liger-kernel", "flashinfer-python", "pytest-benchmark")


def describe(device: str) -> dict[str, str]:
    """Returns the machine as name -> text."""
    build = info().build
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_model(),
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(torch.get_num_threads()),
        "cpu isa": library.cpu_isa(),
        "caches": _caches(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "frequency": _frequency(),
        "huge pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "videoar": f"{build.get('version', '')}{_commit()}",
        "compiler": build.get("compiler", ""),
        "torch config": _torch_config(),
        "inductor compiler": _first_line(os.environ.get("CXX", "g++"), "--version"),
    }
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "absent"
    facts["torch"] = torch.__version__
    return {key: value or "unknown" for key, value in facts.items()}


def cpu_model() -> str:
    """Returns the processor's name; Linux's, with family and model numbers, which virtual machines do not hide."""
    text = _read("/proc/cpuinfo")
    found = {key: re.search(rf"^{key}\s*:\s*(.+)$", text, re.M) for key in ("model name", "cpu family", "model")}
    if not found["model name"]:
        return platform.processor() or platform.machine()
    name = found["model name"].group(1)
    if found["cpu family"] and found["model"]:
        name += f" (family {found['cpu family'].group(1)}, model {found['model'].group(1)})"
    return name


def load_average() -> float:
    """Returns the load average of the last minute."""
    return os.getloadavg()[0]


def _caches() -> str:
    texts = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if kind != "Instruction":
            texts.append(f"L{level} {size}")
    return ", ".join(texts)


def _frequency() -> str:
    folder = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    governor = _read(folder / "scaling_governor")
    if governor:
        return f"governor {governor}, at most {int(_read(folder / 'cpuinfo_max_freq') or 0) / 1e6:.2f} GHz"
    match = re.search(r"^cpu MHz\s*:\s*([\d.]+)", _read("/proc/cpuinfo"), re.M)
    return f"{float(match.group(1)) / 1e3:.2f} GHz as reported, governor not readable" if match else ""


def _commit() -> str:
    root = Path(videoar_kernels.__file__).parent.parent
    commit = _first_line("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    if not commit:
        return ""
    changed = _first_line("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return f" at {commit}{' with local changes' if changed else ''}"


def _torch_config() -> str:
    text = torch.__config__.show()
    found = re.findall(r"(?:Math Kernel Library Version|MKL-DNN|CPU capability usage:|OpenMP)\s*[^\n]*", text)
    return "; ".join(" ".join(line.split()) for line in found)


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout.splitlines() or [""])[0] if done.returncode == 0 else ""


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
