"""Writes the tables of README.md and docs/benchmarks.md from the committed runs: `python benchmarks/readme.py`.

A table stands between `<!-- benchmarks: KIND -->` and `<!-- benchmarks: end -->`; KIND is `summary` (every op's
slowest row against its best peer; calls on tiny tensors as one sentence) or `rows` (every row). Nothing is measured.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import report
from results import Row, read, rows_from, write_atomically

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
CALL = "call of "
PLACE = re.compile(r"(<!-- benchmarks: (\w+) -->\n).*?(<!-- benchmarks: end -->)", re.S)


def newest_runs(folder: Path = RESULTS) -> dict[Path, dict]:
    """Returns the newest complete run of each device."""
    newest: dict[str, tuple[Path, dict]] = {}
    for path in sorted(folder.glob("*.json")):
        data = read(path)
        device = data["machine"]["device"]
        if data["settings"]["complete"] and (
            device not in newest or data["machine"]["date"] >= newest[device][1]["machine"]["date"]
        ):
            newest[device] = (path, data)
    return dict(newest.values())


def fill(page: str, runs: dict[Path, dict]) -> str:
    """Returns a page with its tables written anew."""
    return PLACE.sub(lambda match: match[1] + tables(match[2], runs) + match[3], page)


def tables(kind: str, runs: dict[Path, dict]) -> str:
    """Returns the tables of all runs, each under the machine it is from."""
    if kind not in ("summary", "rows"):
        raise ValueError(f"tables: expected summary or rows, got {kind!r}")
    if not runs:
        return "\nNo run is committed yet.\n\n"
    return "\n" + "\n".join(_run(kind, path, data) for path, data in runs.items())


def _run(kind: str, path: Path, data: dict) -> str:
    rows = rows_from(data)
    lines = [f"{line}<br>" for line in report.heading(data)]
    lines += [f"**{report.summary(rows)}.** [{path.name}](/benchmarks/results/{path.name})", ""]
    lines += [f"> {text}" for text in data["warnings"]] + [""] * bool(data["warnings"])
    shown = slowest_rows(rows) if kind == "summary" else rows
    calls = [row for row in shown if kind == "summary" and row.op.startswith(CALL) and not row.wrong]
    shown = [row for row in shown if row not in calls]
    lines += ["| " + " | ".join(report.HEADER) + " |", "| --- " * len(report.HEADER) + "|"]
    lines += ["| " + " | ".join(_escape(text) for text in report.cells(row)) + " |" for row in shown]
    if kind == "rows":
        lines += ["", *(f"- {_escape(line)}" for line in report.remarks(rows))]
    if calls:
        lines += ["", _calls_text(calls)]
    return "\n".join(lines) + "\n\n"


def slowest_rows(rows: list[Row]) -> list[Row]:
    """Returns of each op the row that looks worst: wrong, else least ratio to its best peer, else least share."""

    def badness(row: Row) -> tuple:
        return (not row.wrong, row.ratio or float("inf"), row.share or float("inf"))

    worst: dict[str, Row] = {}
    for row in rows:
        if row.op not in worst or badness(row) < badness(worst[row.op]):
            worst[row.op] = row
    return list(worst.values())


def _calls_text(calls: list[Row]) -> str:
    """The rows that time a call alone, in one sentence: there are as many as operators."""
    bars = [bar for row in calls for bar in row.bars]
    beyond = sorted(bar.got for bar in bars if bar.got is not None)
    if not beyond:
        return f"Calls on tiny tensors: {len(calls)}, not compared."
    least, middle, most = (report.time_text(value) for value in (beyond[0], statistics.median(beyond), beyond[-1]))
    return (
        f"Calls on tiny tensors: {least} to {most} beyond the least call that PyTorch makes (aten.alias), median "
        f"{middle}; {sum(bar.met is True for bar in bars)} of {len(bars)} within {report.time_text(bars[0].want)}."
    )


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("~", "\\~")


def main() -> None:
    runs = newest_runs()
    for path in PAGES:
        before = path.read_text()
        after = fill(before, runs)
        if after != before:
            write_atomically(path, after)
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
