"""How soon a stream follows another prompt: attributes in windows after the switch, under the new prompt and the old.

The new prompt differs from the old one in every attribute. Windows of 17 frames begin at every latent frame from the
switch on; window 0 is the first that holds nothing of before.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.data.captions import Attributes, parse_caption
from videoar.data.measure import measure_batch
from videoar.data.pixels import to_uint8
from videoar.evaluation.adherence import ATTRIBUTES, heldout_prompts
from videoar.evaluation.caption_use import wrong_caption
from videoar.evaluation.long_stream import WINDOW, Shares, sliding_windows
from videoar.next_unit.frames import whole_frames
from videoar.next_unit.pipeline import UnitPipeline


class SwitchReport(NamedTuple):
    """What follows a switch.

    Attributes:
        units: the scheme.
        sampling: all fields of `UnitDefaults`.
        streams: how many, each with its own two prompts.
        before: latent frames before the switch.
        context: latent frames that a unit sees before its own at most: one context length.
        shown_before: share that shows the old prompt's attributes in the last window before the switch.
        new: share that shows the new prompt's, in the window k latent frames after the switch, k = 0, 1, ...
        old: the same for the old prompt's: what has not changed yet.
        within_context: share that shows the new prompt's in the first window after one context length.
        follows_after: median of latent frames after the switch from which on every window shows the attribute; None
            where half of the streams or more never do.
    """

    units: str
    sampling: dict
    streams: int
    before: int
    context: int
    shown_before: Shares
    new: list[Shares]
    old: list[Shares]
    within_context: Shares
    follows_after: dict[str, float | None]

    def to_dict(self) -> dict:
        return self._asdict()


def switch_report(
    pipeline: UnitPipeline,
    *,
    streams: int = 32,
    before: int | None = None,
    contexts: int = 3,
    batch: int = 16,
    seed: int = 0,
    progress: Callable[[int], object] = lambda _: None,
    **options,
) -> SwitchReport:
    """Stream held-out prompts, change them to others, and measure what follows.

    Args:
        pipeline: trained on sprites.
        streams: how many.
        before: latent frames before the switch, where a unit ends them all; two clips if None.
        contexts: context lengths that are watched after it.
        batch: streams at a time.
        seed: of prompts and samples.
        progress: told how many streams are done.
        options: fields of `UnitDefaults` to change.

    Raises:
        ValueError: a switch too early for a window before it, or within a unit, which would come later;
            or contexts < 1.
    """
    pipeline = pipeline.with_options(**options)
    defaults, stride = pipeline.defaults, pipeline.autoencoder.config.time_stride
    before = 2 * pipeline.clip_latents if before is None else before
    start = pipeline.pixel_frames(before)  # the first frame under the new prompt
    if start < WINDOW:
        raise ValueError(f"switch_report: expected at least {WINDOW} frames before the switch, got {start}")
    _check_ends(before, pipeline)
    if contexts < 1:
        raise ValueError(f"switch_report: expected contexts >= 1, got {contexts}")
    context = context_frames(pipeline)
    last = contexts * context  # the last window
    frames = start + stride * last + WINDOW
    captions = heldout_prompts(streams, seed)
    others = [wrong_caption(caption, seed + index) for index, caption in enumerate(captions)]
    wanted, new = [parse_caption(said) for said in captions], [parse_caption(said) for said in others]
    seen: list[list[Attributes]] = [[] for _ in range(last + 2)]  # the window before the switch, then those after it
    for first in range(0, streams, batch):
        here = slice(first, first + batch)
        video = _switched(pipeline, captions[here], others[here], frames, start, seed * 1_000_003 + first)
        windows = {number: window for number, window in sliding_windows([video], WINDOW, 1)}
        for number, begin in enumerate([start - WINDOW, *range(start, start + stride * last + 1, stride)]):
            seen[number] += [m.attributes for m in measure_batch(windows[begin], wrap=defaults.wrap)]
        progress(min(first + batch, streams))
    after = [_shares(window, new) for window in seen[1:]]
    return SwitchReport(
        units=defaults.units,
        sampling=vars(defaults),
        streams=streams,
        before=before,
        context=context,
        shown_before=_shares(seen[0], wanted),
        new=after,
        old=[_shares(window, wanted) for window in seen[1:]],
        within_context=after[context],
        follows_after={name: _follows_after(name, seen[1:], new) for name in ATTRIBUTES},
    )


def _check_ends(before: int, pipeline: UnitPipeline) -> None:
    """Raises ValueError for a number of latent frames after which some unit is half made: the switch would wait."""
    clip, patch = pipeline.clip_latents, pipeline.transformer.config.patch[0]
    ends = [count * patch for count in whole_frames(pipeline.defaults.layout)]
    if before % clip not in (*ends, 0):
        within = ", ".join(map(str, ends))
        raise ValueError(
            f"switch_report: expected before at the end of a unit's frames, {within} latent frames into a clip of "
            f"{clip}, got {before}, which is {before % clip} into one"
        )


def context_frames(pipeline: UnitPipeline) -> int:
    """Latent frames before a unit's own that it sees at most in a stream."""
    layout = pipeline.defaults.layout
    count = len(layout.units)
    window = pipeline.defaults.stream_window
    clips = 1 + -(-window // count)  # whole clips before it that may hold units it sees
    spans = []
    for unit in range(count):
        number = clips * count + unit
        clip, oldest = divmod(max(number - window, 0), count)
        first = clip * layout.grid[0] + layout.starts[oldest]
        spans.append(clips * layout.grid[0] + layout.starts[unit] - first)
    return max(1, max(spans)) * pipeline.transformer.config.patch[0]


def _switched(pipeline: UnitPipeline, captions, others, frames: int, start: int, seed: int) -> Tensor:
    seeds = [seed + index for index in range(len(captions))]
    switches = {start / pipeline.defaults.fps: others}
    return to_uint8(
        torch.cat(list(pipeline.stream(captions, frames=frames, seed=seeds, switches=switches)), dim=2)
    ).cpu()


def _shares(seen: list[Attributes], wanted: list[Attributes]) -> Shares:
    pairs = list(zip(seen, wanted, strict=True))
    return {name: sum(getattr(s, name) == getattr(w, name) for s, w in pairs) / len(pairs) for name in ATTRIBUTES}


def _follows_after(name: str, windows: list[list[Attributes]], wanted: list[Attributes]) -> float | None:
    after = []
    for stream, attributes in enumerate(wanted):
        hits = [getattr(window[stream], name) == getattr(attributes, name) for window in windows]
        missed = [number for number, hit in enumerate(hits) if not hit]
        first = missed[-1] + 1 if missed else 0
        after.append(float(first) if first < len(hits) else float("inf"))
    found = median(after)
    return None if found == float("inf") else found
