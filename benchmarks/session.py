"""One run: its settings, its rows, what must be said about it, and its files."""

from __future__ import annotations

import dataclasses
import gc
import re
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import allocator
import page
import plots
import report
import torch
import torch._functorch.config
from clock import clock_for
from measure import Effort, measure
from registry import Call, Case, CaseSet
from results import Row, save, to_json, write_atomically

from videoar.profiling import machine

RESULTS = Path(__file__).parent / "results"


class Run:
    """The rows so far and what they were measured under."""

    def __init__(self, option, *, complete: bool) -> None:
        self.full, self.device, self.complete = option("--full"), option("--device"), complete
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # rather than fall back to eager silently
        torch._functorch.config.donated_buffer = False  # backward is timed again and again over one forward
        self.kept = False if option("--fresh-memory") else allocator.keep_freed_memory()
        seconds = option("--seconds") or (6.0 if self.full else 1.7)
        self.effort = Effort(seconds, most=60 if self.full else 30, rounds=option("--rounds"))
        self.clock = clock_for(self.device)
        self.rows: list[Row] = []
        self.load_at_start = machine.load_average()

    def measure(self, cases: CaseSet, family: str) -> Iterator[Row]:
        """Yields the row of each case as it is measured."""
        generator = cases.generate(self.full)
        while (case := next_case(generator, self.device)) is not None:
            self.rows.append(measure(case, family, self.clock, self.effort))
            yield self.rows[-1]
            del case
            gc.collect()
            allocator.release()

    @property
    def settings(self) -> dict:
        return {
            "complete": self.complete,
            "full": self.full,
            "seconds per row": self.effort.seconds,
            "rounds": self.effort.rounds,
            "clock": self.clock.name,
            "freed memory kept": self.kept,
            "load average at start": round(self.load_at_start, 2),
            "load average at end": round(machine.load_average(), 2),
        }

    def limits(self) -> dict[str, dict]:
        """Rates of every limit over the run, per second: their middle and their extremes."""
        rates: dict[str, list[float]] = {}
        for row in self.rows:
            for name, timing in row.limits.items():
                if name != "copy same size":  # its sizes differ
                    rates.setdefault(name, []).append(row.works[name] / timing.median)
        return {
            name: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "unit": "FLOP/s" if name.startswith("matmul") else "B/s",
                "rows": len(values),
            }
            for name, values in rates.items()
        }

    def warnings(self) -> list[str]:
        """What casts doubt on the figures."""
        texts = []
        for name, rate in self.limits().items():
            if rate["max"] > 1.15 * rate["min"]:
                low, high = rate["min"] / 1e9, rate["max"] / 1e9
                texts.append(f"the rate of {name} moved between {low:.1f} and {high:.1f} G{rate['unit']}")
        noisy = sum(bool(report.noise(row)) for row in self.rows)
        if noisy:
            texts.append(f"{noisy} of {len(self.rows)} rows are noisy (marked ~)")
        if self.load_at_start > 0.5:
            texts.append(f"the load average was {self.load_at_start:.2f} at the start: something else was running")
        fresh = [row.name for row in self.rows if row.ours and row.ours.faults * 4096 > 0.05 * row.bytes > 0]
        if fresh:
            texts.append(f"fresh memory pages are part of the time of {len(fresh)} rows: {'; '.join(fresh[:3])}")
        if self.device == "cpu" and not self.kept:
            texts.append("freed memory went back to the system: results in fresh memory include page faults")
        return texts

    @cached_property
    def machine(self) -> dict[str, str]:
        return machine.describe(self.device)

    def json(self) -> dict:
        return to_json(self.rows, self.machine, self.settings, self.limits(), self.warnings())

    def write(self, path: Path) -> list[Path]:
        """Writes JSON, and beside it the plots and the page; returns the files."""
        data = self.json()
        save(path, data)
        written = [path, *plots.write(data, path.with_suffix(""))]
        html = path.with_suffix(".html")
        write_atomically(html, page.html(data))
        return [*written, html]


def next_case(generator: Iterator[Case], device: str) -> Case | None:
    """Advances a generator on a device, where what the case verifies with will lie, too; None after the last case.

    What is timed names its devices itself: a default device costs every PyTorch call a microsecond.
    """
    if device == "cpu":
        return next(generator, None)
    with torch.device(device):
        case = next(generator, None)
    return case and dataclasses.replace(case, verify=on_device(case.verify, device))


def on_device(call: Call, device: str) -> Call:
    """Returns a call whose new tensors lie on `device` unless told otherwise."""

    def placed() -> object:
        with torch.device(device):
            return call()

    return placed


def default_path(device_name: str) -> Path:
    """Returns where a run is kept: benchmarks/results/<device>_<date>.json."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return RESULTS / f"{slug}_{datetime.now(UTC):%Y-%m-%d}.json"
