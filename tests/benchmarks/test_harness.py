"""The benchmark harness on made-up cases: what it refuses, in which order it times, and its arithmetic."""

from __future__ import annotations

import json
import re

import page
import plots
import pytest
import readme
import report
import torch
from load import Elsewhere
from measure import Contender, Effort, interleave, measure, plan
from registry import Absent, Arithmetic, Case, Steps
from results import Bar, Row, Timing, floor_of, judge, read, rows_from, save, to_json

from videoar_kernels import library


class FakeClock:
    """Every call takes as long as the table says; what was called is kept in order."""

    name, device = "fake", "cpu"

    def __init__(self, seconds: dict):
        self.table, self.log = seconds, []

    def seconds(self, call, iterations):
        call()
        self.log.append(call)
        return self.table.get(call, 0.1) * iterations


def nothing():
    pass


def case(**changes) -> Case:
    known = dict(op="op", shape="4 x 4", dtype=torch.bfloat16, ours=nothing, verify=nothing)
    return Case(**{**known, **changes})


def timing(seconds: float) -> Timing:
    return Timing.of([seconds] * 5, 1, 0)


def row(**changes) -> Row:
    given = case(peers={"eager": nothing, "torch.compile": nothing}, bytes=1e9, limit="copy", bars={"limit": 0.6})
    timings = {"ours": timing(0.2), "eager": timing(0.8), "torch.compile": timing(0.3), "copy": timing(0.1)}
    made = judge(
        given, "family", timings, {}, {"copy": 1e9}, floor_of(given, {"copy": 1e10}), {}, Elsewhere(None, None)
    )
    return Row(**{**made.__dict__, **changes})


def run_data(rows) -> dict:
    facts = ["device", "cpu", "cores", "threads", "cpu isa", "memory", "caches", "torch", "python", "compiler"]
    machine = {key: f"some {key}" for key in [*facts, "videoar", "system", "date", "frequency"]}
    settings = {
        "complete": True,
        "freed memory kept": True,
        "load average at start": 0.1,
        "load average at end": 0.9,
    }
    rate = {"median": 1e10, "min": 9e9, "max": 1.1e10, "rows": 3}
    limits = {"copy": {**rate, "unit": "B/s"}, "matmul f32": {**rate, "unit": "FLOP/s"}}
    return to_json(rows, machine, settings, limits, ["something else was running"])


def test_wrong_results_are_reported_and_never_timed():
    def verify():
        raise AssertionError("error 3.0e-01, allowed 1.0e-02")

    clock = FakeClock({})
    made = measure(case(verify=verify, peers={"eager": nothing}), "family", clock, Effort())
    assert made.ours is None and not clock.log
    assert "error 3.0e-01" in made.wrong and "WRONG" in report.cells(made)


def test_a_call_that_raises_is_a_wrong_result():
    made = measure(case(ours=lambda: 1 / 0), "family", FakeClock({}), Effort())
    assert "ZeroDivisionError" in made.wrong


def test_rounds_interleave_and_each_begins_with_the_next_contender():
    calls = [lambda i=i: i for i in range(3)]
    clock = FakeClock({})
    contenders = [Contender(str(i), "peer", call, once=1.0, wanted=3) for i, call in enumerate(calls)]
    interleave(contenders, clock)
    assert [call() for call in clock.log] == [0, 1, 2, 1, 2, 0, 2, 0, 1]


def test_slow_contenders_are_sampled_less_often_but_over_all_rounds():
    calls = [lambda i=i: i for i in range(2)]
    clock = FakeClock({})
    wanted = {"fast": 6, "slow": 2}
    interleave([Contender(n, "peer", c, once=1.0, wanted=wanted[n]) for n, c in zip(wanted, calls, strict=True)], clock)
    order = [call() for call in clock.log]
    assert order.count(0) == 6 and order.count(1) == 2
    assert 1 in order[:4] and 1 in order[4:]


def test_short_calls_are_repeated_and_every_contender_gets_its_samples():
    short, long, slow = (Contender("", "peer", nothing, once=t) for t in (1e-6, 0.3, 30.0))
    plan([short, long, slow], Effort(seconds=2.0))
    assert 1000 <= short.iterations <= 1001 and long.iterations == 1
    assert short.wanted == 30 and long.wanted == 5
    assert slow.wanted == 0  # its one sample is the one of the warm-up
    plan([short, long], Effort(rounds=7))
    assert short.wanted == long.wanted == 7


def test_peers_that_cannot_run_are_absent_with_their_reason():
    def flex():
        raise NotImplementedError("no backward on CPU\nlong story")

    made = measure(case(peers={"flex": flex, "cuDNN": Absent("no GPU")}), "family", FakeClock({}), Effort(rounds=2))
    assert made.absent == {"flex": "NotImplementedError: no backward on CPU", "cuDNN": "no GPU"}
    assert made.ratio is None
    assert any("cuDNN absent: no GPU" in line for line in report.details(made))


def test_gradients_are_off_unless_the_case_wants_them():
    seen = []
    for grad in (False, True):
        measure(
            case(ours=lambda: seen.append(torch.is_grad_enabled()), grad=grad), "f", FakeClock({}), Effort(rounds=1)
        )
    assert not any(seen[: len(seen) // 2]) and all(seen[len(seen) // 2 :])


def test_a_case_may_ask_for_an_instruction_set():
    seen, before = [], library.cpu_isa()
    measure(case(ours=lambda: seen.append(library.cpu_isa()), isa="portable"), "f", FakeClock({}), Effort(rounds=1))
    assert set(seen) == {"portable"} and library.cpu_isa() == before


def test_ratio_is_the_best_peers_time_over_ours_and_share_the_floor_over_ours():
    made = row()
    assert made.best_peer == "torch.compile"
    assert made.ratio == pytest.approx(1.5)
    assert made.share == pytest.approx(0.5)  # 1e9 bytes at 1e10 bytes/s take 0.1 s of our 0.2 s
    assert made.bars[0].got == pytest.approx(0.5) and made.bars[0].met is False


def test_floors():
    flops = case(flops=4e9, limit="matmul")
    assert floor_of(flops, {"matmul bf16": 2e9}).seconds == pytest.approx(2.0)
    philox = case(flops=6e9, limit=Arithmetic(lambda: 3e9, "words of Philox"))
    assert floor_of(philox, {}).seconds == pytest.approx(2.0)
    moving = case(flops=6e9, bytes=6e9, limit=Arithmetic(lambda: 3e9, "words of Philox"))
    assert floor_of(moving, {"copy same size": 4e9}).limit == "arithmetic"
    assert floor_of(moving, {"copy same size": 2e9}).limit == "copy same size"
    assert floor_of(moving, {"copy same size": 2e9}).seconds == pytest.approx(3.0)
    steps = case(limit=Steps(((1e9, 1e9), (4e9, 1e9)), "of sampling"))
    assert floor_of(steps, {"copy": 1e9, "matmul f32": 0.5e9}).seconds == pytest.approx(2.0 + 4.0)
    assert floor_of(case(), {}) is None


def test_bars_on_ratio_time_and_time_beyond_a_yardstick():
    bars = {"eager": 5.0, "time": 0.3, "beyond empty op": 0.05, "flex": 2.0}
    given = case(peers={"eager": nothing, "flex": Absent("none")}, yardsticks={"empty op": nothing}, bars=bars)
    timings = {"ours": timing(0.2), "eager": timing(0.8), "empty op": timing(0.1)}
    made = judge(given, "family", timings, {"flex": "none"}, {}, None, {}, Elsewhere(0.0, 0.0))
    assert [bar.met for bar in made.bars] == [False, True, False, None]
    assert made.best_peer == "eager"  # a yardstick is no peer
    texts = [report.bar_text(bar) for bar in made.bars]
    assert texts[0] == "eager 4.00 < 5 MISSED" and texts[3] == "flex >= 2: absent"


def test_bars_on_peak_memory():
    bars = {"memory of eager": 1.0, "memory of flex": 1.0, "memory of torch.compile": 1.0}
    given = case(peers={name.removeprefix("memory of "): nothing for name in bars}, bars=bars)
    timings = {"ours": timing(0.2), "eager": timing(0.8), "flex": timing(0.8)}
    memory = {"ours": 2 << 20, "eager": 3 << 20, "flex": 1 << 20}
    made = judge(given, "family", timings, {}, {}, None, {}, Elsewhere(0.0, 0.0), memory)
    assert [bar.met for bar in made.bars] == [True, False, None]
    assert report.bar_text(made.bars[1]) == "memory of flex 0.50 < 1 MISSED"
    assert "peak memory ours 2 MiB, eager 3 MiB, flex 1 MiB" in report.details(made)


def test_peak_memory_is_that_of_one_call_and_measured_only_where_a_bar_asks():
    def allocate(megabytes):
        first = torch.ones(megabytes << 20, dtype=torch.uint8)
        del first
        return torch.ones(megabytes << 19, dtype=torch.uint8)

    peers = {"eager": lambda: allocate(128)}
    bars = {"memory of eager": 1.0}
    made = measure(case(ours=lambda: allocate(64), peers=peers, bars=bars), "f", FakeClock({}), Effort(rounds=1))
    assert made.memory == {"ours": 64 << 20, "eager": 128 << 20}
    assert not measure(case(peers=peers), "f", FakeClock({}), Effort(rounds=1)).memory


@pytest.mark.parametrize(
    "changes",
    [{"bars": {"egaer": 2.0}}, {"bars": {"memory of eager": 1.0}}, {"bars": {"limit": 0.5}}, {"limit": "memory"}],
)
def test_cases_that_ask_for_the_unknown_are_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        case(**changes)


def test_rows_survive_the_file(tmp_path):
    rows = [row(), Row.wrong_result(case(), "family", "AssertionError"), row(elsewhere=Elsewhere(0.4, 0.0))]
    save(tmp_path / "run.json", run_data(rows))
    assert rows_from(read(tmp_path / "run.json")) == rows
    assert not list(tmp_path.glob("*.part"))


def test_the_file_names_every_figure(tmp_path):
    entry = json.loads(json.dumps(run_data([row()])))["rows"][0]
    for key in ("family", "op", "shape", "dtype", "bytes", "flops", "best_peer", "ratio", "share", "bars", "floor"):
        assert key in entry
    assert set(entry["ours"]) == {"median", "iqr", "min", "samples", "iterations", "faults", "first"}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.json"
    save(path, {"schema": 1})
    with pytest.raises(ValueError):
        save(path, {"share": float("nan")})
    assert read(path) == {"schema": 1} and len(list(tmp_path.iterdir())) == 1


def test_losing_and_noisy_rows_are_printed_like_the_others():
    losing = row(ours=timing(3.0), elsewhere=Elsewhere(0.5, 0.0))
    line = "  ".join(report.cells(losing))
    assert "0.10x" in line and "~3 s" in line
    assert any("0.50 cores" in text for text in report.details(losing))
    assert line.split("  ")[0] in report.plain_table([losing, row()])


def test_the_page_needs_nothing_from_outside():
    html = page.html(run_data([row(), Row.wrong_result(case(), "family", "<b>bad</b>")]))
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", html)
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"https?://|@import|url\(", html)
    assert "<b>bad</b>" not in html and "something else was running" in html


def test_pictures_are_made_where_matplotlib_is(tmp_path):
    pytest.importorskip("matplotlib")
    written = plots.write(run_data([row(flops=1e9), row(ours=timing(3.0))]), tmp_path / "run")
    assert [path.name for path in written] == ["run_roofline.png", "run_limits.png", "run_peers.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_readme_shows_each_ops_worst_row():
    rows = [row(shape="small"), row(shape="large", ours=timing(1.0)), row(op="other")]
    assert [r.shape for r in readme.slowest_rows(rows)] == ["large", "4 x 4"]


def test_tables_are_written_between_their_marks_and_only_there(tmp_path):
    path = tmp_path / "device_2026-01-01.json"
    before = "head\n<!-- benchmarks: rows -->\nold\n<!-- benchmarks: end -->\ntail\n"
    after = readme.fill(before, {path: run_data([row()])})
    assert after.startswith("head\n") and after.endswith("tail\n") and "old" not in after
    assert "| op | 4 x 4 | bf16 | 200 ms ±0% | 300 ms torch.compile | 1.50x | 0.50 copy |" in after
    assert readme.fill(after, {path: run_data([row()])}) == after


def test_calls_are_one_sentence_of_the_summary_and_rows_elsewhere(tmp_path):
    got = (Bar("beyond aten.alias", 3e-6, 2e-6, True), Bar("beyond aten.alias", 3e-6, 5e-6, False))
    rows = [
        row(op=f"call of {name}", shape="tiny", bars=(bar,)) for name, bar in zip("abc", (*got, got[1]), strict=True)
    ]
    runs = {tmp_path / "device_2026-01-01.json": run_data([row(), *rows])}
    summary, full = (readme.tables(kind, runs) for kind in ("summary", "rows"))
    assert "call of" not in summary and "| op | 4 x 4 |" in summary
    assert "2 us to 5 us beyond" in summary and "median 5 us; 1 of 3 within 3 us." in summary
    assert full.count("| call of ") == 3 and "Calls on tiny" not in full


def test_partial_runs_and_older_ones_are_passed_over(tmp_path):
    for name, date, complete in (("a", "2026-01-01", True), ("b", "2026-01-02", True), ("c", "2026-01-03", False)):
        data = run_data([row()])
        data["machine"]["date"], data["settings"]["complete"] = date, complete
        save(tmp_path / f"{name}.json", data)
    assert [path.name for path in readme.newest_runs(tmp_path)] == ["b.json"]


@pytest.mark.parametrize("path", readme.PAGES, ids=lambda path: path.name)
def test_committed_tables_are_those_of_the_committed_runs(path):
    text = path.read_text()
    assert readme.PLACE.search(text), f"{path.name} has no place for a table"
    assert readme.fill(text, readme.newest_runs()) == text, "run `python benchmarks/readme.py`"
