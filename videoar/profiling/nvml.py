"""What an NVIDIA GPU says of itself while clips are made: utilisation, power, energy, clocks, what held them back.

Read through NVML (nvidia-ml-py, optional), in a window of its own, so that the thread that reads disturbs no timing.
Not yet run on a GPU; the tests hand in a made-up NVML.
"""

from __future__ import annotations

import importlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import NamedTuple

import torch

PERIOD = 0.02  # seconds between readings; the driver renews power about as often

# Bits of NVML's clocks event reasons (nvml.h).
REASONS = {
    0x1: "GPU idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}


class NvmlUnavailable(Exception):
    """Why nothing can be read."""


class Reading(NamedTuple):
    """One look; None where the GPU doesn't say. Watts, percent, MHz, degrees Celsius, a set of bits."""

    seconds: float
    watts: float | None
    busy: float | None
    memory_busy: float | None
    sm_clock: float | None
    memory_clock: float | None
    temperature: float | None
    reasons: int | None


@dataclass
class Window:
    """A stretch of time that was watched."""

    seconds: float = 0.0
    joules: float | None = None
    energy_from: str = ""
    readings: list[Reading] = field(default_factory=list)

    def mean(self, name: str) -> float | None:
        """Mean of one field over the readings that have it."""
        values = [value for reading in self.readings if (value := getattr(reading, name)) is not None]
        return statistics.fmean(values) if values else None

    def shares(self) -> dict[str, float]:
        """Share of the readings in which each reason held the clocks back."""
        known = [reading.reasons for reading in self.readings if reading.reasons is not None]
        counts = {text: sum(bool(bits & bit) for bits in known) for bit, text in REASONS.items()}
        return {text: count / len(known) for text, count in counts.items() if count}


class GpuMeter:
    """Reads one GPU.

    Args:
        nvml: the module pynvml, or what stands for it.
        handle: NVML's handle of the GPU.
    """

    def __init__(self, nvml: ModuleType, handle: object) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def of(cls, uuid: str, nvml: ModuleType | None = None) -> GpuMeter:
        """The meter of the GPU with a UUID as PyTorch gives it, which CUDA_VISIBLE_DEVICES does not renumber.

        Raises:
            NvmlUnavailable: if nvidia-ml-py is not installed, or NVML doesn't answer.
        """
        if nvml is None:
            try:
                nvml = importlib.import_module("pynvml")
            except ImportError:
                raise NvmlUnavailable("pynvml is missing: pip install nvidia-ml-py") from None
        try:
            nvml.nvmlInit()
            return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"))
        except nvml.NVMLError as error:
            raise NvmlUnavailable(f"NVML does not answer: {error}") from None

    def facts(self) -> dict[str, str]:
        """Driver, power limit and highest clocks."""
        nvml, handle = self._nvml, self._handle
        watts = self._ask("nvmlDeviceGetEnforcedPowerLimit", handle)
        clocks = [self._ask("nvmlDeviceGetMaxClockInfo", handle, kind) for kind in self._clock_kinds()]
        driver = self._ask("nvmlSystemGetDriverVersion")
        return {
            "driver": driver.decode() if isinstance(driver, bytes) else str(driver or "unknown"),
            "power limit": f"{watts / 1e3:.0f} W" if watts else "unknown",
            "highest clocks": ", ".join(
                f"{name} {mhz} MHz" for name, mhz in zip(("SM", "memory"), clocks, strict=True) if mhz
            ),
            "nvml": getattr(nvml, "__name__", "pynvml"),
        }

    def read(self, since: float) -> Reading:
        """One look at everything, `since` being when the window began."""
        handle = self._handle
        watts = self._ask("nvmlDeviceGetPowerUsage", handle)
        busy = self._ask("nvmlDeviceGetUtilizationRates", handle)
        sm, memory = (self._ask("nvmlDeviceGetClockInfo", handle, kind) for kind in self._clock_kinds())
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:  # its name before driver 535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return Reading(
            time.perf_counter() - since,
            None if watts is None else watts / 1e3,
            None if busy is None else busy.gpu,
            None if busy is None else busy.memory,
            sm,
            memory,
            self._ask("nvmlDeviceGetTemperature", handle, 0),
            reasons,
        )

    @contextmanager
    def watch(self) -> Iterator[Window]:
        """Reads every `PERIOD` until the block ends; the window is complete then."""
        window, done, start = Window(), threading.Event(), time.perf_counter()

        def follow() -> None:
            while not done.wait(PERIOD):
                window.readings.append(self.read(start))

        before = self._energy()
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield window
        finally:
            done.set()
            thread.join()
            window.readings.append(self.read(start))
            window.seconds = time.perf_counter() - start
            self._count_energy(window, before)

    def close(self) -> None:
        """Lets NVML go."""
        self._ask("nvmlShutdown")

    def _count_energy(self, window: Window, before: float | None) -> None:
        after, watts = self._energy(), window.mean("watts")
        if before is not None and after is not None:
            window.joules, window.energy_from = after - before, "the GPU's energy counter"
        elif watts is not None:
            window.joules, window.energy_from = watts * window.seconds, "mean power times time"

    def _energy(self) -> float | None:
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption", self._handle)
        return None if millijoules is None else millijoules / 1e3

    def _ask(self, name: str, *arguments: object) -> object:
        """Returns an answer, or None where this GPU, driver or version of NVML has none."""
        function: Callable | None = getattr(self._nvml, name, None)
        if function is None:
            return None
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None

    def _clock_kinds(self) -> tuple[int, int]:
        return self._nvml.NVML_CLOCK_SM, self._nvml.NVML_CLOCK_MEM


def meter_for(device: str) -> GpuMeter:
    """The meter of PyTorch's current GPU.

    Raises:
        NvmlUnavailable: if there is none or NVML can't be reached.
    """
    if device != "cuda":
        raise NvmlUnavailable("not an NVIDIA GPU")
    return GpuMeter.of(str(torch.cuda.get_device_properties().uuid))
