"""Decoding a video stream frame by frame, each with the time at which it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from PIL import Image

from videoar.data.video_file import VideoError, check_file

_LONGEST_GAP = 600.0  # seconds between frames; a longer one in a shorter file is a damaged timestamp

Size = int | tuple[int, int]


class Moment:
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
            self._pixels = np.asarray(fit(Image.fromarray(np.ascontiguousarray(rgb)), size, aspect))
        return self._pixels


def on_display(path: Path, start: float, fps: float | None) -> Iterator[Moment]:
    """Yields what is shown at start, start + 1 / fps, ... until the end; every frame from start on without fps."""
    shown: Moment | None = None
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


def _decoded_from(path: Path, start: float) -> Iterator[tuple[Moment, float, float]]:
    """Yields frames, at the latest from the one on display at `start`; with the tolerance and end of each."""
    if start > 0:
        with opened(path) as (container, stream):
            frames = _decoded(path, container, stream, seek=start)
            first = next(frames, None)
            # Without a good index FFmpeg may land after the target; then the file is read from its beginning.
            if first is not None and first[0].seconds <= start + first[1]:
                yield first
                yield from frames
                return
    with opened(path) as (container, stream):
        yield from _decoded(path, container, stream)


def _decoded(path: Path, container, stream, seek: float | None = None) -> Iterator[tuple[Moment, float, float]]:
    tick = float(stream.time_base)
    rate = average_rate(stream) or 25.0
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
            origin = next((getattr(frame, stamp) for frame in decoded_frames(path, container, stream)), None)
        try:
            container.seek(max(int(seek / tick), 0) + (stream.start_time or 0), stream=stream, backward=True)
        except (av.FFmpegError, ValueError, OverflowError):
            return
    end: float | None = None
    for frame in decoded_frames(path, container, stream):
        ticks = getattr(frame, stamp)
        if seek is not None and end is None and (ticks is None or origin is None):
            return  # nothing tells where the seek has landed
        origin = ticks if origin is None else origin
        seconds = (ticks - origin) * tick if ticks is not None else end or 0.0
        if end is not None and seconds - end > longest:
            raise VideoError(path, f"is damaged: there is nothing to show from {end:.2f} to {seconds:.2f} seconds")
        end = seconds + (float((frame.duration or 0) * tick) or 1 / rate)
        yield Moment(path, frame, seconds, aspect), tolerance, end
    if end is not None and end < declared - max(3 / rate, 0.02 * declared):
        raise VideoError(path, f"is truncated: it ends after {end:.2f} of {declared:.2f} seconds")


def average_rate(stream) -> float:
    """Returns frames per second as the header says it, 0 where it says nothing."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def decoded_frames(path: Path, container, stream) -> Iterator[av.VideoFrame]:
    """Yields every frame that follows; whatever FFmpeg objects to is a VideoError."""
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
def opened(path: Path):
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


def fit(image: Image.Image, size: Size | None, aspect: float) -> Image.Image:
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
