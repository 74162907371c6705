"""A profile in the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from videoar.profiling.quantities import amount_text, time_text
from videoar.profiling.result import Gpu, Part, Profile, Spread, StepRow, Timed


def print_profile(profile: Profile, console: Console) -> None:
    """Prints what was run, how fast it was, where the time went, and what the figures include."""
    for line in heading(profile):
        console.print(line, highlight=False, soft_wrap=True)
    for timed in filter(None, (profile.ours, profile.eager)):
        console.print(_parts(timed))
    console.print(_steps(profile.ours))
    for line in (*remarks(profile), *profile.included):
        console.print(f"- {line}", highlight=False, soft_wrap=True)


def heading(profile: Profile) -> list[str]:
    """What every figure depends on, and the figures of the whole clip."""
    m, s = profile.machine, profile.subject
    lines = [
        f"{s['model']} ({s['weights']} weights); {s['clip']}, batch {s['batch']}; {_fact(s, 'scales', 'units')}",
        f"transformer {s['transformer']}; {_fact(s, 'tokenizer', 'autoencoder')}; guidance {s['guidance']}",
        f"{m['device']}, {m['threads']} threads on {m['cores']} cores; torch {m['torch']}, videoar {m['videoar']}, "
        f"{m['date']}",
    ]
    timed = filter(None, (profile.ours, profile.bare, profile.eager))
    lines += [f"{one.name} ({one.computes_in}): {speed(one)}" for one in timed]
    if profile.speedup:
        what = "flow differs" if "units" in s else "logits differ"
        lines.append(
            f"eager PyTorch takes {profile.speedup:.2f} times as long; its {what} by {profile.disagreement:.1e}"
        )
    return lines


def _fact(facts: dict[str, str], *names: str) -> str:
    return next(f"{name} {facts[name]}" for name in names if name in facts)


def speed(timed: Timed) -> str:
    """The figures of the whole clip in one line."""
    unit = f"a unit in {spread_text(timed.unit, 'units')}; " if timed.unit else ""
    return (
        f"{timed.frame_rate:.3g} frames/s; a clip in {spread_text(timed.seconds)}; {unit}first "
        f"{'unit' if unit else 'frame'} after {time_text(timed.first_frame)}; {timed.token_rate:,.0f} tokens/s"
    )


def spread_text(spread: Spread, what: str = "clips") -> str:
    """Median, 95th percentile, and of how many."""
    return f"{time_text(spread.median)} (p95 {time_text(spread.p95)}, {spread.count} {what})"


def remarks(profile: Profile) -> Iterator[str]:
    """Limits, memory, the GPU's own account."""
    for rate in profile.limits:
        low, middle, high = (amount_text(x, rate.unit) for x in (rate.rates.least, rate.rates.median, rate.rates.most))
        yield f"Limit {rate.name}: {middle} ({low} to {high}), timed in every round."
    weights = "the weights of both" if profile.eager else "weights"
    for name, size in profile.memory.items():
        yield f"Peak {name}: {size / 2**30:.2f} GiB, {weights} included."
    yield f"First clip: {time_text(profile.ours.first_clip)}, with all that is made once."
    between = profile.ours.parts[-1].in_median_clip
    if between < 0:
        yield f"Parts ran side by side: together they are {time_text(-between)} longer than the clip."
    if profile.gpu is not None:
        yield gpu_text(profile.gpu)


def gpu_text(gpu: Gpu) -> str:
    """NVML's figures in one sentence."""
    if gpu.absent:
        return f"No power, clocks or utilisation: {gpu.absent}."

    def figure(value: float | None, form: str) -> str:
        return "unknown" if value is None else form.format(value)

    held = ", ".join(f"{reason} in {share:.0%} of the readings" for reason, share in gpu.held_back.items())
    return (
        f"GPU over {gpu.clips} clips back to back ({gpu.seconds:.1f} s): busy {figure(gpu.busy, '{:.0f}%')}, "
        f"{figure(gpu.watts, '{:.0f} W')} of {gpu.facts.get('power limit', 'unknown')}, "
        f"{figure(gpu.joules_per_frame, '{:.3g} J')} a frame ({gpu.energy_from or 'no energy known'}), "
        f"SM {figure(gpu.sm_clock, '{:.0f} MHz')}, memory {figure(gpu.memory_clock, '{:.0f} MHz')}, "
        f"{figure(gpu.temperature, '{:.0f} °C')}; clocks held back: {held or 'never'}."
    )


PART_HEADER = ("part", "clip", "share", "p95", "FLOP/s", "B/s", "floor", "x floor")


def part_cells(part: Part) -> tuple[str, ...]:
    """A part's texts in the order of `PART_HEADER`."""
    counted = part.floor is not None
    return (
        part.name,
        time_text(part.in_median_clip),
        f"{part.share:.1%}",
        time_text(part.seconds.p95),
        amount_text(part.flop_rate) if counted else "",
        amount_text(part.byte_rate) if counted else "",
        time_text(part.floor) if counted else "",
        f"{part.over_floor:.2f}" if counted else "",
    )


STEP_HEADER = ("step", "tokens", "keys", "median", "slowest", "FLOPs", "bytes", "floor", "x floor")


def step_cells(rows: list[StepRow]) -> tuple[str, ...]:
    """One scale's texts over all frames (one pass's over all units); FLOPs and bytes are the last frame's."""
    last, times = rows[-1], sorted(row.seconds for row in rows)
    return (
        last.group,
        str(last.tokens),
        f"{rows[0].seen}-{last.seen}",
        time_text(statistics.median(times)),
        time_text(times[-1]),
        amount_text(last.flops),
        amount_text(last.bytes),
        time_text(statistics.median(row.floor for row in rows)),
        f"{sum(times) / sum(row.floor for row in rows):.2f}",
    )


def by_scale(timed: Timed) -> list[list[StepRow]]:
    """The steps of each scale over the frames, or of each pass over the units."""
    scales = range(1 + max(row.scale for row in timed.steps))
    return [[row for row in timed.steps if row.scale == scale] for scale in scales]


def _parts(timed: Timed) -> Table:
    table = _table(f"{timed.name}: parts of the clip of median time", PART_HEADER)
    for part in timed.parts:
        table.add_row(*part_cells(part))
    table.add_row("all", time_text(sum(part.in_median_clip for part in timed.parts)))
    return table


def _steps(timed: Timed) -> Table:
    over = "pass over all units" if timed.unit else "scale over all frames"
    table = _table(f"{timed.name}: steps of each {over}", STEP_HEADER)
    for rows in by_scale(timed):
        table.add_row(*step_cells(rows))
    return table


def _table(title: str, header: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return table
