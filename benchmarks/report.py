"""The table: one line per case, losing lines like winning ones."""

from __future__ import annotations

from results import Bar, Row, Timing

from videoar.profiling.quantities import time_text

HEADER = ("op", "shape", "dtype", "ours", "best peer", "ratio", "of limit", "bars")


def heading(data: dict) -> list[str]:
    """What every figure of the run depends on."""
    m, s = data["machine"], data["settings"]
    memory = "kept" if s["freed memory kept"] else "given back"
    lines = [
        f"{m['device']}, {m['threads']} threads on {m['cores']} cores, {m['cpu isa']}; {m['memory']}, {m['caches']}",
        f"torch {m['torch']}, python {m['python']}, {m['compiler']}, videoar {m['videoar']}, {m['system']}",
        f"{m['date']}; frequency: {m['frequency']}; load average {s['load average at start']} before, "
        f"{s['load average at end']} after; freed memory {memory}",
    ]
    for name, rate in data["limits"].items():
        low, middle, high = (rate[key] / 1e9 for key in ("min", "median", "max"))
        lines.append(
            f"limit {name}: {middle:.1f} G{rate['unit']} ({low:.1f} to {high:.1f}, timed beside {rate['rows']} rows)"
        )
    return lines


def cells(row: Row) -> tuple[str, ...]:
    """Returns a row's texts in the order of `HEADER`."""
    head = (row.op, row.shape, row.dtype)
    if row.wrong:
        return (*head, "WRONG", "", "", "", row.wrong)
    peer = f"{time_text(row.peers[row.best_peer].median)} {row.best_peer}" if row.best_peer else "none"
    return (
        *head,
        ("~" if noise(row) else "") + spread_text(row.ours),
        peer if row.peers or not row.absent else "absent",
        "" if row.ratio is None else f"{row.ratio:.2f}x",
        "" if row.share is None else f"{row.share:.2f} {row.floor.limit}",
        "; ".join(bar_text(bar) for bar in row.bars),
    )


def spread_text(timing: Timing) -> str:
    """Median, and half the interquartile range as a percentage of it."""
    return f"{time_text(timing.median)} ±{50 * timing.iqr / timing.median:.0f}%"


def bar_text(bar: Bar) -> str:
    """Such as `limit 0.82 >= 0.75` or `eager 3.10 < 4 MISSED`."""
    timed = bar.name == "time" or bar.name.startswith("beyond ")
    want = time_text(bar.want) if timed else f"{bar.want:.3g}"
    if bar.met is None:
        return f"{bar.name} {'<=' if timed else '>='} {want}: absent"
    got = time_text(bar.got) if timed else f"{bar.got:.2f}"
    sign = ("<=" if bar.met else ">") if timed else (">=" if bar.met else "<")
    return f"{bar.name} {got} {sign} {want}" + ("" if bar.met else " MISSED")


def noise(row: Row) -> str:
    """Why the row is not to be trusted, or nothing."""
    reasons = []
    if (row.elsewhere.cores or 0) >= 0.1:
        reasons.append(f"other programs kept {row.elsewhere.cores:.2f} cores busy")
    if (row.elsewhere.stolen or 0) >= 0.05:
        reasons.append(f"the hypervisor took {row.elsewhere.stolen:.2f} cores")
    if row.ours and row.ours.iqr > 0.3 * row.ours.median:
        reasons.append(f"half of our samples spread over {100 * row.ours.iqr / row.ours.median:.0f}% of the median")
    return "; ".join(reasons)


def details(row: Row) -> list[str]:
    """What does not fit the table: slower and absent peers, yardsticks, preparations, the limit, notes, noise."""
    lines = []
    peers = sorted(row.peers.items(), key=lambda item: item[1].median)[1:]
    if peers:
        lines.append("also " + ", ".join(f"{name} {spread_text(t)}" for name, t in peers))
    compiled = [(name, t.first) for name, t in row.peers.items() if t.first > 1.0 + 10 * t.median]
    lines += [f"{name}'s first call took {time_text(first)}" for name, first in compiled]
    lines += [f"{name} {spread_text(t)}" for name, t in row.yardsticks.items()]
    lines += [f"{name} absent: {reason}" for name, reason in row.absent.items()]
    lines += [f"{name} {time_text(t.median)}, in no figure above" for name, t in row.asides.items()]
    if row.memory:
        lines.append("peak memory " + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in row.memory.items()))
    if row.floor and row.floor.what:
        lines.append(f"limit {time_text(row.floor.seconds)}: {row.floor.what}")
    if row.notes:
        lines.append(row.notes)
    if noise(row):
        lines.append(f"~ {noise(row)}")
    return lines


def remarks(rows: list[Row]) -> list[str]:
    """The details of every row that has any, in one line each."""
    return [f"{row.name}: {'; '.join(details(row))}" for row in rows if details(row)]


def summary(rows: list[Row]) -> str:
    """Counts of bars and of peers beaten."""
    bars = [bar for row in rows for bar in row.bars]
    met, judged = sum(bar.met is True for bar in bars), sum(bar.met is not None for bar in bars)
    ratios = [row.ratio for row in rows if row.ratio is not None]
    wrong = sum(bool(row.wrong) for row in rows)
    text = f"{len(rows)} rows; bars met: {met} of {judged}; faster than the best peer in {sum(r > 1 for r in ratios)}"
    return f"{text} of {len(ratios)}" + (f"; WRONG RESULTS: {wrong}" if wrong else "")


def plain_table(rows: list[Row]) -> str:
    """The table in columns of fixed width."""
    lines = [HEADER, *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    texts = ("  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join(texts)


def print_table(rows: list[Row], write_line) -> None:
    """Prints through rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        write_line(plain_table(rows))
        return
    table = Table(*HEADER, header_style="bold")
    previous = None
    for row in rows:
        if previous not in (None, row.family):
            table.add_section()
        style = "red" if row.wrong else "yellow" if any(bar.met is False for bar in row.bars) else None
        table.add_row(*cells(row), style=style)
        previous = row.family
    Console(width=max(Console().width, 160)).print(table)
