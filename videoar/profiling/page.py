"""A profile as one HTML file that needs nothing else: figures, timelines, tables, and what they include."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from videoar.profiling import drawing
from videoar.profiling.quantities import time_text
from videoar.profiling.result import Profile, Timed
from videoar.profiling.table import PART_HEADER, STEP_HEADER, by_scale, heading, part_cells, remarks, step_cells

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1120px; padding: 0 1em; color: #1c1c1c; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin: 2em 0 .5em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5em 0 1em; }
th, td { text-align: right; padding: .25em .7em; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { background: #f3f4f6; } th:first-child, td:first-child { text-align: left; }
table.facts td { text-align: left; white-space: normal; vertical-align: top; }
svg { width: 100%; height: auto; display: block; } svg text { font: 11px system-ui, sans-serif; fill: #444; }
.figures { display: flex; flex-wrap: wrap; gap: .8em; }
.figures div { background: #f3f4f6; padding: .6em 1em; border-radius: 6px; }
.figures b { display: block; font-size: 1.4em; } .figures span, .quiet { color: #666; font-size: .9em; }
.legend span { margin-right: 1.2em; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; }
.wide { overflow-x: auto; }
"""


def save_page(profile: Profile, path: Path) -> None:
    """Writes the page, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page(profile), encoding="utf-8")
    os.replace(temporary, path)


def page(profile: Profile) -> str:
    """Returns the page."""
    contenders = [timed for timed in (profile.ours, profile.eager) if timed]
    longest = max(timed.seconds.median for timed in contenders)
    first, *rest = heading(profile)
    body = [
        f"<h1>videoar profile: {escape(profile.subject['model'])}</h1>",
        f"<p>{escape(first)}<br>{'<br>'.join(map(escape, rest))}</p>",
        _figures(profile),
        "<h2>Parts of a clip</h2>",
        drawing.shares(contenders),
        *(_parts(timed) for timed in contenders),
        "<h2>Timeline of the clip of median time</h2>",
        *(f"<p>{escape(timed.name)}</p>{drawing.timeline(timed, longest)}" for timed in contenders),
        "<h2>Steps</h2>",
        "<p class=quiet>A column is one (frame, scale), or one pass over a unit, medians; the red line is what the "
        "machine's limits allow.</p>",
        drawing.steps(profile.ours),
        _table(STEP_HEADER, [step_cells(rows) for rows in by_scale(profile.ours)]),
        _gpu(profile),
        "<h2>What the figures include</h2>",
        f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in (*profile.included, *remarks(profile)))}</ul>",
        "<h2>Machine and model</h2>",
        _facts({**profile.subject, **profile.machine}),
    ]
    head = f"<meta charset=utf-8><title>videoar profile: {escape(profile.subject['model'])}</title>"
    return (
        f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _figures(profile: Profile) -> str:
    ours = profile.ours
    figures = [
        (f"{ours.frame_rate:.3g}", "frames/s"),
        (time_text(ours.seconds.median), "a clip, median"),
        (time_text(ours.seconds.p95), f"95th percentile of {ours.seconds.count}"),
        (time_text(ours.first_frame), "until the first unit" if ours.unit else "until the first frame"),
        (f"{ours.token_rate:,.0f}", "tokens/s"),
    ]
    if profile.bare:
        figures.append((f"{profile.bare.frame_rate:.3g}", "frames/s without decoding"))
    if ours.unit:
        figures.append((time_text(ours.unit.median), "a unit, median"))
    if profile.speedup:
        figures.append((f"{profile.speedup:.2f}x", "as fast as eager PyTorch"))
    if profile.gpu and profile.gpu.joules_per_frame is not None:
        figures.append((f"{profile.gpu.joules_per_frame:.3g} J", "a frame"))
    boxes = (f"<div><b>{escape(figure)}</b><span>{escape(what)}</span></div>" for figure, what in figures)
    return f"<div class=figures>{''.join(boxes)}</div>"


def _parts(timed: Timed) -> str:
    cells = [part_cells(part) for part in timed.parts]
    return f"<p>{escape(timed.name)}, transformer in {escape(timed.computes_in)}</p>{_table(PART_HEADER, cells)}"


def _gpu(profile: Profile) -> str:
    if profile.gpu is None or not profile.gpu.readings:
        return ""
    return f"<h2>The GPU's own account</h2>{drawing.readings(profile.gpu)}"


def _table(header: Sequence[str], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def _facts(facts: dict[str, str]) -> str:
    lines = "".join(f"<tr><td>{escape(key)}</td><td>{escape(str(value))}</td></tr>" for key, value in facts.items())
    return f"<table class=facts>{lines}</table>"
