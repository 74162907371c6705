"""One failure hides no other in `make gpu-check`: commands apart, a second build, a check that is stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from gpu_check import ROOT
from stage_runner import Stage, run_stages, sanitizer_counts

from tests.build.test_gpu_check import alive, python


def test_commands_that_are_apart_all_run(tmp_path):
    commands = (python("print('one')"), python("import sys; sys.exit(3)"), python("print('three')"))
    (stage,) = run_stages([Stage("apart", 20, commands, apart=True)], tmp_path, 60)
    assert stage["state"] == "failed" and [command["exit_code"] for command in stage["commands"]] == [0, 3, 0]
    assert "three" in (tmp_path / "apart.log").read_text()


def test_a_command_that_says_it_cannot_run_here_fails_nothing(tmp_path):
    refused = "import sys; print('Error: Device not supported.'); sys.exit({})"
    excuse = "Device not supported"
    codes = {1: "unavailable", 0: "passed"}
    for code, state in codes.items():
        (stage,) = run_stages([Stage("check", 20, (python(refused.format(code), excuse=excuse),))], tmp_path, 60)
        assert stage["state"] == state and stage.get("reason") == (excuse if code else None)
    (stage,) = run_stages([Stage("check", 20, (python("import sys; sys.exit(1)", excuse=excuse),))], tmp_path, 60)
    assert stage["state"] == "failed"


def test_a_log_that_breaks_off_within_a_letter_is_read_all_the_same(tmp_path):
    code = "import sys; sys.stdout.buffer.write(b'ERROR SUMM' b'ARY: 2 errors \\xe2\\xa0'); sys.exit(3)"
    (stage,) = run_stages([Stage("check", 20, (python(code, counts=sanitizer_counts, excuse="no"),))], tmp_path, 60)
    assert stage["state"] == "failed" and stage["counts"]["errors"] == 2
    assert "2 errors" in (tmp_path / "check.log").read_text()


def test_what_rescues_a_command_runs_for_those_after_it_and_hides_nothing(tmp_path):
    made = tmp_path / "made"
    rescue = python(f"import pathlib; pathlib.Path({str(made)!r}).write_text('without')")
    first = python("import sys; sys.exit(3)", rescue=rescue)
    stages = [Stage("build", 20, (first, python("pass"))), Stage("next", 20, (python("print(1)"),))]
    found = run_stages(stages, tmp_path, 60)
    assert [stage["state"] for stage in found] == ["failed", "passed"] and made.read_text() == "without"
    made.unlink()
    run_stages([Stage("build", 20, (python("pass", rescue=rescue),))], tmp_path, 60)
    assert not made.exists()


def test_a_check_that_is_stopped_has_reported_the_stages_before_and_ends_the_one_that_runs(tmp_path):
    note = tmp_path / "child"
    hangs = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(600)"
    code = (
        "import pathlib, sys; sys.path.insert(0, 'tests')\nimport gpu_check\nfrom stage_runner import Command, Stage\n"
        "gpu_check.why_not = lambda: ''\ngpu_check.describe = dict\ngpu_check.architecture = lambda: '90a'\n"
        "run = lambda code: (Command((sys.executable, '-c', code)),)\n"
        f"gpu_check.stages = lambda *_: [Stage('one', 20, run('pass')), Stage('two', 60, run({hangs!r}))]\n"
        f"gpu_check.main(['--out', {str(tmp_path)!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    end = time.monotonic() + 60
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(30) == 143
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [stage["state"] for stage in report["stages"]] == ["passed"]
    assert report["passed"] is report["finished"] is False
    while alive(int(note.read_text())):
        time.sleep(0.01)
