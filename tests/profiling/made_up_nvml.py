"""Stands for the module pynvml where there is no GPU."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import ClassVar


class FakeNvml:
    """Power 300 W; energy counts 300 J a second; every second reading is power capped."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    def __init__(self, *missing: str, refuses: bool = False) -> None:
        self.missing, self.refuses, self.asked, self.open = missing, refuses, 0, False

    def __getattr__(self, name: str):
        if name.startswith("nvml") and name in type(self).ANSWERS and name not in self.missing:
            return lambda *arguments: type(self).ANSWERS[name](self, *arguments)
        raise AttributeError(name)

    def start(self) -> None:
        if self.refuses:
            raise self.NVMLError("Driver Not Loaded")
        self.open = True

    def find(self, uuid: str) -> str:
        if uuid != "GPU-1234":
            raise self.NVMLError("Not Found")
        return "handle"

    def reasons(self, handle: str) -> int:
        self.asked += 1
        return 0x4 if self.asked % 2 else 0x0

    def stop(self) -> None:
        self.open = False

    def energy(self, handle: str) -> float:
        return 300e3 * time.perf_counter()

    ANSWERS: ClassVar = {
        "nvmlInit": start,
        "nvmlShutdown": stop,
        "nvmlDeviceGetHandleByUUID": find,
        "nvmlDeviceGetPowerUsage": lambda self, handle: 300_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda self, handle: 700_000,
        "nvmlDeviceGetTotalEnergyConsumption": energy,
        "nvmlDeviceGetUtilizationRates": lambda self, handle: SimpleNamespace(gpu=97, memory=41),
        "nvmlDeviceGetClockInfo": lambda self, handle, kind: {1: 1830, 2: 3201}[kind],
        "nvmlDeviceGetMaxClockInfo": lambda self, handle, kind: {1: 1980, 2: 3201}[kind],
        "nvmlDeviceGetTemperature": lambda self, handle, sensor: 54,
        "nvmlDeviceGetCurrentClocksEventReasons": reasons,
        "nvmlSystemGetDriverVersion": lambda self: "580.1",
    }
