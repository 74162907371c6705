"""Markdown tables like paper U's Tables 2 to 4, from the reports of `videoar evaluate units`.

    python -m videoar.evaluation.unit_table teacher.json frame.json cube.json

Reports of one name are seeds of one row: their mean, and ± their standard deviation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from videoar.evaluation.adherence import ATTRIBUTES
from videoar.evaluation.unit_quality import UnitQuality
from videoar.model_folder import read_json


def unit_table(reports: Sequence[dict], *, first: str = "units") -> str:
    """One row for each name, in the order in which names first occur.

    Args:
        reports: what `videoar evaluate units --report` wrote: `UnitQuality` and a name.
        first: heading of the first column.

    Raises:
        ValueError: no report, or something else.
    """
    if not reports:
        raise ValueError("unit_table: expected at least one report, got none")
    for number, report in enumerate(reports):
        if not isinstance(report, dict) or (missing := sorted({"name", *UnitQuality._fields} - set(report))):
            lacks = f"one without {', '.join(missing)}" if isinstance(report, dict) else type(report).__name__
            raise ValueError(
                f"unit_table: expected reports of `videoar evaluate units`, got {lacks} as number {number + 1}"
            )
    rows: dict[str, list[dict]] = {}
    for report in reports:
        rows.setdefault(report["name"], []).append(report)
    heading = [first, "passes a clip", *ATTRIBUTES, "lowest", "Frechet", "s a clip"]
    lines = [_line(heading), _line(["---", *["---:"] * (len(heading) - 1)])]
    lines += [_line(_row(name, same)) for name, same in rows.items()]
    return "\n".join([*lines, "", *_notes(reports)])


def _row(name: str, reports: Sequence[dict]) -> list[str]:
    right = [[report["adherence"]["right"][attribute] for attribute in ATTRIBUTES] for report in reports]
    return [
        f"{name} ({len(reports)} seeds)" if len(reports) > 1 else name,
        f"{mean(report['passes'] for report in reports):.0f}",
        *(_figure([100 * values[i] for values in right], "%", 1) for i in range(len(ATTRIBUTES))),
        _figure([100 * min(values) for values in right], "%", 1),
        _figure([report["frechet"]["generated"] for report in reports], "", 3),
        _figure([report["seconds"] for report in reports], "", 2),
    ]


def _figure(values: Sequence[float], unit: str, digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}{unit}"


def _notes(reports: Sequence[dict]) -> list[str]:
    """What the figures stand beside: chance, the floors of the distance, and what the time is of."""
    wrong = [[report["adherence"]["wrong_prompt"][name] for report in reports] for name in ATTRIBUTES]
    chance = ", ".join(f"{name} {100 * mean(values):.1f}%" for name, values in zip(ATTRIBUTES, wrong, strict=True))
    floors = [[report["frechet"][name] for report in reports] for name in ("real", "reconstructed")]
    one = reports[0]
    return [
        f"{one['adherence']['clips']} held-out prompts; measured against other prompts: {chance}. "
        f"Frechet distance of {one['frechet']['clips']} clips to {one['frechet']['reference']}: real clips "
        f"{mean(floors[0]):.3f}, reconstructed ones {mean(floors[1]):.3f}. Seconds at batch 1 on "
        f"{one['threads']} thread{'s' if one['threads'] > 1 else ''} ({one['device']}): {one['timed']}."
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Markdown of `videoar evaluate units` reports.")
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--first", default="units", help="heading of the first column")
    given = parser.parse_args()
    try:
        print(unit_table([read_json(path) for path in given.reports], first=given.first))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
