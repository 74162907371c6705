"""`pytest benchmarks --device cuda` makes, verifies and times tensors on the GPU alone: shown without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gpu_check
import limits
import torch
from gpu_check import ROOT
from python_path import python_path

BROKEN = """
import torch
from registry import Case, cases

@cases("broken")
def broken(full):
    x = torch.ones(4)
    yield Case(
        op="op", shape="first", dtype=x.dtype, ours=lambda: x + torch.arange(4), verify=lambda: torch.rand(4) + x,
        peers={"eager": lambda: torch.rand(4) < x, "torch.compile": lambda: torch.rand(4), "sound": lambda: x + 1},
    )
    verify = lambda: torch.equal(torch.ones(3, device="cpu", dtype=torch.int64), torch.arange(3))
    yield Case(op="op", shape="second", dtype=x.dtype, ours=lambda: x.sum().item(), verify=verify)
"""


def probe(*names: str, folder: Path | None = None) -> list[str]:
    paths = [ROOT, ROOT / "tests", ROOT / "benchmarks", *([folder] if folder else [])]
    environment = {**os.environ, "PYTHONPATH": python_path(*paths)}
    command = [sys.executable, "tests/benchmarks/device_probe.py", *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_case_makes_or_mixes_in_tensors_of_the_cpu():
    families = [family for group in gpu_check.BENCHMARKS.values() for family in group]
    lines = probe(*families)
    assert [line for line in lines if line.startswith("WRONG") or line.endswith(" 0 cases")] == []
    assert len(lines) > len(families) == len(set(families))


def test_cases_that_do_are_noticed(tmp_path):
    (tmp_path / "test_broken.py").write_text(BROKEN)
    lines = probe("broken", folder=tmp_path)
    assert [line.split(":")[0] for line in lines] == [
        "WRONG broken (first), ours",
        "WRONG broken (first), eager",
        "WRONG broken (first), torch.compile",
        "WRONG broken (second), verify",
        "broken",
    ]


def test_emulated_products_are_asked_of_the_device_that_cases_are_made_for(monkeypatch):
    monkeypatch.setattr(limits.limits, "emulated", lambda dtype, device: device == "cpu")
    assert limits.emulated(torch.bfloat16) and not limits.emulated(torch.bfloat16, "cuda")
    with torch.device("meta"):  # stands for a GPU
        assert not limits.emulated(torch.bfloat16) and limits.emulated(torch.bfloat16, "cpu")
