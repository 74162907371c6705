"""`videoar generate`: text, image or video in; MP4 or GIF out."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from videoar.cli.errors import console, readable_errors


class Precision(StrEnum):
    """What a packed transformer computes in."""

    bf16 = "bf16"
    float32 = "float32"

    @property
    def dtype(self):
        import torch

        return torch.bfloat16 if self is Precision.bf16 else torch.float32


def generate(
    prompt: Annotated[str, typer.Argument(help='For the shipped model: "a red circle moving up-left slowly".')] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .mp4 or .gif.")] = Path("out.mp4"),
    image: Annotated[Path | None, typer.Option(help="Begin with this image.")] = None,
    video: Annotated[Path | None, typer.Option(help="Continue this video, from its last frames.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder; the shipped sprites model if not given.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames in all: 1 + a multiple of the time stride.")] = None,
    context_frames: Annotated[int, typer.Option(help="With --video: how many of its last frames to begin with.")] = 5,
    guidance: Annotated[
        float | None, typer.Option(help="Constant guidance; the model's schedule if not given.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the bits; the model's own if not given.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = 0,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Pack the transformer's weights for speed: bf16, or float32. As they are if not given."),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frame rate of the file.")] = None,
) -> None:
    """Generate a video from a prompt, an image or a video."""
    from rich.progress import Progress

    from videoar.data.pixels import to_uint8
    from videoar.data.video import write_video
    from videoar.next_scale.pipeline import VideoPipeline
    from videoar.next_scale.shipped import shipped_model

    with readable_errors():
        if image and video:
            raise ValueError("generate: expected --image or --video, got both")
        folder = model or shipped_model()
        if folder is None:
            raise ValueError("generate: expected --model, because this installation ships no model")
        pipeline = VideoPipeline.from_pretrained(folder)
        if precision is not None:
            pipeline.pack(precision.dtype)
        unknown = getattr(pipeline.conditioner, "unknown", lambda _: [])(prompt)
        if unknown:
            console.print(f"[yellow]the model does not know:[/yellow] {', '.join(unknown)}", highlight=False)
        given = _given(pipeline, image, video, context_frames)
        total = pipeline.defaults.frames if frames is None else frames
        chunks = []
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("generating", total=total)
            started = time.perf_counter()
            for chunk in pipeline.stream(
                [prompt or None],
                video=given,
                frames=total,
                seed=seed,
                guidance=guidance,
                temperature=temperature,
            ):
                chunks.append(to_uint8(chunk)[0])
                progress.advance(task, chunk.shape[2])
            seconds = time.perf_counter() - started
        pixels = [frame for chunk in chunks for frame in chunk]
        write_video(output, pixels, fps or pipeline.defaults.fps)
    typer.echo(
        f"{output}: {len(pixels)} frames in {seconds:.2f} s, {len(pixels) / seconds:.1f} frames/s "
        "(transformer and decoder; loading and writing not counted)"
    )


def _given(pipeline, image: Path | None, video: Path | None, context_frames: int):
    from videoar.data.pixels import from_uint8
    from videoar.data.video import read_image, read_last_frames

    if image is None and video is None:
        return None
    size = pipeline.frame_size
    frames = read_image(image, size=size)[None] if image else read_last_frames(video, context_frames, size=size)
    return from_uint8(frames[None])
