"""The machinery of `make gpu-check` on made-up stages, and that it says so where there is no GPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import pytest
import stage_runner
import torch
from gpu_bars import BARS, judged, lines
from python_path import python_path
from stage_runner import ROOT, Command, Stage, check, choose, run_stages, sanitizer_counts

PASSING = "def test_a(): pass\n\ndef test_b(): pass\n"
MIXED = PASSING + "import pytest\n\ndef test_c(): assert 0\n\n@pytest.mark.skip\ndef test_d(): pass\n"


def python(code: str, **options) -> Command:
    return Command((sys.executable, "-c", code), **options)


def suite(folder: Path, text: str, *arguments: str) -> Command:
    folder.mkdir(exist_ok=True)
    file, report = folder / "test_made_up.py", folder / "made_up.xml"
    file.write_text(text)
    run = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", str(file), *arguments)
    return Command(run, report=report)


def test_a_failing_stage_stops_neither_the_next_nor_the_report(tmp_path):
    stages = [
        Stage("first", 20, (python("print('hello')"), python("import sys; sys.exit(3)"), python("print('unreached')"))),
        Stage("second", 20, (python("import os; print(os.environ['COLOUR'])", environment={"COLOUR": "red"}),)),
    ]
    assert not check(stages, tmp_path, 60, {"device": "made up"})
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert report["passed"] is False and report["device"] == {"device": "made up"}
    first, second = report["stages"]
    assert first["state"] == "failed" and [c["exit_code"] for c in first["commands"]] == [0, 3]
    assert second["state"] == "passed" and "COLOUR=red" in second["commands"][0]["command"]
    assert "hello" in (tmp_path / "first.log").read_text() and "unreached" not in (tmp_path / "first.log").read_text()
    assert (tmp_path / "second.log").read_text().endswith("red\n")
    assert check(stages[1:], tmp_path, 60, {})


def test_tests_are_counted_and_none_passed_is_a_failure(tmp_path):
    (stage,) = run_stages([Stage("tests", 60, (suite(tmp_path, MIXED),))], tmp_path, 60)
    assert stage["counts"] == {"passed": 2, "failed": 1, "skipped": 1} and stage["state"] == "failed"
    (stage,) = run_stages([Stage("tests", 60, (suite(tmp_path, PASSING),))], tmp_path, 60)
    assert stage["counts"] == {"passed": 2, "failed": 0, "skipped": 0} and stage["state"] == "passed"
    skipped = "import pytest\n\n@pytest.mark.skip\ndef test_a(): pass\n"
    (stage,) = run_stages([Stage("tests", 60, (suite(tmp_path, skipped),))], tmp_path, 60)
    assert stage["state"] == "failed" and stage["reason"] == "no test passed"


def test_commands_side_by_side_all_run_and_are_counted_together(tmp_path):
    waits = [python("import time; time.sleep(1)") for _ in range(3)]
    good, bad = suite(tmp_path / "a", PASSING), suite(tmp_path / "b", MIXED)
    (stage,) = run_stages([Stage("both", 60, (bad, good, *waits), together=True)], tmp_path, 60)
    assert stage["state"] == "failed" and stage["counts"] == {"passed": 4, "failed": 1, "skipped": 1}
    assert [command["exit_code"] for command in stage["commands"]] == [1, 0, 0, 0, 0]
    log = (tmp_path / "both.log").read_text()
    assert log.count("test_made_up") >= 2 and not list(tmp_path.glob("both-*.log"))
    late = python(f"import time; time.sleep(30); open({str(tmp_path / 'awaited')!r}, 'w')")
    (stage,) = run_stages([Stage("late", 1, (late,) * 2, together=True)], tmp_path, 60)
    assert stage["state"] == "timed out" and not (tmp_path / "awaited").exists()


def timed(rate: float, seconds: float, *parts: str) -> dict:
    return {"frame_rate": rate, "seconds": {"median": seconds}, "parts": [{"name": part} for part in parts]}


def test_bars_are_judged_by_what_was_measured(tmp_path):
    profiles = {
        "profile_L": {"ours": timed(170, 0.12, "decode"), "bare": None},
        "profile_1.3B": {"ours": timed(21, 3.9, "transformer", "decode"), "bare": timed(31.5, 2.6, "transformer")},
    }
    bars = judged([{"results": {}}, {"results": profiles}])[-4:]
    assert [(bar["value"], bar["met"]) for bar in bars] == [(0.12, False), (None, None), (31.5, True), (21, True)]
    assert lines(bars)[0].endswith("0.12 (<= 0.1 s) MISSED") and "not measured (<= 0.16 s)" in lines(bars)[1]
    absent = {"autoencoder": "not run, because diffusers is not installed"}
    alone = {"profile_1.3B": {"ours": timed(29, 2.8, "transformer"), "bare": None, "subject": absent}}
    bars = judged([{"results": alone}])[-2:]
    assert [(bar["value"], bar["met"]) for bar in bars] == [(29, False), (None, None)]
    assert lines(bars)[1].endswith("not measured (>= 20 frames/s); autoencoder " + absent["autoencoder"])
    check([Stage("none", 5, (python("pass"),))], tmp_path, 60, {})
    unknown = [bar["met"] for bar in json.loads((tmp_path / "gpu-check.json").read_text())["bars"]]
    assert unknown == [None] * len(BARS) and len(BARS) == 22


def test_a_stage_beyond_its_budget_is_interrupted_and_may_still_write(tmp_path):
    written = tmp_path / "found.json"
    code = (
        "try:\n    import time\n    time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    open({str(written)!r}, 'w').write('{{\"rows\": 2}}')\n"
    )
    stages = [Stage("slow", 3, (python(code, writes=(written,)),)), Stage("next", 20, (python("print(1)"),))]
    slow, following = run_stages(stages, tmp_path, 60)
    assert slow["state"] == "timed out" and slow["commands"][0]["exit_code"] is None
    assert slow["results"] == {"found": {"rows": 2}}
    assert following["state"] == "passed"


def test_what_will_not_be_interrupted_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_runner, "GRACE", 0.5)
    note = tmp_path / "child"
    code = (
        "import pathlib, signal, subprocess, sys, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\ntime.sleep(600)\n"
    )
    (stage,) = run_stages([Stage("stubborn", 3, (python(code),))], tmp_path, 60)
    assert stage["state"] == "timed out" and "still there" in (tmp_path / "stubborn.log").read_text()
    while alive(int(note.read_text())):
        time.sleep(0.01)  # dying takes a moment; a child left alive would keep this test from ending


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_time_left_over_goes_to_later_stages_and_the_limit_holds(tmp_path, capsys):
    sleep = "import time; time.sleep({})"
    stages = [Stage("quick", 50, (python("pass"),)), Stage("long", 0.2, (python(sleep.format(1)),))]
    assert [found["state"] for found in run_stages(stages, tmp_path, 60)] == ["passed", "passed"]
    starved = [Stage("all", 30, (python(sleep.format(30)),)), Stage("none", 30, (python("pass"),))]
    assert [found["state"] for found in run_stages(starved, tmp_path, 1.0)] == ["timed out", "timed out"]
    assert "no time left" in (tmp_path / "none.log").read_text()


def test_results_of_an_earlier_run_are_not_taken_for_this_ones(tmp_path):
    written, report = tmp_path / "found.json", tmp_path / "made_up.xml"
    fails = "import sys; sys.exit(3)"
    stages = [
        Stage("measure", 20, (python(fails, writes=(written,)), python("unreached", writes=(tmp_path / "next.json",)))),
        Stage("tests", 20, (python(fails, report=report),)),
        Stage("missing", 20, (python("unreached", writes=(tmp_path / "other.json",)),), missing="no such program"),
    ]
    for stage in stages:
        (tmp_path / f"{stage.name}.log").write_text("old")
        for file in (file for command in stage.commands for file in command.outputs):
            file.write_text("1")
    report.write_text('<testsuites><testsuite tests="9" failures="0" errors="0" skipped="0"/></testsuites>')
    measure, tests, missing = run_stages(stages, tmp_path, 60)
    assert measure["results"] == tests["counts"] == missing["results"] == {}
    assert measure["reason"] == "found.json was not written"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measure.log", "tests.log"]


@pytest.mark.parametrize("text", ["", "[1, "])
def test_half_written_results_fail_their_stage_and_not_the_rest(tmp_path, text):
    written, report = tmp_path / "found.json", tmp_path / "found.xml"
    code = "import pathlib; pathlib.Path({!r}).write_text({!r})"
    stages = [
        Stage("json", 20, (python(code.format(str(written), text), writes=(written,)),)),
        Stage("xml", 20, (python(code.format(str(report), "<testsuites>"), report=report),)),
        Stage("nothing", 20, (python("pass", writes=(tmp_path / "never.json",)),)),
        Stage("whole", 20, (python(code.format(str(written), "[1]"), writes=(written,)),)),
    ]
    found = run_stages(stages, tmp_path, 60)
    assert [stage["state"] for stage in found] == ["failed", "failed", "failed", "passed"]
    assert found[0]["reason"].startswith("found.json is damaged")
    assert found[1]["reason"].startswith("found.xml is damaged")
    assert found[2]["reason"] == "never.json was not written" and found[3]["results"] == {"found": [1]}


def test_what_cannot_run_is_told_and_fails_nothing(tmp_path, capsys):
    assert check([Stage("memcheck", 5, (python("1 / 0"),), missing="no compute-sanitizer")], tmp_path, 60, {})
    said = capsys.readouterr().out
    assert "unavailable" in said and "all passed but memcheck, which cannot run here" in said
    (stage,) = json.loads((tmp_path / "gpu-check.json").read_text())["stages"]
    assert stage["state"] == "unavailable" and stage["reason"] == "no compute-sanitizer" and not stage["commands"]


def test_a_program_that_is_not_there_is_a_failure(tmp_path):
    (stage,) = run_stages([Stage("lost", 5, (Command(("/nowhere/at/all",)),))], tmp_path, 60)
    assert stage["state"] == "failed" and stage["commands"][0]["exit_code"] == 127


def test_summaries_of_the_sanitizer_are_counted():
    assert sanitizer_counts("========= ERROR SUMMARY: 2 errors\n") == {"errors": 2, "hazards": 0}
    text = "========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n"
    assert sanitizer_counts(text) == {"errors": 0, "hazards": 3}
    assert sanitizer_counts("killed") == {}


def stages(out: Path, nvcc: str | None = "/usr/bin/nvcc", sanitizer: str | None = "/usr/bin/sanitizer") -> list[Stage]:
    return gpu_check.stages(out, "90a", nvcc, sanitizer)


def test_stages_are_chosen_by_name_in_their_own_order(tmp_path):
    known = stages(tmp_path)
    assert [stage.name for stage in choose(known, [])] == [
        "build", "tests", "equality", "profile", "memcheck", "racecheck", "benchmarks",
    ]  # fmt: skip
    assert [stage.name for stage in choose(known, ["equality", "build"])] == ["build", "equality"]
    with pytest.raises(ValueError, match=r"expected stages among build, tests, .*, got speed"):
        choose(known, ["speed"])


def test_all_stages_together_fit_into_nine_minutes_with_what_comes_before_and_after(tmp_path):
    seconds = sum(stage.seconds for stage in stages(tmp_path))
    assert gpu_check.DESCRIBING + seconds + stage_runner.GRACE <= gpu_check.LIMIT <= 540


def test_without_nvcc_everything_else_is_still_checked(tmp_path):
    build, *rest = stages(tmp_path, nvcc=None)
    assert build.commands[0].environment["VIDEOAR_CUDA"] == "0" and not build.missing
    assert [(stage.name, stage.missing.split(":")[0]) for stage in rest if stage.missing] == [
        ("cuda", "no nvcc in PATH or CUDA_HOME/bin")
    ]
    build, *rest = stages(tmp_path)
    assert build.commands[0].environment["VIDEOAR_CUDA"] == "1" and "cuda" not in [stage.name for stage in rest]


def test_stages_whose_tools_or_packages_are_missing_say_which(tmp_path, monkeypatch):
    there = gpu_check.importlib.util.find_spec
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: there(name) if name == "pytest" else None)
    missing = {stage.name: stage.missing for stage in stages(tmp_path, sanitizer=None) if stage.missing}
    assert missing.pop("memcheck") == missing.pop("racecheck") == "no compute-sanitizer in PATH or CUDA_HOME/bin"
    assert missing == {
        "models": f"no safetensors in {sys.executable}",
        "profile": f"no typer, rich, safetensors in {sys.executable}",
        "benchmarks": f"no pytest_benchmark, safetensors in {sys.executable}",
    }


def test_gpu_tests_are_found_without_importing_the_rest(tmp_path):
    (stage,) = choose(stages(tmp_path), ["tests"])
    arguments = [argument for command in stage.commands for argument in command.arguments]
    asked = {
        "tests/kernels/test_rope.py",
        "tests/next_scale/test_step_graphs.py",
        "tests/next_unit/test_unit_graphs.py",
    }
    assert asked <= set(arguments) and "tests/kernels/test_backends.py" not in arguments
    files = [argument for argument in arguments if argument.startswith("tests/")]
    assert len(files) == len(set(files)) and stage.together
    *alone, rest = ([a for a in command.arguments if a.startswith("tests/")] for command in stage.commands)
    assert len(alone) == 6 and all(len(group) == 1 and "test_attention" in group[0] for group in alone)
    assert "tests/kernels/test_attention_plan.py" in rest  # alone it would be a run without a test
    assert "tests/next_scale/test_training.py" not in arguments  # needs PyAV, which a GPU machine may lack


def test_every_file_that_a_stage_names_exists(tmp_path):
    commands = [c for stage in stages(tmp_path) for c in stage.commands]
    named = [a.removeprefix("--ignore=") for c in commands for a in c.arguments if "/" in a and str(tmp_path) not in a]
    missing = [name for name in named if not name.startswith((sys.prefix, "/usr/")) and not (ROOT / name).exists()]
    assert missing == [] and "tests/every_op.py" in named and "benchmarks/test_sampling.py" in named


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(shutil.which("make") is None, reason="no make in PATH")
def test_without_a_gpu_it_says_so_and_fails(tmp_path):
    command = ["make", "gpu-check", f"PYTHON={sys.executable}", f"OUT={tmp_path}", "STAGES=build"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "sees no NVIDIA GPU: nothing was checked" in done.stderr
    assert not (tmp_path / "gpu-check.json").exists()


def test_small_shapes_of_every_op_run_on_a_cpu():
    done = subprocess.run(
        [sys.executable, "tests/every_op.py", "cpu"],
        cwd=ROOT, env={**gpu_check.os.environ, "PYTHONPATH": python_path(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results") == 12
