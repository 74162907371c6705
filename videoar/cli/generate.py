"""`videoar generate`: text, image or video in; MP4 or GIF out; with a model of either paper."""

from __future__ import annotations

import time
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from videoar.cli.errors import console, expect_file, of_argument, readable_errors
from videoar.cli.models import holds_units, load_pipeline, prepare
from videoar.cli.options import FrameRate, Guidance, Output, Packed, Seed, Steps, Units


def generate(
    prompt: Annotated[str, typer.Argument(help='For the shipped model: "a red circle moving up-left slowly".')] = "",
    output: Output = Path("out.mp4"),
    image: Annotated[Path | None, typer.Option(help="Paper S: begin with this image.")] = None,
    video: Annotated[Path | None, typer.Option(help="Paper S: continue this video, from its last frames.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder of either paper; paper S's shipped model if not given.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames in all; for paper S 1 + a multiple of the time stride.")
    ] = None,
    context_frames: Annotated[
        int | None, typer.Option(help="With --video: how many of its last frames to begin with; 5 if not given.")
    ] = None,
    guidance: Guidance = None,
    temperature: Annotated[
        float | None, typer.Option(help="Paper S: of the bits; the model's own if not given.")
    ] = None,
    units: Units = None,
    steps: Steps = None,
    seed: Seed = 0,
    precision: Packed = None,
    fps: FrameRate = None,
) -> None:
    """Generate a video from a prompt, an image or a video."""
    from rich.progress import Progress

    from videoar.data.pixels import to_uint8
    from videoar.data.video import check_video_path, write_video
    from videoar.next_scale.shipped import shipped_model

    of_scales = {"image": image, "video": video, "context_frames": context_frames, "temperature": temperature}
    of_units = {"units": units, "steps": steps}
    with readable_errors():
        if fps is not None and not 0 < fps < inf:
            raise ValueError(f"generate: expected --fps above 0, got {fps}")
        if image and video:
            raise ValueError("generate: expected --image or --video, got both")
        expect_file("generate", "--output", output)
        with of_argument("--output"):
            check_video_path(output)
        folder = model or shipped_model()
        if folder is None:
            raise ValueError("generate: expected --model, because this installation ships no model")
        _refuse(folder, of_scales if holds_units(folder) else of_units)
        pipeline = load_pipeline(folder)
        prepare(pipeline, precision, prompt)
        options = of_units
        if not holds_units(folder):
            options = {"video": _given(pipeline, image, video, context_frames), "temperature": temperature}
        total = pipeline.frames if frames is None else frames
        chunks = []
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("generating", total=total)
            started = time.perf_counter()
            for chunk in pipeline.stream([prompt or None], frames=total, seed=seed, guidance=guidance, **options):
                chunks.append(to_uint8(chunk)[0])
                progress.advance(task, chunk.shape[2])
            seconds = time.perf_counter() - started
        pixels = [frame for chunk in chunks for frame in chunk]
        write_video(output, pixels, fps or pipeline.defaults.fps)
    typer.echo(
        f"{output}: {len(pixels)} frames in {seconds:.2f} s, {len(pixels) / seconds:.1f} frames/s "
        "(transformer and decoder; loading and writing not counted)"
    )


def _refuse(folder: Path, others: dict) -> None:
    """Raises where options of the other paper were given."""
    if said := [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None]:
        paper = "paper U (next unit)" if holds_units(folder) else "paper S (next scale)"
        raise ValueError(f"generate: expected options of {paper}, as {folder} is, got {', '.join(said)}")


def _given(pipeline, image: Path | None, video: Path | None, context_frames: int | None):
    from videoar.data.pixels import from_uint8
    from videoar.data.video import read_image, read_last_frames

    if image is None and video is None:
        return None
    size, last = pipeline.frame_size, 5 if context_frames is None else context_frames
    frames = read_image(image, size=size)[None] if image else read_last_frames(video, last, size=size)
    return from_uint8(frames[None])
