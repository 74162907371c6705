"""Pictures of a run: shares of the machine's limit, a roofline, and bars against the peers."""

from __future__ import annotations

import io
from pathlib import Path

from results import Row, rows_from, write_atomically

COLOURS = {
    "ours": "#0b6e4f",
    "eager": "#9aa0a6",
    "torch.compile": "#e07a1f",
    "SDPA": "#3b6fb6",
    "FlexAttention": "#8e4ec6",
    "other": "#c2486b",
}
RED = "#b3261e"


def write(data: dict, stem: Path) -> list[Path]:
    """Writes <stem>_<name>.png for every picture; nothing where matplotlib is not installed."""
    written = []
    for name, figure in figures(data).items():
        path = stem.with_name(f"{stem.name}_{name}.png")
        write_atomically(path, picture(figure))
        written.append(path)
    return written


def figures(data: dict) -> dict:
    """Returns the pictures by name."""
    try:
        import matplotlib
    except ImportError:
        return {}
    matplotlib.use("Agg")
    rows = [row for row in rows_from(data) if row.ours]
    made = {}
    if "copy" in data["limits"] and any(name.startswith("matmul") for name in data["limits"]):
        made["roofline"] = _roofline(rows, data)
    if any(row.share for row in rows):
        made["limits"] = _limits([row for row in rows if row.share], data)
    if any(row.peers for row in rows):
        made["peers"] = _peers([row for row in rows if row.peers], data)
    return made


def picture(figure) -> bytes:
    """Returns a figure as the bytes of a PNG file of few colours, which makes it several times smaller."""
    from PIL import Image

    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    Image.open(buffer).convert("RGB").quantize(64).save(small, format="png", optimize=True)
    return small.getvalue()


def _figure(width: float, height: float, data: dict):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    m = data["machine"]
    title = f"{m['device']}, {m['threads']} threads, {m['cpu isa']}, torch {m['torch']}, {m['date']}"
    figure.suptitle(title, fontsize=9, color="#555555")
    return figure, figure.subplots()


def _roofline(rows: list[Row], data: dict):
    """Achieved FLOP/s over FLOPs per compulsory byte, under the measured copy and matmul rates."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    figure, axes = _figure(9, 6, data)
    points = [row for row in rows if row.bytes and row.flops and row.floor and row.floor.limit != "arithmetic"]
    copy = data["limits"]["copy"]["median"]
    roofs = {name: rate["median"] for name, rate in data["limits"].items() if name.startswith("matmul")}
    intensities = [row.flops / row.bytes for row in points]
    ridge = max(roofs.values()) / copy
    low, high = min([ridge / 30, *intensities]) / 2, max([ridge * 30, *intensities]) * 2
    for style, (name, rate) in zip(("-", "--"), roofs.items(), strict=False):
        xs = [low, rate / copy, high]
        axes.plot(xs, [min(rate, x * copy) / 1e9 for x in xs], style, color="black", lw=1, label=f"{name}, copy")
    for number, op in enumerate(dict.fromkeys(row.op for row in points)):
        mine = [row for row in points if row.op == op]
        xs, ys = [r.flops / r.bytes for r in mine], [r.flops / r.ours.median / 1e9 for r in mine]
        axes.plot(xs, ys, "osD^vPX*hd<>"[number % 12], color=f"C{number}", label=op, ms=6, alpha=0.8)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set(xlabel="useful FLOPs per compulsory byte", ylabel="useful GFLOP/s", title="Roofline")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_formatter("")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FormatStrFormatter("%g"))
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.3, lw=0.4)
    return figure


def _limits(rows: list[Row], data: dict):
    """Share of the limit; a tick where a bar asks for it."""
    figure, axes = _figure(11, max(3.0, 1.4 + 0.21 * len(rows)), data)
    places = range(len(rows))
    missed = [any(b.name == "limit" and not b.met for b in row.bars) for row in rows]
    axes.barh(places, [row.share for row in rows], color=[RED if m else COLOURS["ours"] for m in missed], height=0.7)
    for place, row in zip(places, rows, strict=True):
        wanted = [bar.want for bar in row.bars if bar.name == "limit"]
        for want in wanted:
            axes.plot([want, want], [place - 0.45, place + 0.45], color="black", lw=1.5)
        text = f" {row.share:.2f} {row.floor.limit}"
        axes.text(max(row.share, *wanted, 0), place, text, va="center", fontsize=7)
    axes.axvline(1, color="black", lw=0.8, ls=":")
    axes.set_yticks(places, [row.name for row in rows], fontsize=7)
    axes.set(title="Share of the machine's limit (tick: asked for; red: missed)", ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlim(0, 1.15 * max(1.0, *(row.share for row in rows)))
    axes.grid(alpha=0.3, axis="x", lw=0.4)
    return figure


def _peers(rows: list[Row], data: dict):
    """How many times as long each peer takes as we do, on a logarithmic scale."""
    from matplotlib.ticker import FormatStrFormatter

    ratios = [timing.median / row.ours.median for row in rows for timing in row.peers.values()]
    figure, axes = _figure(11, max(3.0, 1.6 + 0.16 * len(ratios) + 0.1 * len(rows)), data)
    place, labelled, ticks = 0.0, set(), []
    for row in rows:
        first = place
        for name, timing in sorted(row.peers.items(), key=lambda item: item[1].median):
            ratio = timing.median / row.ours.median
            kind = next((k for k in COLOURS if k in name), "other")
            label = kind if kind not in labelled else None
            labelled.add(kind)
            axes.barh(place, ratio - 1, left=1, color=COLOURS[kind], height=0.85, label=label)
            text = f" {ratio:.2f}x {name} "
            axes.text(ratio, place, text, va="center", ha="left" if ratio >= 1 else "right", fontsize=7)
            place += 1
        ticks.append((first + place - 1) / 2)
        place += 0.6
    axes.axvline(1, color="black", lw=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter("")
    axes.set_xlim(min(0.5, *ratios) / 3, max(2.0, *ratios) * 4)
    axes.set_yticks(ticks, [row.name for row in rows], fontsize=7)
    axes.set(ylim=(place - 0.4, -0.8), title="Time of each peer over ours (right of the line: we are faster)")
    figure.legend(fontsize=8, loc="outside lower center", ncols=6)
    axes.grid(alpha=0.3, axis="x", which="both", lw=0.4)
    return figure
