"""What the benchmarks ask for on a GPU: large tensors, limits of a GPU, and sampling as it is delivered."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import clock
import pytest
import torch
from gpu_check import ROOT
from memory_bound import LEAST_BYTES
from recorded_steps import RecordedSteps
from registry import Arithmetic, sets_of

from videoar.next_scale import preset

MEMORY_BOUND = ("bits", "rope", "norm", "kv_cache")


def load(family: str):
    """A benchmark file under a name that no test file has."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{family}", ROOT / f"benchmarks/test_{family}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def address(x: torch.Tensor) -> int:
    """Stands for data_ptr, so that tensors without memory are apart."""
    return (x.untyped_storage()._cdata << 32) + x.storage_offset() * x.element_size()


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
        monkeypatch.setattr(clock.torch, "empty", lambda *sizes, **options: self)

    def zero_(self) -> None:
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
