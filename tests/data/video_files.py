"""Small video files of every kind, made on the spot; frame i is a grey of level 4 i, so that it can be recognised."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

CLIPS = Path(__file__).parents[2].parent / "shared" / "clips"
STEP = 4
KINDS = [
    ("libx264", "mp4"),
    ("libx264", "mov"),
    ("libx264", "mkv"),
    ("libx264", "avi"),
    ("libx264", "ts"),
    ("libx264", "flv"),
    ("libx264", "h264"),
    ("mpeg4", "mp4"),
    ("mpeg4", "avi"),
    ("mpeg2video", "mpg"),
    ("libvpx", "webm"),
]


def grey_frames(count: int, height: int = 48, width: int = 64) -> Tensor:
    """uint8 (count, height, width, 3)."""
    return (
        (torch.arange(count) * STEP).to(torch.uint8)[:, None, None, None].expand(count, height, width, 3).contiguous()
    )


def numbers(frames: Tensor) -> list[int]:
    """Which frame each one is."""
    return (frames.double().mean(dim=(1, 2, 3)) / STEP).round().long().tolist()


def make_video(
    path: Path,
    frames: Tensor | int = 30,
    *,
    codec: str = "libx264",
    fps: int = 25,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (48, 64),
    gop: int = 8,
    b_frames: int = 2,
    audio: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write frames with PyAV; `times` in seconds makes the rate variable, `audio` adds a second of silence."""
    frames = grey_frames(frames, *size) if isinstance(frames, int) else frames
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.gop_size, stream.max_b_frames = gop, b_frames
        stream.options = options or {}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = _add_audio(container, audio) if audio else None
        for i, pixels in enumerate(frames.numpy()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _write_silence(container, sound)
    return path


def make_audio(path: Path, codec: str) -> Path:
    with av.open(str(path), "w") as container:
        _write_silence(container, _add_audio(container, codec))
    return path


def _add_audio(container, codec: str):
    stream = container.add_stream(codec, rate=8000)
    stream.layout = "mono"
    return stream


def _write_silence(container, stream) -> None:
    layout = "fltp" if stream.codec_context.name == "aac" else "s16"
    for start in range(0, 8000, 1000):
        dtype = np.float32 if layout == "fltp" else np.int16
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), dtype), format=layout, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def close(numbers: list[int], expected: list[int]) -> bool:
    """Lossy codecs move a grey by a level or two of the four between frames."""
    return len(numbers) == len(expected) and all(abs(a - b) <= 1 for a, b in zip(numbers, expected, strict=True))
