"""Video and image files to uint8 frames, and back.

Frames are chosen by their timestamps: the frame for time t is the one on display at t, as a player would show it, so
files of variable rate come out right. Decoding streams; no more than the frames asked for are ever held.
Whatever is wrong with a file is a `VideoError` that names it; whatever is written appears whole or not at all.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from videoar.data.video_decoder import Size, average_rate, fit, on_display, opened
from videoar.data.video_file import VideoError, check_file
from videoar.data.video_writer import check_video_path, write_video

__all__ = [
    "IMAGE_SUFFIXES",
    "VideoClip",
    "VideoError",
    "VideoInfo",
    "check_video_path",
    "probe_video",
    "read_image",
    "read_last_frames",
    "read_video",
    "write_video",
]

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"))


class VideoClip(NamedTuple):
    """Frames (T, H, W, 3) uint8 RGB and how many of them make a second (0 for a still image)."""

    frames: Tensor
    fps: float


class VideoInfo(NamedTuple):
    """What the header of a file says; 0 where it says nothing."""

    height: int  # pixels, as stored
    width: int
    fps: float  # average
    seconds: float


def read_video(
    path: str | Path,
    frames: int | None = None,
    *,
    size: Size | None = None,
    fps: float | None = None,
    start: float = 0.0,
) -> VideoClip:
    """Reads frames of a video, or an image as a video of one frame.

    Args:
        path: A file in any format and codec that FFmpeg or Pillow reads.
        frames: At most so many; None: all from `start` on.
        size: Height and width in pixels (one number: a square): scaled to cover it with an antialiasing filter, and
            cropped at the centre. None: as stored.
        fps: Take the frames on display at start, start + 1 / fps, ... None: every frame as stored.
        start: Seconds after the first frame.

    Returns:
        The frames, fewer than asked for where the file ends; `fps` is the one asked for, or the file's average.

    Raises:
        VideoError: The file is missing, empty, corrupt, truncated, has no video stream, or ends before `start`.
        ValueError: An argument is out of range.
    """
    path = Path(path)
    if (frames is not None and frames < 1) or (fps is not None and not fps > 0) or not 0 <= start < math.inf:
        raise ValueError(
            f"read_video: expected frames >= 1, fps > 0, start >= 0, got frames={frames}, fps={fps}, start={start}"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return VideoClip(read_image(path, size=size)[None], fps or 0.0)
    pixels: list[np.ndarray] = []
    times: list[float] = []
    for moment in on_display(path, start, fps):
        pixels.append(moment.pixels(size))
        times.append(moment.seconds)
        if len(pixels) == frames:
            break
    if not pixels:
        raise VideoError(path, f"ends before {start:g} seconds" if start else "has no frame that can be decoded")
    return VideoClip(_stack(path, pixels), fps or _average_rate(path, times))


def read_last_frames(path: str | Path, frames: int, *, size: Size | None = None) -> Tensor:
    """Reads the last frames of a video, for a continuation.

    Args:
        path: As in `read_video`.
        frames: How many.
        size: As in `read_video`.

    Returns:
        uint8 (T, H, W, 3); T < frames where the file has fewer.

    Raises:
        VideoError: As in `read_video`.
    """
    path = Path(path)
    if frames < 1:
        raise ValueError(f"read_last_frames: expected frames >= 1, got {frames}")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return read_image(path, size=size)[None]
    info = probe_video(path)
    tail = frames / info.fps + 2.0 if info.fps else math.inf  # 2 seconds against inexact durations
    for start in (max(info.seconds - tail, 0.0), 0.0):
        last = deque(on_display(path, start, None), maxlen=frames)
        if len(last) == frames or start == 0:
            break
    if not last:
        raise VideoError(path, "has no frame that can be decoded")
    return _stack(path, [moment.pixels(size) for moment in last])


def read_image(path: str | Path, *, size: Size | None = None) -> Tensor:
    """Reads an image as uint8 (H, W, 3) RGB, turned upright; `size` as in `read_video`.

    Raises:
        VideoError: The file is missing, empty, corrupt or no image.
    """
    path = check_file(Path(path))
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
            return torch.from_numpy(np.array(fit(image, size, 1.0)))
    except UnidentifiedImageError:
        raise VideoError(path, "is not an image that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise VideoError(path, f"cannot be decoded: {error}") from error


def probe_video(path: str | Path) -> VideoInfo:
    """Reads the header of a video or an image, without decoding it.

    Raises:
        VideoError: The file is missing, empty, no video, or has no video stream.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        check_file(path)
        try:
            with Image.open(path) as image:
                return VideoInfo(image.height, image.width, 0.0, 0.0)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise VideoError(path, f"is not an image that Pillow can read: {error}") from error
    with opened(path) as (container, stream):
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        return VideoInfo(stream.height, stream.width, average_rate(stream), max(seconds, 0.0))


def _average_rate(path: Path, times: list[float]) -> float:
    """Returns the rate of the frames at these times, as the header says it where the two agree."""
    declared = probe_video(path).fps
    if len(times) < 2 or times[-1] <= times[0]:
        return declared
    measured = (len(times) - 1) / (times[-1] - times[0])
    return declared if abs(measured - declared) < 0.05 * declared else measured


def _stack(path: Path, pixels: list[np.ndarray]) -> Tensor:
    if len({p.shape for p in pixels}) > 1:
        raise VideoError(path, "changes its frame size midway; read it with a size")
    return torch.from_numpy(np.stack(pixels))
