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


def write(data: dict, stem: Path) -> list[Path]:
    """Writes <stem>_limits.png and <stem>_peers.png; nothing where matplotlib is not installed."""
    written = []
    for name, figure in figures(data).items():
        path = stem.with_name(f"{stem.name}_{name}.png")
        write_atomically(path, picture(figure, "png"))
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
    if any(row.share for row in rows):
        made["limits"] = _limits(rows, data)
    if any(row.peers for row in rows):
        made["peers"] = _peers([row for row in rows if row.peers], data)
    return made


def picture(figure, kind: str) -> bytes:
    """Returns a figure as the bytes of a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _figure(width: float, height: float, **options):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**options)


def _limits(rows: list[Row], data: dict):
    shared = [row for row in rows if row.share]
    height = max(5.0, 1.2 + 0.24 * len(shared))
    figure, (left, right) = _figure(15, height, ncols=2, width_ratios=(1, 1.1))
    _roofline(left, rows, data["limits"])
    _shares(right, shared)
    figure.suptitle(_title(data), fontsize=10)
    return figure


def _roofline(axes, rows: list[Row], limits: dict) -> None:
    """Achieved FLOP/s over FLOPs per compulsory byte, under the measured copy and matmul rates."""
    points = [row for row in rows if row.bytes and row.flops and row.floor and row.floor.limit != "arithmetic"]
    copy = limits.get("copy", {}).get("median")
    roofs = {name: rate["median"] for name, rate in limits.items() if name.startswith("matmul")}
    axes.set(xscale="log", yscale="log", xlabel="useful FLOPs per compulsory byte", ylabel="GFLOP/s", title="roofline")
    if not copy or not roofs:
        axes.text(0.5, 0.5, "no row measured both limits", ha="center", transform=axes.transAxes)
        return
    intensities = [row.flops / row.bytes for row in points] or [1.0, 1000.0]
    low, high = min(intensities) / 3, max(intensities) * 3
    for style, (name, rate) in zip(("-", "--"), roofs.items(), strict=False):
        ridge = rate / copy
        xs = sorted({low, min(max(ridge, low), high), high})
        axes.plot(xs, [min(rate, x * copy) / 1e9 for x in xs], style, color="black", lw=1, label=f"{name}, copy")
    for number, (op, marker) in enumerate(
        zip(dict.fromkeys(row.op for row in points), "osD^vPX*hd<>" * 9, strict=False)
    ):
        mine = [row for row in points if row.op == op]
        xs, ys = [r.flops / r.bytes for r in mine], [r.flops / r.ours.median / 1e9 for r in mine]
        axes.plot(xs, ys, marker, color=f"C{number}", label=op, ms=6, alpha=0.8)
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.3, which="both", lw=0.4)


def _shares(axes, rows: list[Row]) -> None:
    """Share of the limit; a tick where a bar asks for it."""
    places = range(len(rows))
    colours = ["#b3261e" if any(b.name == "limit" and not b.met for b in r.bars) else COLOURS["ours"] for r in rows]
    axes.barh(places, [row.share for row in rows], color=colours, height=0.7)
    for place, row in zip(places, rows, strict=True):
        axes.text(row.share, place, f" {row.share:.2f} {row.floor.limit}", va="center", fontsize=7)
        for bar in row.bars:
            if bar.name == "limit":
                axes.plot([bar.want, bar.want], [place - 0.45, place + 0.45], color="black", lw=1.5)
    axes.axvline(1, color="black", lw=0.8, ls=":")
    axes.set_yticks(places, [row.name for row in rows], fontsize=7)
    axes.set(title="share of the limit (tick: asked for; red: missed)", ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlim(0, 1.15 * max(1.0, *(row.share for row in rows)))
    axes.grid(alpha=0.3, axis="x", lw=0.4)


def _peers(rows: list[Row], data: dict):
    """How many times as long each peer takes as we do, on a logarithmic scale."""
    bars = [(row, name, t.median / row.ours.median) for row in rows for name, t in row.peers.items()]
    figure, axes = _figure(12, max(3.0, 1.2 + 0.17 * len(bars) + 0.1 * len(rows)))
    place, labelled, ticks = 0.0, set(), []
    for row in rows:
        first = place
        for name, timing in sorted(row.peers.items(), key=lambda item: item[1].median):
            ratio = timing.median / row.ours.median
            kind = next((k for k in COLOURS if k in name), "other")
            label = kind if kind not in labelled else None
            labelled.add(kind)
            axes.barh(place, ratio - 1, left=1, color=COLOURS[kind], height=0.85, label=label)
            text = f" {ratio:.3g}x {name} "
            axes.text(ratio, place, text, va="center", ha="left" if ratio >= 1 else "right", fontsize=7)
            place += 1
        ticks.append((first + place - 1) / 2)
        place += 0.6
    axes.axvline(1, color="black", lw=1)
    axes.set_xscale("log")
    ratios = [ratio for *_, ratio in bars]
    axes.set_xlim(min(0.5, *ratios) / 3, max(2.0, *ratios) * 4)
    axes.set_yticks(ticks, [row.name for row in rows], fontsize=7)
    axes.set(ylim=(place - 0.4, -0.8), xlabel="time of the peer / our time (right of the line: we are faster)")
    axes.set_title(_title(data), fontsize=10)
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.3, axis="x", which="both", lw=0.4)
    return figure


def _title(data: dict) -> str:
    m = data["machine"]
    return f"{m['device']}, {m['threads']} threads, {m['cpu isa']}, torch {m['torch']}, {m['date']}"
