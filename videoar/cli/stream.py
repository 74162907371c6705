"""`videoar stream`: a video of any length from a prompt, written while later frames are computed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import floor, isfinite, isnan, nan
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from videoar.cli.errors import console, expect_file, of_argument, readable_errors
from videoar.cli.models import load_units, prepare
from videoar.cli.options import (
    Context,
    ContextNoise,
    FrameRate,
    Guidance,
    History,
    Model,
    Output,
    Packed,
    Seed,
    Sink,
    Steps,
    Units,
)


class StreamCommand(TyperCommand):
    """Takes `--at SECONDS PROMPT` as two words, which typer's options cannot."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        joined, left = [], args[::-1]
        while left:
            word = left.pop()
            option, given, said = word.partition("=")
            if option != "--at":
                joined.append(word)
                continue
            if not given:
                said = left.pop() if left and not left[-1].startswith("--") else ""
            # An option that follows is none of the prompt, which `_switch` then misses.
            if " " not in said.strip() and left and not left[-1].startswith("-"):
                said = f"{said} {left.pop()}"
            joined.append(f"--at={said}")
        return super().parse_args(ctx, joined)


def stream(
    prompt: Annotated[str, typer.Argument(help='For the shipped model: "a red circle moving up-left slowly".')] = "",
    output: Output = Path("out.mp4"),
    seconds: Annotated[float, typer.Option(help="Length of the video.")] = 8.0,
    at: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="SECONDS PROMPT", help="Another prompt from a time on; may be repeated."),
    ] = None,
    context: Context = None,
    sink: Sink = None,
    context_noise: ContextNoise = None,
    history: History = None,
    model: Model = None,
    units: Units = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    precision: Packed = None,
    fps: FrameRate = None,
) -> None:
    """Stream a video of any length on bounded memory; the prompt may change on the way."""
    from rich.progress import Progress, TextColumn

    from videoar.data.video import check_video_path, write_video

    with readable_errors():
        if not (isfinite(seconds) and seconds > 0):
            raise ValueError(f"stream: expected --seconds above 0, got {seconds}")
        expect_file("stream", "--output", output)
        with of_argument("--output"):
            check_video_path(output)
        switches = _switches(at or [], seconds)
        pipeline, _ = load_units(model)
        options = {"units": units, "steps": steps, "guidance": guidance, "window": context, "sink": sink}
        pipeline = pipeline.with_options(**options, context_noise=context_noise, history=history, fps=fps)
        prepare(pipeline, precision, prompt, *switches.values())
        frames = round(seconds * pipeline.defaults.fps)
        if frames < 1:
            raise ValueError(f"stream: expected --seconds for at least one frame, got {seconds}")
        _expect_shown(switches, pipeline.last_switch(frames), frames)
        clock = _Clock()
        columns = (*Progress.get_default_columns(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("streaming", total=frames, rate="")
            chunks = pipeline.stream([prompt or None], frames=frames, seed=seed, switches=switches or None)

            def shown() -> Iterator:
                for chunk in clock.timed(chunks):
                    progress.update(task, advance=len(chunk), rate=f"{clock.rate:.1f} frames/s")
                    yield from chunk

            write_video(output, shown(), pipeline.defaults.fps)
    typer.echo(
        f"{output}: {clock.frames} frames, the first after {clock.first:.2f} s, {clock.rate:.1f} frames/s "
        "(transformer and decoder; loading and writing not counted)"
    )


class _Clock:
    """Frames, and the seconds that were spent on them."""

    def __init__(self) -> None:
        self.frames, self.seconds, self.first = 0, 0.0, 0.0

    @property
    def rate(self) -> float:
        return self.frames / self.seconds

    def timed(self, chunks: Iterator) -> Iterator:
        """Yields frames (n, H, W, 3) uint8 of every chunk (1, 3, n, H, W), on the CPU."""
        from videoar.data.pixels import to_uint8

        while True:
            started = time.perf_counter()
            chunk = next(chunks, None)
            if chunk is None:
                return
            pixels = to_uint8(chunk)[0].cpu()  # waits for the GPU
            self.seconds += time.perf_counter() - started
            self.frames += len(pixels)
            self.first = self.first or self.seconds
            yield pixels


def _expect_shown(switches: dict[float, str], last: float, frames: int) -> None:
    """Raises ValueError for a prompt that comes too late for any frame."""
    late = max(switches, default=0)
    if late > last:
        expected = f"--at of at most {floor(1000 * last) / 1000:g} s" if last else "no --at"  # said, it must serve
        raise ValueError(f"stream: expected {expected}, the last begin of a unit in {frames} frames, got {late:g} s")


def _switches(at: list[str], seconds: float) -> dict[float, str]:
    """Prompts by the second from which they hold."""
    switches: dict[float, str] = {}
    for said in at:
        time, _, prompt = said.strip().partition(" ")
        try:
            when = float(time)
        except ValueError:
            when = nan
        if isnan(when) or not prompt:
            raise ValueError(f"stream: expected --at SECONDS PROMPT, got {said!r}")
        if not 0 < when < seconds:
            raise ValueError(f"stream: expected --at after 0 s and before the end at {seconds:g} s, got {time}")
        if when in switches:
            raise ValueError(f"stream: expected one prompt for --at {time}, got two")
        switches[when] = prompt.strip()
    return switches
