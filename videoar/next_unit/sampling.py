"""Sampling unit after unit: a few denoising steps, then a clean pass that the cache keeps.

Source: paper U, Sec. 3.4; the steps of Self-Forcing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from videoar.next_unit.flow import add_noise, clean_from, sampling_levels
from videoar.next_unit.latents import from_sequence
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.transformer import NextUnitTransformer, TextKeys
from videoar.next_unit.unit_cache import UnitCache


@dataclass(frozen=True)
class SamplingOptions:
    """How a unit is denoised.

    Args:
        steps: passes before the clean one.
        shift: of the noise levels, see `sampling_levels`.
        method: "renoise": predict the clean unit and add fresh noise of the next level, for distilled models;
            "euler": follow the flow, for models that were trained by flow matching alone.
        guidance: flow = uncond + guidance * (cond - uncond); 1 is none.
    """

    steps: int = 4
    shift: float = 5.0
    method: Literal["renoise", "euler"] = "renoise"
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in ("renoise", "euler"):
            raise ValueError(f"SamplingOptions: expected method 'renoise' or 'euler', got {self.method!r}")
        sampling_levels(self.steps, self.shift)


class SampledUnit(NamedTuple):
    """A finished unit: its clip and number, and its patches (B, n, patch_width), float32 or wider."""

    clip: int
    unit: int
    tokens: Tensor


def sample_units(
    model: NextUnitTransformer,
    text: Tensor,
    layout: UnitLayout,
    *,
    seeds: Sequence[int],
    options: SamplingOptions | None = None,
    uncond: Tensor | None = None,
    clips: int | None = 1,
    window: int | None = None,
    sink: int = 0,
) -> Iterator[SampledUnit]:
    """Yields unit after unit, each as soon as it is clean; clip follows clip in time.

    A sample depends on its own prompt and seed alone. More than one clip with a window is a stream: the time of dropped
    units is closed up, so neither positions nor memory grow.

    Args:
        model: the backbone.
        text: features (B, n, text_width).
        layout: the units of a clip.
        seeds: B seeds.
        options: see there.
        uncond: features of no prompt, like `text`; needed for guidance.
        clips: how many; None: without end, which needs a window.
        window: units before its own that a unit sees; None: all.
        sink: first units of the stream that every unit sees besides.

    Raises:
        ValueError: seeds and prompts differ in number, guidance lacks `uncond`, or an endless stream a window.
    """
    options = options or SamplingOptions()
    if len(seeds) != text.shape[0]:
        raise ValueError(f"sample_units: expected {text.shape[0]} seeds, one for each prompt, got {len(seeds)}")
    if options.guidance != 1 and uncond is None:
        raise ValueError("sample_units: expected features of no prompt (uncond) for guidance, got None")
    if clips is None and window is None:
        raise ValueError("sample_units: expected a window for a stream without end, got None")
    return _units(model, text, layout, seeds, options, uncond, clips, window, sink)


def clips_of(units: Iterable[SampledUnit], layout: UnitLayout, patch: tuple[int, int, int]) -> Iterator[Tensor]:
    """Latents (B, C, T', H', W') of every clip, as soon as its last unit is there."""
    parts: list[Tensor] = []
    for sampled in units:
        parts.append(sampled.tokens)
        if len(parts) == len(layout.units):
            yield from_sequence(torch.cat(parts, dim=1), layout, patch)
            parts = []


def unit_noise(generators: Sequence[torch.Generator], tokens: int, width: int, like: Tensor) -> Tensor:
    """Fresh noise (B, tokens, width), every sample from its own generator on the CPU, so equal on every device."""
    return torch.stack([torch.randn(tokens, width, generator=g) for g in generators]).to(like)


@torch.no_grad()
def _units(
    model: NextUnitTransformer,
    text: Tensor,
    layout: UnitLayout,
    seeds: Sequence[int],
    options: SamplingOptions,
    uncond: Tensor | None,
    clips: int | None,
    window: int | None,
    sink: int,
) -> Iterator[SampledUnit]:
    guided = options.guidance != 1
    keys = model.encode_text(torch.cat([text, uncond]) if guided else text)
    sizes = {"window": window, "sink": sink, "clips": clips or 1, "relative": window is not None and clips != 1}
    cache = model.new_cache(layout, (1 + guided) * len(seeds), **sizes)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    wide = text.new_empty(0, dtype=torch.promote_types(text.dtype, torch.float32))  # latents are not rounded each step
    for clip in count() if clips is None else range(clips):
        for unit, tokens in enumerate(layout.lengths):
            flow = partial(_flow, model, keys, layout, unit, cache, clip * layout.grid[0], options.guidance)
            noise = partial(unit_noise, generators, tokens, model.config.patch_width, wide)
            clean = _denoise(flow, noise, options)
            flow(clean, 0.0)
            cache.commit()
            yield SampledUnit(clip, unit, clean)


def _denoise(flow: Callable[[Tensor, float], Tensor], noise: Callable[[], Tensor], options: SamplingOptions) -> Tensor:
    x = noise()
    levels = sampling_levels(options.steps, options.shift)
    for level, following in zip(levels, (*levels[1:], 0.0), strict=True):
        found = flow(x, level)
        if options.method == "euler":
            x = x + (following - level) * found
        else:
            x = clean_from(x, found, level)
            x = add_noise(x, noise(), following) if following else x
    return x


def _flow(
    model: NextUnitTransformer,
    keys: TextKeys,
    layout: UnitLayout,
    unit: int,
    cache: UnitCache,
    start: int,
    guidance: float,
    x: Tensor,
    level: float,
) -> Tensor:
    copies = 1 if guidance == 1 else 2  # with the prompt, and without it
    timesteps = torch.full((copies * x.shape[0],), 1000 * level, dtype=torch.float64, device=x.device)
    found = model.step(x.repeat(copies, 1, 1), timesteps, keys, layout, unit, cache, start=start).to(x.dtype)
    if copies == 1:
        return found
    cond, without = found.chunk(2)
    return without + guidance * (cond - without)
