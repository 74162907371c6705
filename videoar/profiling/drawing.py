"""Pictures of a profile as SVG text: no script, no font, nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from html import escape

from videoar.profiling.quantities import time_text
from videoar.profiling.result import BETWEEN, Gpu, StepRow, Timed

COLOURS = {
    "text": "#7b5ea7",
    "prefill": "#b279a2",
    "transformer": "#2f6db5",
    "noise": "#e39b34",
    "clean": "#5f9ed1",
    "sampling": "#e39b34",
    "step": "#2f6db5",
    "decode": "#3c9a6e",
    BETWEEN: "#c9ccd1",
}
OTHER = "#8a8f98"
WIDTH, LEFT, RIGHT, LANE = 1100, 96, 14, 22


def timeline(timed: Timed, longest: float) -> str:
    """One lane a part, time to the right; `longest` seconds fill the width, so that two of them compare."""
    lanes = [part.name for part in timed.parts if part.name != BETWEEN]
    x = _scale(longest)
    height = LANE * len(lanes) + 24
    marks = [_ticks(longest, x, LANE * len(lanes), time_text)]
    for row, name in enumerate(lanes):
        marks.append(_label(LEFT - 6, LANE * row + 15, name, anchor="end"))
    for span in timed.timeline:
        where = "" if span.frame is None else f", frame {span.frame}"
        where += "" if span.scale is None else f", scale {span.scale}"
        title = f"{span.part}{where}: {time_text(span.seconds)} from {time_text(span.begin)}"
        top = LANE * lanes.index(span.part) + 3
        marks.append(_bar(x(span.begin), top, x(span.end) - x(span.begin), LANE - 6, _colour(span.part), title))
    end = x(timed.seconds.median)
    marks.append(f'<line x1="{end:.2f}" x2="{end:.2f}" y1="0" y2="{LANE * len(lanes)}" stroke="#444"/>')
    return _svg(height, marks, f"timeline of a clip: {timed.name}")


def shares(contenders: list[Timed]) -> str:
    """A bar a contender, divided into the parts of its clip of median time."""
    longest = max(timed.seconds.median for timed in contenders)
    x, marks = _scale(longest), []
    for row, timed in enumerate(contenders):
        top, at = 30 * row, 0.0
        marks.append(_label(LEFT - 6, top + 17, timed.name, anchor="end"))
        for part in timed.parts:
            if part.in_median_clip <= 0:
                continue
            title = f"{part.name}: {time_text(part.in_median_clip)}, {part.share:.1%}"
            marks.append(_bar(x(at), top + 3, x(part.in_median_clip) - x(0), 22, _colour(part.name), title))
            at += part.in_median_clip
    marks.append(_ticks(longest, x, 30 * len(contenders), time_text))
    return _svg(30 * len(contenders) + 24, marks, "parts of a clip") + _legend(contenders)


def steps(timed: Timed) -> str:
    """A column a step, parts on top of each other, and a line at what the machine's limits allow."""
    rows, height = timed.steps, 180
    highest = max(max(row.seconds, row.floor) for row in rows) or 1.0
    each = (WIDTH - LEFT - RIGHT) / len(rows)

    def y(seconds: float) -> float:
        return height - (height - 10) * seconds / highest

    marks = [_label(LEFT - 6, y(tick) + 4, time_text(tick), anchor="end") for tick in _round_steps(highest)]
    marks += [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.2f}" y2="{y(tick):.2f}" stroke="#e3e5e8"/>'
        for tick in _round_steps(highest)
    ]
    for index, row in enumerate(rows):
        marks += _column(row, LEFT + each * index, each, y)
        if row.scale == 0:
            marks.append(_label(LEFT + each * index, height + 14, row.place.split(",")[0]))
    return _svg(height + 20, marks, f"steps: {timed.name}")


def readings(gpu: Gpu) -> str:
    """Power, use and clock over the window that NVML watched."""
    charts = ((1, "power, W"), (2, "busy, %"), (3, "SM clock, MHz"))
    x, marks, top = _scale(gpu.seconds or 1.0), [], 0
    for index, name in charts:
        points = [(r[0], r[index]) for r in gpu.readings if r[index] is not None]
        if not points:
            continue
        highest = max(value for _, value in points) or 1.0
        path = " ".join(f"{x(t):.1f},{top + 60 - 50 * value / highest:.1f}" for t, value in points)
        marks.append(_label(LEFT - 6, top + 16, name, anchor="end"))
        marks.append(_label(LEFT - 6, top + 32, f"to {highest:.0f}", anchor="end"))
        marks.append(f'<polyline fill="none" stroke="#2f6db5" points="{path}"/>')
        top += 70
    if not marks:
        return ""
    marks.append(_ticks(gpu.seconds, x, top, time_text))
    return _svg(top + 24, marks, "what NVML read")


def _column(row: StepRow, left: float, each: float, y: Callable[[float], float]) -> Iterable[str]:
    at, gap = 0.0, min(2.0, each / 5)
    texts = ", ".join(f"{name} {time_text(seconds)}" for name, seconds in row.parts.items())
    title = f"{row.place}: {texts}; the limits allow {time_text(row.floor)}; {row.tokens} tokens see {row.seen}"
    for name, seconds in row.parts.items():
        yield _bar(left + gap / 2, y(at + seconds), each - gap, y(at) - y(at + seconds), _colour(name), title)
        at += seconds
    level = y(row.floor)
    yield f'<line x1="{left:.2f}" x2="{left + each:.2f}" y1="{level:.2f}" y2="{level:.2f}" stroke="#b3261e"/>'


def _legend(contenders: list[Timed]) -> str:
    names = dict.fromkeys(part.name for timed in contenders for part in timed.parts)
    items = (f'<span><i style="background:{_colour(name)}"></i>{escape(name)}</span>' for name in names)
    return f"<p class=legend>{''.join(items)}</p>"


def _colour(name: str) -> str:
    return COLOURS.get(name, OTHER)


def _scale(longest: float) -> Callable[[float], float]:
    return lambda seconds: LEFT + (WIDTH - LEFT - RIGHT) * seconds / longest


def _round_steps(longest: float) -> list[float]:
    """Up to eight round numbers from 0 to `longest`."""
    rough = longest / 6
    size = 10 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    return [step * index for index in range(int(longest / step * (1 + 1e-9)) + 1)]


def _ticks(longest: float, x: Callable[[float], float], bottom: float, text: Callable[[float], str]) -> str:
    marks = []
    for tick in _round_steps(longest):
        marks.append(f'<line x1="{x(tick):.2f}" x2="{x(tick):.2f}" y1="0" y2="{bottom + 4:.2f}" stroke="#e3e5e8"/>')
        marks.append(_label(x(tick), bottom + 17, text(tick) if tick else "0", anchor="middle"))
    return "".join(marks)


def _bar(left: float, top: float, width: float, height: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{left:.2f}" y="{top:.2f}" width="{max(width, 0.3):.2f}" height="{max(height, 0):.2f}" '
        f'fill="{colour}"><title>{escape(title)}</title></rect>'
    )


def _label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, marks: list[str], title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(marks)}</svg>'
