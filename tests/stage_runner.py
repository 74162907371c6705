"""Runs commands in stages that have budgets, and keeps what came of them: the machinery of `make gpu-check`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree

from gpu_bars import judged, lines
from python_path import python_path

ROOT = Path(__file__).resolve().parent.parent
GRACE = 15.0  # seconds that a stopped command has to write what it found


@dataclass(frozen=True)
class Command:
    """One process.

    Args:
        arguments: program and arguments.
        environment: variables beside the caller's.
        counts: reads figures from the log's text; None reads none.
        writes: JSON files it leaves, which the report takes in; one that is not there or not JSON is a failure.
        report: JUnit XML that it leaves; a run in which no test passed counts as failed.
        excuse: what the log says where this machine cannot run it: that is told, and is no failure; "" for none.
        rescue: what runs in its place where it fails, for the stages after it; its own stage has failed all the same.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    counts: Callable[[str], dict[str, int]] | None = None
    writes: tuple[Path, ...] = ()
    report: Path | None = None
    excuse: str = ""
    rescue: Command | None = None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Files it leaves."""
        return self.writes if self.report is None else (*self.writes, self.report)


@dataclass(frozen=True)
class Stage:
    """Commands that belong together; the first that fails ends the stage unless they are `apart` or `together`.

    Args:
        name: as STAGES takes it.
        seconds: budget.
        commands: what to run.
        missing: why it cannot run here, or "". Such a stage does not count against the rest.
        together: run the commands side by side; all run to their end.
        apart: run the next command whatever became of the one before.
    """

    name: str
    seconds: float
    commands: tuple[Command, ...]
    missing: str = ""
    together: bool = False
    apart: bool = False


def choose(known: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """The stages of these names in their usual order; all if none are given.

    Raises:
        ValueError: if there is no such stage.
    """
    unknown = [name for name in names if name not in {stage.name for stage in known}]
    if unknown:
        raise ValueError(f"expected stages among {', '.join(s.name for s in known)}, got {', '.join(unknown)}")
    return [stage for stage in known if not names or stage.name in names]


def check(chosen: Sequence[Stage], out: Path, limit: float, facts: dict[str, str]) -> bool:
    """Runs stages, writes the report after each, and returns whether all passed that could run."""
    start, path = time.monotonic(), out / "gpu-check.json"
    path.unlink(missing_ok=True)

    def write(results: Sequence[dict]) -> dict:
        whole = len(results) == len(chosen)
        report = {
            "schema": 1,
            "passed": whole and all(found["state"] in ("passed", "unavailable") for found in results),
            "finished": whole,
            "seconds": round(time.monotonic() - start, 2),
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "device": facts,
            "bars": judged(results),
            "stages": list(results),
        }
        write_json(path, report)
        return report

    write([])
    report = write(run_stages(chosen, out, limit, write))
    for found in report["stages"]:
        reason = found.get("reason", "")
        print(f"  {found['name']:<12} {found['state']:<12} {found['seconds']:6.0f} s  {found['counts'] or ''} {reason}")
    print("\n".join(lines(report["bars"])))
    absent = ", ".join(found["name"] for found in report["stages"] if found["state"] == "unavailable")
    passed = report["passed"]
    verdict = f"all passed{f' but {absent}, which cannot run here' if absent else ''}" if passed else "NOT all passed"
    print(f"gpu-check: {verdict}, in {report['seconds']:.0f} s; {path}")
    return passed


def write_json(path: Path, data: dict) -> None:
    """Writes a file beside its place and moves it there: whoever is stopped meanwhile leaves the one before."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=2) + "\n")
    part.replace(path)


def run_stages(
    chosen: Sequence[Stage], out: Path, limit: float, after: Callable[[Sequence[dict]], object] = lambda _: None
) -> list[dict]:
    """Runs stages in order and returns what became of each; `after` is told what is known after every one."""
    results, saved, end = [], 0.0, time.monotonic() + limit
    for stage in chosen:
        budget = min(stage.seconds + saved, end - time.monotonic())
        print(f"gpu-check: {stage.name}, {max(budget, 0):.0f} s at most", flush=True)
        found = run_stage(stage, out, budget)
        saved = max(0.0, budget - found["seconds"])
        results.append(found)
        print(f"gpu-check: {stage.name} {found['state']} after {found['seconds']:.0f} s {found['counts'] or ''}")
        if found["state"] in ("failed", "timed out"):
            print(
                "".join(
                    f"    {line}\n"
                    for line in (out / f"{stage.name}.log").read_text(errors="replace").splitlines()[-25:]
                )
            )
        after(results)
    return results


def run_stage(stage: Stage, out: Path, budget: float) -> dict:
    """Runs one stage, its output in a log of its name; what an earlier run left of it goes first."""
    found = {"name": stage.name, "state": "passed", "seconds": 0.0, "commands": [], "counts": {}, "results": {}}
    path, start = out / f"{stage.name}.log", time.monotonic()
    for old in (path, *(file for command in stage.commands for file in command.outputs)):
        old.unlink(missing_ok=True)
    if stage.missing:
        return {**found, "state": "unavailable", "reason": stage.missing}

    def run(command: Command, log: Path) -> tuple[int | None, Path]:
        with log.open("w") as file:
            code = run_command(command, file, budget - (time.monotonic() - start))
            if code != 0 and command.rescue is not None:
                file.write(f"failed with {code}; in its place\n")
                file.flush()
                run_command(command.rescue, file, budget - (time.monotonic() - start))
            return code, log

    logs = [out / f"{stage.name}-{index + 1}.log" for index in range(len(stage.commands))]
    with ThreadPoolExecutor(len(stage.commands) if stage.together else 1) as pool:
        # One at a time, the next begins when the one before has been judged.
        runs = (pool.map if stage.together else map)(run, stage.commands, logs)
        for command, (code, log) in zip(stage.commands, runs, strict=True):
            _judge(found, command, code, log)
            if found["state"] != "passed" and not (stage.together or stage.apart):
                break
    written = [log for log in logs if log.is_file()]
    path.write_text("".join(log.read_text(errors="replace") for log in written))
    for log in written:
        log.unlink()
    return {**found, "seconds": round(time.monotonic() - start, 2), "log": path.name}


def _judge(found: dict, command: Command, code: int | None, log: Path) -> None:
    """Adds to what a stage found what came of one of its commands."""
    line = " ".join((*(f"{k}={v}" for k, v in command.environment.items()), *command.arguments))
    found["commands"].append({"command": line, "exit_code": code})
    if code and command.excuse and command.excuse in log.read_text(errors="replace"):
        found["state"], found["reason"] = "unavailable", command.excuse
        return
    counts, wrong = _collect(command, log, found["results"])
    found["counts"] = {key: found["counts"].get(key, 0) + counts.get(key, 0) for key in found["counts"] | counts}
    if command.report is not None and not counts.get("passed"):
        wrong.append("no test passed")
    if code is None or code or wrong:
        found["state"] = "timed out" if code is None else "failed"
        found["reason"] = "; ".join(filter(None, (found.get("reason", ""), *wrong)))


def _collect(command: Command, log: Path, results: dict) -> tuple[dict[str, int], list[str]]:
    """A command's counts, and what of its files is missing or cannot be read; JSON goes into `results`."""
    counts, wrong = command.counts(log.read_text(errors="replace")) if command.counts else {}, []
    for file in command.outputs:
        try:
            if file == command.report:
                counts = junit_counts(file)
            else:
                results[file.stem] = json.loads(file.read_text())
        except FileNotFoundError:
            wrong.append(f"{file.name} was not written")
        except (ValueError, ElementTree.ParseError) as error:
            wrong.append(f"{file.name} is damaged ({error})")
    return counts, wrong


def run_command(command: Command, log: TextIO, seconds: float) -> int | None:
    """Returns the exit code, or None if it had to be stopped."""
    if seconds <= 0:
        log.write("no time left\n")
        return None
    environment = {**os.environ, "PYTHONPATH": python_path(ROOT), "PYTHONUNBUFFERED": "1", **command.environment}
    log.write(f"$ {' '.join(command.arguments)}\n")
    log.flush()
    try:
        process = subprocess.Popen(
            command.arguments, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        log.write(f"{error}\n")
        return 127
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then writes what it has
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            log.write(f"still there {GRACE:.0f} s after it was interrupted\n")
        return None
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen) -> None:
    """Ends what a command left running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def sanitizer_counts(text: str) -> dict[str, int]:
    """Errors and hazards that compute-sanitizer sums up at its end."""
    errors = re.findall(r"ERROR SUMMARY: (\d+) error", text)
    hazards = re.findall(r"RACECHECK SUMMARY: (\d+) hazard", text)
    return {"errors": sum(map(int, errors)), "hazards": sum(map(int, hazards))} if errors or hazards else {}


def junit_counts(path: Path) -> dict[str, int]:
    """Tests that passed, failed and were skipped."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    total, *rest = (sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "failures", "errors", "skipped"))
    return {"passed": total - sum(rest), "failed": rest[0] + rest[1], "skipped": rest[2]}
