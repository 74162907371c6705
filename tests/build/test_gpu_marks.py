"""The mark `on_gpu`: which parameters of a test run on a GPU, where each combination of them is compiled anew."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from gpu_check import ROOT

from tests.conftest import runs_on_gpu


def item(mark: tuple | None, **parameters) -> SimpleNamespace:
    found = None if mark is None else SimpleNamespace(args=mark)
    return SimpleNamespace(get_closest_marker=lambda name: found, callspec=SimpleNamespace(params=parameters))


def test_a_mark_names_what_runs():
    assert runs_on_gpu(item(None, isa="cuda"))
    assert runs_on_gpu(item(("a", [1, 2]), a=2)) and not runs_on_gpu(item(("a", [1, 2]), a=3))
    pairs = ("a, b", [(1, "x"), (2, "y")])
    assert runs_on_gpu(item(pairs, a=2, b="y", isa="cuda")) and not runs_on_gpu(item(pairs, a=2, b="x", isa="cuda"))
    with pytest.raises(KeyError):
        runs_on_gpu(item(("c", [1]), a=1))


def test_every_marked_test_still_runs_on_a_gpu_and_all_of_it_on_a_cpu():
    files = sorted((ROOT / "tests" / "kernels").glob("test_attention*.py"))
    marked = {
        name for file in files for name in re.findall(r"on_gpu\([^\n]*\n(?:@[^\n]*\n)*def (\w+)", file.read_text())
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", *map(str, files)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    found = [re.fullmatch(r".*::(\w+)\[(\w+?)-(.*)\]", line) for line in lines]
    here = {isa: [(m[1], m[3]) for m in found if m and m[2] == isa] for isa in ("portable", "cuda")}
    assert len(marked) > 20 and marked == {name for name, _ in here["cuda"]} & marked
    assert set(here["cuda"]) < set(here["portable"])
