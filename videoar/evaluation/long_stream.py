"""What becomes of a long stream: memory, time and adherence from its beginning to its end, at batch `streams`.

Windows of 17 frames slide over the stream; each is measured as a clip against its prompt, and against one that differs
from it in every attribute.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.data.captions import Attributes, parse_caption
from videoar.data.measure import measure_batch
from videoar.data.pixels import to_uint8
from videoar.evaluation.adherence import ATTRIBUTES, heldout_prompts
from videoar.evaluation.caption_use import wrong_caption
from videoar.next_unit.pipeline import UnitPipeline

WINDOW = 17  # frames that are measured as one clip
Shares = dict[str, float]


class Stretch(NamedTuple):
    """A part of the stream.

    Attributes:
        first, end: its frames.
        seconds_per_unit: mean, decoding included.
        right: share of windows that begin in it and show the prompt's attribute; none where no window fits.
        wrong_prompt: the same against a prompt that differs in every attribute.
    """

    first: int
    end: int
    seconds_per_unit: float
    right: Shares
    wrong_prompt: Shares


class StreamReport(NamedTuple):
    """A long stream.

    Attributes:
        units: the scheme.
        sampling: all fields of `UnitDefaults`.
        frames: length.
        streams: at once, each with its own prompt.
        memory: resident bytes of the process (on CUDA: allocated there) after so many frames.
        frames_per_second: of one stream times the streams.
        stretches: 100 frames each.
        last: right, over windows within the last 100 frames.
        last_wrong_prompt: its control.
        threads, device: where it ran.
    """

    units: str
    sampling: dict
    frames: int
    streams: int
    memory: dict[int, int]
    frames_per_second: float
    stretches: list[Stretch]
    last: Shares
    last_wrong_prompt: Shares
    threads: int
    device: str

    def to_dict(self) -> dict:
        return {**self._asdict(), "stretches": [stretch._asdict() for stretch in self.stretches]}


def stream_report(
    pipeline: UnitPipeline,
    *,
    frames: int = 2000,
    streams: int = 8,
    seed: int = 0,
    step: int = 4,
    stretch: int = 100,
    marks: Sequence[int] = (100, 1000),
    progress: Callable[[int], object] = lambda _: None,
    **options,
) -> StreamReport:
    """Stream held-out prompts and measure on the way; nothing of the video is kept but the window.

    Args:
        pipeline: trained on sprites.
        frames: length.
        streams: prompts, streamed as one batch.
        seed: of prompts and samples.
        step: frames from one window to the next.
        stretch: frames that are averaged over.
        marks: frames at which memory is read, besides the end.
        progress: told how many frames are done.
        options: fields of `UnitDefaults` to change.

    Raises:
        ValueError: a stream that is shorter than a window.
    """
    if frames < WINDOW:
        raise ValueError(f"stream_report: expected at least {WINDOW} frames, got {frames}")
    pipeline = pipeline.with_options(**options)
    captions = heldout_prompts(streams, seed)
    wanted = [parse_caption(caption) for caption in captions]
    other = [parse_caption(wrong_caption(caption, seed + index)) for index, caption in enumerate(captions)]
    seconds: dict[int, float] = defaultdict(float)
    shown: dict[int, int] = defaultdict(int)
    memory: dict[int, int] = {}
    waiting = sorted({*(mark for mark in marks if mark < frames), frames})

    def timed() -> Iterator[Tensor]:
        chunks = pipeline.stream(captions, frames=frames, seed=[seed * 1_000_003 + i for i in range(streams)])
        done = 0
        while True:
            started = time.perf_counter()
            chunk = next(chunks, None)
            if chunk is None:
                return
            pixels = to_uint8(chunk).cpu()  # waits for the GPU
            seconds[done // stretch] += time.perf_counter() - started
            shown[done // stretch] += pixels.shape[1]
            done += pixels.shape[1]
            while waiting and done >= waiting[0]:
                memory[waiting.pop(0)] = memory_in_use(pipeline.device)
            progress(done)
            yield pixels

    found: dict[int, list[list[Attributes]]] = {}
    for first, window in sliding_windows(timed(), WINDOW, step):
        found[first] = [m.attributes for m in measure_batch(window, wrap=pipeline.defaults.wrap)]
    stretches = []
    for number in sorted(shown):
        inside = [seen for first, seen in found.items() if first // stretch == number]
        units = shown[number] * _units_per_frame(pipeline)
        shares = (_share(inside, against) if inside else {} for against in (wanted, other))
        end = min((number + 1) * stretch, frames)
        stretches.append(Stretch(number * stretch, end, seconds[number] / units, *shares))
    late = [seen for first, seen in found.items() if first >= max(frames - 100, 0)] or [found[max(found)]]
    return StreamReport(
        units=pipeline.defaults.units,
        sampling=vars(pipeline.defaults),
        frames=frames,
        streams=streams,
        memory=memory,
        frames_per_second=frames * streams / sum(seconds.values()),
        stretches=stretches,
        last=_share(late, wanted),
        last_wrong_prompt=_share(late, other),
        threads=torch.get_num_threads(),
        device=str(pipeline.device),
    )


def sliding_windows(chunks: Iterable[Tensor], length: int, step: int) -> Iterator[tuple[int, Tensor]]:
    """Yields (first frame, window (B, length, H, W, 3)), every `step` frames, of a video that comes in chunks."""
    held, first = None, 0  # frame number of the first one held
    for chunk in chunks:
        held = chunk if held is None else torch.cat([held, chunk], dim=1)
        while held.shape[1] >= length:
            yield first, held[:, :length]
            first, held = first + step, held[:, step:]


def memory_in_use(device: torch.device) -> int:
    """Bytes: of the process resident now, on CUDA allocated there; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        found = re.search(r"^VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        return 0
    return int(found.group(1)) * 1024 if found else 0


def _units_per_frame(pipeline: UnitPipeline) -> float:
    """Units that a pixel frame takes, in the long run."""
    layout = pipeline.defaults.layout
    latent = layout.grid[0] * pipeline.transformer.config.patch[0]
    return len(layout.units) / (latent * pipeline.autoencoder.config.time_stride)


def _share(windows: Sequence[Sequence[Attributes]], wanted: Sequence[Attributes]) -> Shares:
    """Of all streams' windows, how many show what their stream is asked for."""
    return {
        name: sum(getattr(s, name) == getattr(w, name) for seen in windows for s, w in zip(seen, wanted, strict=True))
        / (len(windows) * len(wanted))
        for name in ATTRIBUTES
    }
