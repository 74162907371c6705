"""`pytest benchmarks --device cuda` makes, verifies and times tensors on the GPU alone: shown without one."""

from __future__ import annotations

import os
import subprocess
import sys

import gpu_check
import limits
import pytest
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


FAMILIES = [family for group in gpu_check.BENCHMARKS.values() for family in group]


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> dict[str, list[str]]:
    """What one probe says of all families, and of a broken one; each process imports PyTorch's compiler anew."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "test_broken.py").write_text(BROKEN)
    paths = python_path(ROOT, ROOT / "tests", ROOT / "benchmarks", folder)
    command = [sys.executable, "tests/benchmarks/device_probe.py", *FAMILIES, "broken"]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    broken = [line for line in said if line.removeprefix("WRONG ").startswith("broken")]
    return {"broken": broken, "families": [line for line in said if line not in broken]}


def test_no_case_makes_or_mixes_in_tensors_of_the_cpu(lines):
    said = lines["families"]
    assert [line for line in said if line.startswith("WRONG") or line.endswith(" 0 cases")] == []
    assert len(said) > len(FAMILIES) == len(set(FAMILIES))


def test_cases_that_do_are_noticed(lines):
    assert [line.split(":")[0] for line in lines["broken"]] == [
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
