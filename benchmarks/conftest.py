"""`pytest benchmarks`: options, the `compare` fixture, the table at the end and the files on request."""

from __future__ import annotations

from pathlib import Path

import pytest
import report
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from pytest_benchmark.utils import NameWrapper
from registry import CaseSet, sets_of
from results import Row, save
from session import Run, default_path

from videoar.profiling import machine


def pytest_addoption(parser):
    group = parser.getgroup("videoar benchmarks")
    group.addoption("--full", action="store_true", help="every size, three times the samples")
    group.addoption("--rounds", type=int, help="exactly so many samples of everything")
    group.addoption("--seconds", type=float, help="timing per row, about (default 2, with --full 6)")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"))
    group.addoption("--json", type=Path, help="write the run to this file")
    group.addoption("--save", action="store_true", help="write JSON, PNG and HTML to benchmarks/results")
    group.addoption("--save-to", type=Path, help="write JSON to this file, PNG and HTML beside it")
    group.addoption("--fresh-memory", action="store_true", help="leave malloc alone: fresh pages count")


def pytest_sessionstart(session):
    option = session.config.getoption
    if option("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: this PyTorch sees no GPU")
    if option("verbose") < 1:
        session.config._benchmarksession.quiet = True  # pytest-benchmark's own table of every contender: with -v
    here = Path(__file__).parent
    everything = [(session.config.invocation_params.dir / a).resolve() for a in session.config.args] == [here]
    session.config.videoar_run = Run(option, complete=everything and not option("keyword"))


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        sets = sets_of(metafunc.module.__name__)
        metafunc.parametrize("case", sets, ids=[s.name for s in sets])


@pytest.fixture
def compare(request, pytestconfig):
    """Measures every case of a set, one after the other; fails where one of our results is wrong."""
    run: Run = pytestconfig.videoar_run
    family = request.module.__name__.removeprefix("test_")
    plugins = pytestconfig.pluginmanager
    reporter, capture = plugins.getplugin("terminalreporter"), plugins.getplugin("capturemanager")

    def compare(cases: CaseSet) -> None:
        wrong = []
        for row in run.measure(cases, family):
            if path := pytestconfig.getoption("--save-to"):
                save(path, run.json())  # a kernel that takes the process with it leaves what was measured before
            hand_to_pytest_benchmark(request, row)
            with capture.global_and_fixture_disabled():
                reporter.ensure_newline()
                reporter.write_line("  ".join(report.cells(row)))
            if row.wrong:
                wrong.append(f"{row.name}: {row.wrong}")
        if wrong:
            pytest.fail("\n".join(wrong), pytrace=False)

    return compare


def hand_to_pytest_benchmark(request, row: Row) -> None:
    """Adds every contender's samples to pytest-benchmark's session, for its statistics, JSON and comparisons.

    Its own loop would time one contender after the other; the samples come from interleaved rounds instead.
    """
    session = request.config._benchmarksession
    if row.ours is None or session.disabled:
        return
    for name, timing in {"ours": row.ours, **row.peers, **row.yardsticks, **row.limits}.items():
        fixture = BenchmarkFixture(
            request.node,
            add_stats=session.benchmarks.append,
            logger=session.logger,
            warner=request.node.warn,
            disabled=False,
            **{**session.options, "timer": NameWrapper(request.config.videoar_run.clock.seconds)},
        )
        fixture.group, fixture.name, fixture.fullname = row.name, name, f"{request.node.nodeid}::{row.name}::{name}"
        fixture.param = fixture.params = None
        fixture.extra_info = {"bytes": row.bytes, "flops": row.flops}
        stats = fixture._make_stats(timing.iterations)
        for sample in timing.samples:
            stats.update(sample * timing.iterations)


def pytest_terminal_summary(terminalreporter, config):
    run: Run = config.videoar_run
    if not run.rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("VideoAR")
    data = run.json()
    for line in report.heading(data):
        write(line)
    report.print_table(run.rows, write)
    for line in report.remarks(run.rows):
        write(line)
    write(report.summary(run.rows))
    for text in data["warnings"]:
        write(f"WARNING: {text}", yellow=True)
    if path := config.getoption("--json"):
        save(path, data)
        write(f"written: {path}")
    if config.getoption("--save"):
        path = default_path(machine.describe(run.device)["device"])
        for file in run.write(path if run.complete else path.with_stem(f"{path.stem}_partial")):
            write(f"written: {file}")
    if path := config.getoption("--save-to"):
        for file in run.write(path):
            write(f"written: {file}")
