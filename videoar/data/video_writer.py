"""Frames to MP4 and GIF files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from torch import Tensor

from videoar.data.video_file import VideoError, replaced_when_done

ENCODERS = ("libx264", "libopenh264", "h264", "mpeg4")  # the first that this FFmpeg has
_GIF_FPS = 50.0  # viewers slow down what is faster
_BT601, _LIMITED = 6, 1


def write_video(path: str | Path, frames: Tensor | np.ndarray | Iterable, fps: float, *, quality: int = 18) -> Path:
    """Writes an MP4 (H.264, 4:2:0) or a GIF, by the suffix of the path; it appears whole or not at all.

    Args:
        path: Ends in .mp4, .m4v, .mov, .mkv or .gif; its folder is made where it is missing.
        frames: uint8 (T, H, W, 3) RGB, or any iterable of (H, W, 3), taken one by one. An odd height or width is
            made even in a video by repeating the last row or column (4:2:0 has no half chroma samples).
        fps: Frames per second.
        quality: H.264's constant rate factor: 0 is lossless but for 4:2:0, 18 hardly visible, 51 worst.

    Returns:
        The path.

    Raises:
        VideoError: An unknown suffix, no encoder, or the file cannot be written.
        ValueError: No frames, frames of different or wrong shapes or dtype, or an fps out of range.
    """
    path = Path(path)
    if not 0 < fps < math.inf:
        raise ValueError(f"write_video: expected fps > 0, got {fps}")
    check_video_path(path)
    with replaced_when_done(path) as temporary:
        if path.suffix.lower() == ".gif":
            _write_gif(temporary, path, _checked(frames), fps)
        else:
            _write_movie(temporary, path, _checked(frames), fps, quality)
    return path


def check_video_path(path: Path) -> None:
    """Raises VideoError for a suffix that no video has, or a folder."""
    if path.suffix.lower() not in (".mp4", ".m4v", ".mov", ".mkv", ".gif"):
        raise VideoError(path, "has a suffix other than .mp4, .m4v, .mov, .mkv and .gif")
    if path.is_dir():
        raise VideoError(path, "is a folder")


def _checked(frames: Tensor | np.ndarray | Iterable) -> Iterator[np.ndarray]:
    """Yields (H, W, 3) uint8 arrays, all of one shape, at least one."""
    shape = None
    for frame in frames:
        array = frame.detach().cpu().numpy() if isinstance(frame, Tensor) else np.asarray(frame)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise ValueError(f"write_video: expected frames (H, W, 3) of uint8, got {array.shape} of {array.dtype}")
        if shape not in (None, array.shape):
            raise ValueError(f"write_video: expected frames of one shape, got {shape} and {array.shape}")
        shape = array.shape
        yield np.ascontiguousarray(array)
    if shape is None:
        raise ValueError("write_video: expected at least one frame, got none")


def _write_movie(temporary: Path, path: Path, frames: Iterator[np.ndarray], fps: float, quality: int) -> None:
    encoder = next((name for name in ENCODERS if _has_encoder(name)), None)
    if encoder is None:
        raise VideoError(path, f"cannot be written: this FFmpeg has none of the encoders {', '.join(ENCODERS)}")
    first = next(frames)
    height, width = first.shape[0] + first.shape[0] % 2, first.shape[1] + first.shape[1] % 2
    try:
        with av.open(str(temporary.absolute()), "w") as container:
            stream = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(60000))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.colorspace, stream.codec_context.color_range = _BT601, _LIMITED
            if encoder == "libx264":
                stream.options = {"crf": str(quality), "preset": "medium"}
            for array in _chain(first, frames):
                padding = ((0, height - array.shape[0]), (0, width - array.shape[1]), (0, 0))
                frame = av.VideoFrame.from_ndarray(np.pad(array, padding, mode="edge"), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be written: {error.strerror}") from error


def _write_gif(temporary: Path, path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    if fps > _GIF_FPS:
        raise VideoError(path, f"a GIF shows at most {_GIF_FPS:g} frames per second, got {fps:g}")
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    ends = [round((i + 1) * 100 / fps) for i in range(len(images))]  # a GIF counts hundredths of a second
    durations = [10 * (end - begin) for begin, end in zip([0, *ends], ends, strict=False)]
    try:
        images[0].save(temporary, save_all=True, append_images=images[1:], duration=durations, loop=0, disposal=1)
    except OSError as error:
        raise VideoError(path, f"cannot be written: {error.strerror or error}") from error


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _has_encoder(name: str) -> bool:
    try:
        return av.codec.Codec(name, "w").is_encoder
    except ValueError:  # PyAV's UnknownCodecError
        return False
