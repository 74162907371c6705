"""Video and image files to uint8 frames, and back.

Frames are chosen by their timestamps: the frame for time t is the one on display at t, as a player would show it, so
files of variable rate come out right. Decoding streams; no more than the frames asked for are ever held.
Whatever is wrong with a file is a `VideoError` that names it; whatever is written appears whole or not at all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from videoar.data.video_file import VideoError, check_file
from videoar.data.video_writer import write_video

__all__ = [
    "IMAGE_SUFFIXES",
    "VideoClip",
    "VideoError",
    "VideoInfo",
    "probe_video",
    "read_image",
    "read_last_frames",
    "read_video",
    "write_video",
]

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"))

_LONGEST_GAP = 600.0  # seconds between frames; a longer one in a shorter file is a damaged timestamp

Size = int | tuple[int, int]


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
    for moment in _on_display(path, start, fps):
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
        last = deque(_on_display(path, start, None), maxlen=frames)
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
            return torch.from_numpy(np.array(_fit(image, size, 1.0)))
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
    with _opened(path) as (container, stream):
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        return VideoInfo(stream.height, stream.width, _rate(stream), max(seconds, 0.0))


class _Moment:
    """A decoded frame and when it is shown, in seconds after the first; converted to RGB when it is needed."""

    def __init__(self, path: Path, frame: av.VideoFrame, seconds: float, aspect: float) -> None:
        self.path, self.frame, self.seconds = path, frame, seconds
        self.aspect = aspect  # width of a stored pixel over its height
        self._pixels: np.ndarray | None = None

    def pixels(self, size: Size | None) -> np.ndarray:
        """Returns uint8 (H, W, 3), upright and with square pixels."""
        if self._pixels is None:
            if self.frame.is_corrupt:
                raise VideoError(self.path, f"is damaged at {self.seconds:.2f} seconds")
            with _ffmpeg_errors(self.path):
                rgb = self.frame.to_ndarray(format="rgb24")
                turns = round(self.frame.rotation / 90) % 4  # counter-clockwise
            aspect = 1 / self.aspect if turns % 2 else self.aspect
            rgb = np.rot90(rgb, turns)
            self._pixels = np.asarray(_fit(Image.fromarray(np.ascontiguousarray(rgb)), size, aspect))
        return self._pixels


def _on_display(path: Path, start: float, fps: float | None) -> Iterator[_Moment]:
    """Yields what is shown at start, start + 1 / fps, ... until the end; every frame from start on without fps."""
    shown: _Moment | None = None
    count, end = 0, 0.0
    for moment, tolerance, moment_end in _decoded_from(path, start):
        if fps is None:
            if start == 0 or moment.seconds >= start - tolerance:
                yield moment
            continue
        end = moment_end
        while start + count / fps < moment.seconds - tolerance:
            yield shown or moment
            count += 1
        shown = moment
    while fps is not None and shown is not None and start + count / fps < end - 1e-6:
        yield shown
        count += 1


def _decoded_from(path: Path, start: float) -> Iterator[tuple[_Moment, float, float]]:
    """Yields frames, at the latest from the one on display at `start`; with the tolerance and end of each."""
    if start > 0:
        with _opened(path) as (container, stream):
            frames = _decoded(path, container, stream, seek=start)
            first = next(frames, None)
            # Without a good index FFmpeg may land after the target; then the file is read from its beginning.
            if first is not None and first[0].seconds <= start:
                yield first
                yield from frames
                return
    with _opened(path) as (container, stream):
        yield from _decoded(path, container, stream)


def _decoded(path: Path, container, stream, seek: float | None = None) -> Iterator[tuple[_Moment, float, float]]:
    tick = float(stream.time_base)
    rate = _rate(stream) or 25.0
    aspect = float(stream.sample_aspect_ratio or 1)
    # Timestamps are rounded to ticks of the file; a frame that is late by less counts as on time.
    tolerance = min(tick / 2, 1e-3) + 1e-6
    # AVI has decoding times only, which FFmpeg hands on as if they were presentation times.
    stamp = "dts" if container.format.name == "avi" else "pts"
    declared = float(stream.duration * tick) if stream.duration else 0.0
    longest = max(declared, (container.duration or 0) / 1e6, _LONGEST_GAP)
    origin = stream.start_time if stamp == "pts" else None
    if seek is not None:
        if origin is None:
            origin = next((getattr(frame, stamp) for frame in _frames(path, container, stream)), None)
        try:
            container.seek(max(int(seek / tick), 0) + (stream.start_time or 0), stream=stream, backward=True)
        except (av.FFmpegError, ValueError, OverflowError):
            return
    end: float | None = None
    for frame in _frames(path, container, stream):
        ticks = getattr(frame, stamp)
        if seek is not None and end is None and (ticks is None or origin is None):
            return  # nothing tells where the seek has landed
        origin = ticks if origin is None else origin
        seconds = (ticks - origin) * tick if ticks is not None else end or 0.0
        if end is not None and seconds - end > longest:
            raise VideoError(path, f"is damaged: there is nothing to show from {end:.2f} to {seconds:.2f} seconds")
        end = seconds + (float((frame.duration or 0) * tick) or 1 / rate)
        yield _Moment(path, frame, seconds, aspect), tolerance, end
    if end is not None and end < declared - max(3 / rate, 0.02 * declared):
        raise VideoError(path, f"is truncated: it ends after {end:.2f} of {declared:.2f} seconds")


def _average_rate(path: Path, times: list[float]) -> float:
    """Returns the rate of the frames at these times, as the header says it where the two agree."""
    declared = probe_video(path).fps
    if len(times) < 2 or times[-1] <= times[0]:
        return declared
    measured = (len(times) - 1) / (times[-1] - times[0])
    return declared if abs(measured - declared) < 0.05 * declared else measured


def _rate(stream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0)


def _frames(path: Path, container, stream) -> Iterator[av.VideoFrame]:
    with _ffmpeg_errors(path):
        packets = iter(container.demux(stream))
    while True:
        with _ffmpeg_errors(path):
            packet = next(packets, None)
            if packet is None:
                return
            if packet.is_corrupt:
                raise VideoError(path, "is damaged or truncated")
            frames = packet.decode()
        yield from frames


@contextmanager
def _opened(path: Path):
    """Yields the container and its first video stream."""
    check_file(path)
    with _ffmpeg_errors(path):
        container = av.open(str(path.absolute()), metadata_errors="ignore", options={"protocol_whitelist": "file"})
    try:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise VideoError(path, "has no video stream")
        if streams[0].codec_context is None:
            raise VideoError(path, "has a codec that this FFmpeg cannot decode")
        yield container, streams[0]
    finally:
        container.close()


@contextmanager
def _ffmpeg_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except VideoError:
        raise
    except (av.FFmpegError, ValueError, OverflowError, MemoryError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(path, f"cannot be decoded: {reason}") from error


def _fit(image: Image.Image, size: Size | None, aspect: float) -> Image.Image:
    """Scales and crops to `size`; `aspect` is the width of a stored pixel over its height."""
    if size is None:
        return image if aspect == 1 else image.resize((max(round(image.width * aspect), 1), image.height))
    height, width = (size, size) if isinstance(size, int) else size
    if image.size == (width, height) and aspect == 1:
        return image
    shape = width / height / aspect  # of the crop, in stored pixels
    crop_width, crop_height = min(image.width, image.height * shape), min(image.height, image.width / shape)
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    box = (left, top, left + crop_width, top + crop_height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _stack(path: Path, pixels: list[np.ndarray]) -> Tensor:
    if len({p.shape for p in pixels}) > 1:
        raise VideoError(path, "changes its frame size midway; read it with a size")
    return torch.from_numpy(np.stack(pixels))
