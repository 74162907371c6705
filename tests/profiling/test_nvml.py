"""The GPU's own account, on a made-up NVML."""

from __future__ import annotations

import sys
import time
from typing import ClassVar

import pytest

from tests.profiling.made_up_nvml import FakeNvml
from videoar.profiling.nvml import GpuMeter, NvmlUnavailable, Reading, Window, meter_for
from videoar.profiling.result import Gpu
from videoar.profiling.table import gpu_text


def watched(nvml: FakeNvml, readings: int = 4) -> Window:
    meter = GpuMeter.of("1234", nvml)
    with meter.watch() as window:
        while len(window.readings) < readings:
            time.sleep(1e-3)
    return window


def test_a_window_holds_power_use_clocks_and_what_held_them_back():
    window = watched(FakeNvml())
    assert len(window.readings) >= 4 and window.seconds >= window.readings[0].seconds > 0
    assert window.mean("watts") == 300 and window.mean("busy") == 97 and window.mean("memory_busy") == 41
    assert window.mean("sm_clock") == 1830 and window.mean("memory_clock") == 3201 and window.mean("temperature") == 54
    assert set(window.shares()) == {"software power cap"} and 0 < window.shares()["software power cap"] < 1
    assert window.energy_from == "the GPU's energy counter"
    assert window.joules == pytest.approx(300 * window.seconds, rel=0.5)


def test_without_an_energy_counter_power_is_summed():
    window = watched(FakeNvml("nvmlDeviceGetTotalEnergyConsumption"))
    assert window.energy_from == "mean power times time" and window.joules == pytest.approx(300 * window.seconds)


def test_what_a_gpu_does_not_tell_stays_unknown():
    answers = [name for name in FakeNvml.ANSWERS if name.startswith("nvmlDeviceGet") and "Handle" not in name]
    nvml = FakeNvml(*answers)
    window = watched(nvml, 1)
    assert window.joules is None and window.mean("watts") is None and window.shares() == {}
    assert window.readings[-1][1:] == (None,) * 7
    assert "unknown" in gpu_text(Gpu(facts=GpuMeter.of("1234", nvml).facts(), seconds=1.0, clips=3))


def test_older_drivers_call_the_reasons_otherwise():
    class Older(FakeNvml):
        ANSWERS: ClassVar = {**FakeNvml.ANSWERS, "nvmlDeviceGetCurrentClocksThrottleReasons": lambda self, handle: 0x40}

    window = watched(Older("nvmlDeviceGetCurrentClocksEventReasons"), 1)
    assert window.shares() == {"hardware thermal slowdown": 1.0}


def test_facts_name_driver_limit_and_clocks():
    nvml = FakeNvml()
    meter = GpuMeter.of("GPU-1234", nvml)
    facts = meter.facts()
    assert facts["driver"] == "580.1" and facts["power limit"] == "700 W"
    assert facts["highest clocks"] == "SM 1980 MHz, memory 3201 MHz"
    meter.close()
    assert not nvml.open


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlUnavailable, match="pip install nvidia-ml-py"):
        GpuMeter.of("1234")


@pytest.mark.parametrize(("uuid", "refuses", "why"), [("1234", True, "Driver Not Loaded"), ("5", False, "Not Found")])
def test_why_nvml_does_not_answer_is_said(uuid, refuses, why):
    with pytest.raises(NvmlUnavailable, match=why):
        GpuMeter.of(uuid, FakeNvml(refuses=refuses))


def test_a_processor_has_no_meter():
    with pytest.raises(NvmlUnavailable, match="not an NVIDIA GPU"):
        meter_for("cpu")


def test_the_sentence_about_a_gpu_names_every_figure():
    gpu = Gpu(
        facts={"power limit": "700 W"}, seconds=2.0, clips=20, busy=97.0, watts=301.4, joules_per_frame=1.77,
        energy_from="the GPU's energy counter", sm_clock=1830.0, memory_clock=3201.0, temperature=54.0,
        held_back={"software power cap": 0.25},
    )  # fmt: skip
    text = gpu_text(gpu)
    for figure in ("20 clips", "97%", "301 W of 700 W", "1.77 J a frame", "1830 MHz", "54 °C", "power cap in 25%"):
        assert figure in text
    assert gpu_text(Gpu(absent="pynvml is missing")) == "No power, clocks or utilisation: pynvml is missing."


def test_means_leave_unknown_readings_out():
    readings = [Reading(0.0, 100.0, *[None] * 6), Reading(0.1, None, *[None] * 6)]
    assert Window(1.0, readings=readings).mean("watts") == 100.0
