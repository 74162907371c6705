"""`pytest benchmarks`: options, the `compare` fixture, the table at the end and the files on request."""

from __future__ import annotations

import statistics
from pathlib import Path

import allocator
import machine
import pytest
import report
import torch
from clock import clock_for
from limits import Limits
from measure import Effort, measure
from pytest_benchmark.fixture import BenchmarkFixture
from pytest_benchmark.utils import NameWrapper
from registry import CaseSet, sets_of
from results import Row, save, to_json

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser):
    group = parser.getgroup("videoar benchmarks")
    group.addoption("--full", action="store_true", help="every size, three times the samples")
    group.addoption("--rounds", type=int, help="exactly so many samples of everything")
    group.addoption("--seconds", type=float, help="timing per row, about (default 2, --full 6)")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"))
    group.addoption("--json", type=Path, help="write the run to this file")
    group.addoption("--save", action="store_true", help="write JSON, PNG and HTML to benchmarks/results")
    group.addoption("--fresh-memory", action="store_true", help="leave malloc alone: fresh pages count")


def pytest_sessionstart(session):
    if session.config.getoption("verbose") < 1:
        session.config._benchmarksession.quiet = True  # its own table of every contender: with -v
    session.config.videoar_run = Run(session.config)


class Run:
    """One session: the settings, and the rows so far."""

    def __init__(self, config) -> None:
        option = config.getoption
        self.full, self.device = option("--full"), option("--device")
        self.kept = False if option("--fresh-memory") else allocator.keep_freed_memory()
        seconds = option("--seconds") or (6.0 if self.full else 2.0)
        self.effort = Effort(seconds, most=60 if self.full else 30, rounds=option("--rounds"))
        self.rows: list[Row] = []
        self.load_at_start = machine.load_average()
        self.config = config

    @property
    def settings(self) -> dict:
        return {
            "full": self.full,
            "seconds per row": self.effort.seconds,
            "rounds": self.effort.rounds,
            "freed memory kept": self.kept,
            "load average at start": round(self.load_at_start, 2),
            "load average at end": round(machine.load_average(), 2),
        }

    def limits(self) -> dict[str, dict]:
        """Rates of every limit over the run: their middle and their extremes, per second."""
        rates: dict[str, list[float]] = {}
        for row in self.rows:
            for name, timing in row.limits.items():
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
        texts = []
        for name, rate in self.limits().items():
            if name != "copy same size" and rate["max"] > 1.15 * rate["min"]:
                texts.append(
                    f"the {name} rate moved between {rate['min'] / 1e9:.1f} and {rate['max'] / 1e9:.1f} G{rate['unit']}"
                )
        noisy = sum(report.noisy(row) for row in self.rows)
        if noisy:
            texts.append(f"something else ran beside {noisy} of {len(self.rows)} rows (marked NOISY)")
        if self.load_at_start > 0.5:
            texts.append(f"the load average was {self.load_at_start:.2f} at the start")
        fresh = [row for row in self.rows if row.ours and row.ours.faults * 4096 > 0.05 * row.bytes > 0]
        if fresh:
            texts.append(f"fresh pages in {len(fresh)} rows: {', '.join(row.name for row in fresh[:3])}")
        return texts

    def json(self) -> dict:
        return to_json(self.rows, machine.describe(self.device), self.settings, self.limits(), self.warnings())


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        sets = sets_of(metafunc.module.__name__)
        metafunc.parametrize("case", sets, ids=[s.name for s in sets])


@pytest.fixture
def compare(request, pytestconfig):
    """Measures every case of a set; fails if one of our results is wrong."""
    run: Run = pytestconfig.videoar_run
    family = request.module.__name__.removeprefix("test_")
    plugins = pytestconfig.pluginmanager
    reporter, capture = plugins.getplugin("terminalreporter"), plugins.getplugin("capturemanager")

    def compare(cases: CaseSet) -> None:
        wrong = []
        with torch.device(run.device):
            clock, limits = clock_for(run.device), _limits(run)
            for case in cases.generate(run.full):
                row = measure(case, family, clock, limits, run.effort)
                run.rows.append(row)
                _hand_to_pytest_benchmark(request, row)
                with capture.global_and_fixture_disabled():
                    reporter.write_line("  ".join(report.cells(row)))
                if row.wrong:
                    wrong.append(f"{row.name}: {row.wrong}")
        if wrong:
            pytest.fail("\n".join(wrong), pytrace=False)

    return compare


def _limits(run: Run) -> Limits:
    if not hasattr(run, "_limits"):
        run._limits = Limits(run.device)
    return run._limits


def _hand_to_pytest_benchmark(request, row: Row) -> None:
    """Adds every contender's samples to pytest-benchmark's session, for its own statistics, JSON and comparisons."""
    session = request.config._benchmarksession
    if row.ours is None or session.disabled:
        return
    for name, timing in {"ours": row.ours, **row.peers, **row.yardsticks}.items():
        options = {**session.options, "timer": NameWrapper(clock_for)}
        fixture = BenchmarkFixture(
            request.node,
            add_stats=session.benchmarks.append,
            logger=session.logger,
            warner=request.node.warn,
            disabled=False,
            **options,
        )
        fixture.group, fixture.name, fixture.fullname = row.name, name, f"{request.node.nodeid}::{row.name}::{name}"
        fixture.param = fixture.params = None
        fixture.extra_info = {"bytes": row.bytes, "flops": row.flops, "share of limit": row.share}
        statistics_ = fixture._make_stats(timing.iterations)
        for sample in timing.samples:
            statistics_.update(sample * timing.iterations)


def pytest_terminal_summary(terminalreporter, config):
    run: Run = config.videoar_run
    if not run.rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("VideoAR")
    facts = machine.describe(run.device)
    write(f"{facts['device']}, {facts['threads']} threads, {facts['cpu isa']}; torch {facts['torch']}")
    for name, rate in run.limits().items():
        if name != "copy same size":
            write(
                f"limit {name}: {rate['median'] / 1e9:.1f} G{rate['unit']} "
                f"(from {rate['min'] / 1e9:.1f} to {rate['max'] / 1e9:.1f} over {rate['rows']} rows)"
            )
    report.print_table(run.rows, write)
    for row in run.rows:
        for line in report.remarks(row):
            write(f"{row.name}: {line}")
    write(report.summary(run.rows))
    for text in run.warnings():
        write(f"WARNING: {text}", yellow=True)
    _write_files(run, config, write)


def _write_files(run: Run, config, write) -> None:
    if path := config.getoption("--json"):
        save(path, run.json())
        write(f"written: {path}")
