"""The table: one line per case, losing lines like winning ones."""

from __future__ import annotations

from results import Bar, Row, Timing

HEADER = ("op", "shape", "dtype", "ours", "best peer", "ratio", "of limit", "bars")


def cells(row: Row) -> tuple[str, ...]:
    """Returns a row's texts in the order of `HEADER`."""
    head = (row.op, row.shape, row.dtype)
    if row.wrong:
        return (*head, "WRONG", "", "", "", row.wrong)
    peer = f"{time_text(row.peers[row.best_peer].median)} {row.best_peer}" if row.best_peer else "none"
    return (
        *head,
        spread_text(row.ours),
        peer,
        "" if row.ratio is None else f"{row.ratio:.2f}x",
        "" if row.share is None else f"{row.share:.2f} {row.floor.limit}",
        "; ".join(bar_text(bar) for bar in row.bars),
    )


def spread_text(timing: Timing) -> str:
    """Median, and the interquartile range as a percentage of it."""
    return f"{time_text(timing.median)} ±{50 * timing.iqr / timing.median:.0f}%"


def time_text(seconds: float) -> str:
    """Seconds with three digits and a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def bar_text(bar: Bar) -> str:
    """Such as `limit >= 0.75: met` or `eager >= 4: MISSED (3.1)`."""
    if bar.name == "time" or bar.name.startswith("beyond "):
        want = f"{bar.name} <= {time_text(bar.want)}"
        got = "" if bar.got is None else time_text(bar.got)
    else:
        want = f"{bar.name} >= {bar.want:g}"
        got = "" if bar.got is None else f"{bar.got:.2f}"
    if bar.met is None:
        return f"{want}: no peer"
    return f"{want}: {'met' if bar.met else 'MISSED'} ({got})"


def remarks(row: Row) -> list[str]:
    """What does not fit the table: absent peers, slower peers, preparations, notes, noise."""
    lines = []
    if row.peers:
        others = sorted(row.peers.items(), key=lambda item: item[1].median)
        lines.append("peers: " + ", ".join(f"{name} {spread_text(t)}" for name, t in others))
    lines += [f"{name}: {spread_text(t)}" for name, t in row.yardsticks.items()]
    lines += [f"{name}: absent: {reason}" for name, reason in row.absent.items()]
    lines += [f"{name}, not included: {time_text(t.median)}" for name, t in row.asides.items()]
    if row.floor and row.floor.what:
        lines.append(f"limit: {row.floor.what}")
    if row.notes:
        lines.append(row.notes)
    if noisy(row):
        lines.append(f"NOISY: {noise_text(row)}")
    return lines


def noisy(row: Row) -> bool:
    """Whether other programs or the hypervisor took a tenth of a core or more while the row was timed."""
    return max(row.elsewhere.cores or 0, row.elsewhere.stolen or 0) >= 0.1


def noise_text(row: Row) -> str:
    return f"others kept {row.elsewhere.cores:.2f} cores busy, the hypervisor took {row.elsewhere.stolen:.2f}"


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
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def print_table(rows: list[Row], write_line) -> None:
    """Prints through rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        write_line(plain_table(rows))
        return
    table = Table(*HEADER, show_lines=False, header_style="bold")
    for row in rows:
        style = "red" if row.wrong else "yellow" if any(bar.met is False for bar in row.bars) else None
        table.add_row(*cells(row), style=style)
    console = Console()
    Console(width=max(console.width, 150)).print(table)
