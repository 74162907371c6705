"""What the benchmarks ask for on a GPU: large tensors, limits of a GPU, and sampling as it is delivered."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from types import SimpleNamespace

import clock
import pytest
import torch
from gpu_bars import RowBar, judged, operator_bars
from gpu_check import BENCHMARKS, ROOT
from host_copies import address
from load import Elsewhere
from memory_bound import LEAST_BYTES
from recorded_steps import RecordedSteps
from registry import Arithmetic, Case, sets_of
from results import Floor, Timing, judge

from videoar.next_scale import preset

MEMORY_BOUND = ("bits", "rope", "norm", "kv_cache")


def load(family: str):
    """A benchmark file under a name that no test file has."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{family}", ROOT / f"benchmarks/test_{family}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_memory(monkeypatch):
    """Cases are made of tensors without memory, as if for a GPU; nothing is compiled, nothing runs."""
    monkeypatch.setattr(torch, "compile", lambda function=None, **options: function)
    monkeypatch.setattr(torch.Tensor, "data_ptr", address)  # else all overlap
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("family", MEMORY_BOUND)
def test_ops_that_move_memory_are_held_against_a_copy_on_large_tensors(family, no_memory):
    sets = sets_of(load(family).__name__)
    found = [case for made in sets for case in made.generate(False)]
    assert len(found) >= len(sets) > 0
    for case in found:
        assert case.limit in ("copy", "copy same size") and case.bars["limit"] >= 0.8
        assert case.bytes > LEAST_BYTES and case.bars.get("torch.compile", 1.0) >= 1.0
        assert ("torch.compile" in case.peers) == ("torch.compile" in case.bars)


def test_on_a_cpu_random_draws_are_held_against_its_own_rate(no_memory, monkeypatch):
    """The control of the test above: there the same files ask for something else."""
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cpu"))
    found = {case.op: case.limit for made in sets_of(load("bits").__name__) for case in made.generate(False)}
    assert isinstance(found["flip_bits"], Arithmetic) and isinstance(found["sample_bits"], Arithmetic)
    assert found["pack_bits"] == "copy same size"


def measured(case: Case, family: str, seconds: float = 1e-3) -> dict:
    """A row of a case as its file holds it, ours and all others having taken as long as each other."""
    others = (*case.peers, *case.yardsticks)
    timings = {name: Timing.of([seconds], 1, 0.0) for name in ("ours", *others)}
    row = judge(case, family, timings, {}, {}, Floor("copy", seconds, ""), {}, Elsewhere(None, None))
    return dataclasses.asdict(row)


@pytest.fixture
def gpu_rows(no_memory, monkeypatch) -> list[dict]:
    """Rows of all that a GPU's bars are about, made of the benchmarks' own cases."""
    monkeypatch.setitem(sys.modules, "test_attention", load("attention"))  # a test file of that name may be there
    families = (*BENCHMARKS["attention"], *BENCHMARKS["memory"])
    sets = [(family, made) for family in families for made in sets_of(load(family).__name__)]
    return [measured(case, family) for family, made in sets for case in made.generate(False)]


def test_every_bar_of_an_operator_finds_rows_that_ask_for_it(gpu_rows):
    found = judged([{"results": {"benchmarks-attention": {"rows": gpu_rows}}}])
    for bar, result in zip(operator_bars(), found, strict=False):
        assert isinstance(bar, RowBar) and result["what"] == bar.what and result["value"] is not None, bar.what
        asked = [(row, b["want"]) for row in gpu_rows if bar.rows(row) for b in row["bars"] if b["name"] == bar.name]
        wanted = [row["flops"] / want * 1e-12 if bar.name == "time" else want for row, want in asked]
        assert len(asked) == result["rows"] > 0 and wanted == pytest.approx([bar.bar] * len(asked)), bar.what
    decode = [row["shape"].split()[0] for row in gpu_rows if " queries, 16k keys" in row["shape"]]
    assert decode == ["16", "64", "256"]
    densities = [float(row["shape"].split()[-1]) for row in gpu_rows if "density" in row["shape"]]
    lengths = [int(row["shape"].split(" L ")[1].split()[0]) for row in gpu_rows if "density" in row["shape"]]
    assert min(densities) < 0.25 and 0.5 < max(densities) < 0.6 and min(lengths) > 8000


def test_a_bar_is_met_by_all_of_its_rows_or_by_none(gpu_rows):
    (bar,) = (b for b in operator_bars() if b.what.startswith("rope_3d"))
    rows = [row for row in gpu_rows if bar.rows(row)]
    assert len(rows) > 1
    (limit,) = (b for b in rows[0]["bars"] if b["name"] == "limit")

    def result(**changes) -> dict:
        return bar.judged({"benchmarks-memory": {"rows": [{**rows[0], **changes}, *rows[1:]]}})

    assert result()["met"] is True
    slow = result(bars=[{**limit, "got": 0.7}])
    assert slow["met"] is False and slow["value"] == 0.7 and slow["worst"] == rows[0]["shape"]
    wrong = result(bars=[], wrong="AssertionError: no")
    assert wrong["met"] is False and "AssertionError: no" in wrong["why"] and rows[0]["shape"] in wrong["why"]
    compiled = bar._replace(name="torch.compile")
    lacking = {
        **rows[0],
        "bars": [{**limit, "name": "torch.compile", "got": None}],
        "absent": {"torch.compile": "no g++"},
    }
    half = compiled.judged({"benchmarks-memory": {"rows": [lacking, *rows[1:]]}})
    assert half["met"] is None and half["value"] == 1.0 and "torch.compile is absent: no g++" in half["why"]
    assert bar.judged({}) == {"bar": ">= 0.8 of copy speed", "value": None, "met": None}


def test_sampling_is_timed_as_it_is_delivered(monkeypatch):
    module, run = load("sampling"), RecordedSteps()

    class Kept:
        """As `KeptDecoders` on a GPU."""

        decoder = None

        def get(self, key, device, make):
            self.decoder = self.decoder or make(run)
            return self.decoder

    monkeypatch.setattr(module, "KeptDecoders", Kept)
    monkeypatch.setattr(module, "preset", lambda name, depth: preset("tiny", depth=2))
    (case,) = module.clips(24, torch.float32)
    with torch.no_grad():
        case.verify()
        once = run.replays
        case.ours()
    assert len(run.steps) > 1 and run.replays == once + len(run.steps)


class FakeGpu:
    """Events and a device that runs what is queued at once; the host needs as long as it is told."""

    def __init__(self, monkeypatch, host: float) -> None:
        self.log, self.now = [], 0.0
        self.host = host

        class Event:
            def __init__(event, enable_timing) -> None:
                pass

            def record(event) -> None:
                self.log.append("event")

            def elapsed_time(event, other) -> float:
                return 1.0

        for name, value in {
            "Event": Event,
            "synchronize": lambda: None,
            "_sleep": lambda cycles: self.log.append(cycles),
            "get_device_properties": lambda: SimpleNamespace(L2_cache_size=4),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(clock.torch, "zeros", lambda *sizes, **options: self)

    def sum(self) -> None:
        self.log.append("flush")

    def call(self) -> None:
        self.now += self.host
        self.log.append("call")


def test_the_device_waits_until_the_host_has_queued_a_call(monkeypatch):
    gpu = FakeGpu(monkeypatch, host=100e-6)
    timer, call = clock.CudaClock(), gpu.call
    assert timer.seconds(call, 2) == pytest.approx(2e-3)
    idle = 100e-6 * clock.FASTEST_CLOCK
    sample = ["flush", pytest.approx(2 * idle), "event", "call", "event"]
    assert gpu.log == ["call"] * 3 + 2 * sample
    timer.seconds(call, 1)
    assert gpu.log[13:] == sample, "how long the host needs is found out once"


def test_calls_that_keep_the_host_busy_are_timed_with_their_gaps(monkeypatch):
    gpu = FakeGpu(monkeypatch, host=60e-3)
    clock.CudaClock().seconds(gpu.call, 1)
    assert gpu.log == ["call", "flush", "event", "call", "event"]
