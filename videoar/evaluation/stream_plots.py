"""Pictures of stream reports: what is flat, and what changes at a switch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from videoar.evaluation.adherence import ATTRIBUTES


def draw_stream(report: Mapping, path: str | Path) -> None:
    """Adherence, seconds a unit and memory over the frames of a stream.

    Args:
        report: `StreamReport.to_dict`.
        path: of the PNG.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, (upper, middle, lower) = _figure(3)
    stretches = report["stretches"]
    places = [(part["first"] + part["end"]) / 2 for part in stretches]
    for colour, name in enumerate(ATTRIBUTES):
        shown = [(place, part) for place, part in zip(places, stretches, strict=True) if part["right"]]
        for style, key in (("-", "right"), (":", "wrong_prompt")):
            values = [100 * part[key][name] for _, part in shown]
            label = name if key == "right" else None
            upper.plot([place for place, _ in shown], values, style, color=f"C{colour}", label=label)
    upper.set(ylabel="windows that show it, %", ylim=(0, 102), title=_title(report))
    _legend(upper, "dotted: against a prompt\nthat differs in all")
    times = [1e3 * part["seconds_per_unit"] for part in stretches]
    middle.plot(places, times, color="C4")
    middle.set(ylabel="ms a unit", ylim=(0, 1.2 * max(times)))
    memory = {int(frame): count / 2**20 for frame, count in report["memory"].items()}
    lower.plot(list(memory), list(memory.values()), "o-", color="C5")
    lower.set(ylabel="memory, MiB", xlabel="frame", ylim=(0, 1.2 * max(memory.values())))
    figure.savefig(path, dpi=110)


def draw_switch(report: Mapping, path: str | Path) -> None:
    """Windows that show the new prompt's attributes, and the old one's, after a switch.

    Args:
        report: `SwitchReport.to_dict`.
        path: of the PNG.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, axes = _figure(1)
    for colour, name in enumerate(ATTRIBUTES):
        for style, key in (("-", "new"), (":", "old")):
            values = [100 * shares[name] for shares in report[key]]
            axes.plot(range(len(values)), values, style, color=f"C{colour}", label=name if key == "new" else None)
    axes.axvline(report["context"], color="grey", lw=0.8)
    axes.annotate("one context length", (report["context"], 3), fontsize=8, color="grey")
    axes.set(ylabel="windows that show it, %", ylim=(0, 102), xlabel="latent frames after the switch")
    axes.set(title=_title(report))
    _legend(axes, "dotted: the old prompt's")
    figure.savefig(path, dpi=110)


def _title(report: Mapping) -> str:
    streams = report["streams"]
    return f"{report['units']}, {streams} stream{'s' if streams > 1 else ''}"


def _legend(axes, title: str) -> None:
    axes.legend(fontsize=8, title=title, title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _figure(rows: int):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a plot needs `pip install matplotlib`") from None
    figure = Figure(figsize=(8, 1.5 + 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, sharex=rows > 1)
    return figure, axes
