"""`videoar stream`: a video of any length from a prompt, written while later frames are computed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from videoar.cli.errors import console, readable_errors
from videoar.cli.models import load_units, prepare
from videoar.cli.options import Context, FrameRate, Guidance, History, Model, Output, Packed, Seed, Sink, Steps, Units


class StreamCommand(TyperCommand):
    """Takes `--at SECONDS PROMPT` as two words, which typer's options cannot."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        joined, rest = [], iter(args)
        for word in rest:
            joined.append(word)
            if word == "--at":
                said = next(rest, "")
                joined.append(said if " " in said else f"{said} {next(rest, '')}")
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

    from videoar.data.video import write_video

    with readable_errors():
        switches = dict(_switch(said) for said in at or [])
        pipeline, _ = load_units(model)
        options = {"units": units, "steps": steps, "guidance": guidance, "window": context, "sink": sink}
        pipeline = pipeline.with_options(**options, history=history, fps=fps)
        prepare(pipeline, precision, prompt, *switches.values())
        frames = round(seconds * pipeline.defaults.fps)
        if frames < 1:
            raise ValueError(f"stream: expected --seconds for at least one frame, got {seconds}")
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


def _switch(said: str) -> tuple[float, str]:
    seconds, _, prompt = said.partition(" ")
    try:
        return float(seconds), prompt.strip()
    except ValueError:
        raise ValueError(f"stream: expected --at SECONDS PROMPT, got {said!r}") from None
