"""Sampling unit after unit: a few denoising steps, then a clean pass that the cache keeps.

Source: paper U, Sec. 3.4; the steps of Self-Forcing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import count

import torch
from torch import Tensor

from videoar.next_unit.attention import TextKeys
from videoar.next_unit.denoising import SampledUnit, SamplingOptions, unit_noise
from videoar.next_unit.flow import add_noise, clean_from, sampling_levels
from videoar.next_unit.latents import from_sequence
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.prompt_switch import CleanUnits
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.observer import UNOBSERVED, Observer
from videoar.step_graphs import StepRunner, run_eagerly
from videoar_kernels.argument_types import whole


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

    A sample depends on its own prompt and seed alone, on a GPU up to rounding. More than one clip with a window is a
    stream: the time of dropped units is closed up, so neither positions nor memory grow.

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
    decoder = UnitDecoder(model, text, layout, options=options, clips=clips, window=window, sink=sink)
    return decoder.decode(text, seeds=seeds, uncond=uncond)


def clips_of(units: Iterable[SampledUnit], layout: UnitLayout, patch: tuple[int, int, int]) -> Iterator[Tensor]:
    """Latents (B, C, T', H', W') of every clip, as soon as its last unit is there."""
    parts: list[Tensor] = []
    for sampled in units:
        parts.append(sampled.tokens)
        if len(parts) == len(layout.units):
            yield from_sequence(torch.cat(parts, dim=1), layout, patch)
            parts = []


class UnitDecoder:
    """Decodes clips and streams of one shape; every pass over a unit works in place on the same tensors.

    Denoising and clean passes differ in the values of those tensors alone, so a unit needs one CUDA graph for each
    place in the cache (`KVCache.place_key`) and no more. Nothing waits for the device between passes or units.

    Args:
        model: the backbone.
        like: features of the shape, dtype and device that `decode` will get; a prompt may be shorter.
        layout: the units of a clip.
        options: see there.
        clips: how many at most; None: without end, which needs a window.
        window, sink: as in `sample_units`.
        history: units, besides the sink, that `switch` computes anew; None: those of the window.
        run: how steps are run: `run_eagerly`, or `CudaGraphs`, which then belong to this decoder alone.

    Raises:
        ValueError: a stream without end and without a window, or a history that is shorter than the window.
    """

    @torch.inference_mode(False)  # its tensors are written in later calls, which may be outside
    def __init__(
        self,
        model: NextUnitTransformer,
        like: Tensor,
        layout: UnitLayout,
        *,
        options: SamplingOptions | None = None,
        clips: int | None = 1,
        window: int | None = None,
        sink: int = 0,
        history: int | None = None,
        run: StepRunner = run_eagerly,
    ) -> None:
        if clips is None and window is None:
            raise ValueError("sample_units: expected a window for a stream without end, got None")
        if history is not None and (window is None or history < window):
            raise ValueError(f"UnitDecoder: expected a history of at least the window, {window}, got {history}")
        self.model, self.layout, self.options, self.clips, self.run = (
            model,
            layout,
            options or SamplingOptions(),
            clips,
            run,
        )
        config, device, longest = model.config, like.device, max(layout.lengths)
        self.batch = like.shape[0]
        self.copies = 1 if self.options.guidance == 1 else 2  # with the prompt and without it, as one batch
        rows = self.copies * self.batch
        # Latents are not rounded each step, whatever the model computes in.
        wide = torch.promote_types(like.dtype, torch.float32)
        self._x = torch.zeros(self.batch, longest, config.patch_width, dtype=wide, device=device)
        self._noise = torch.zeros_like(self._x)
        self._timesteps = torch.zeros(rows, dtype=torch.float64, device=device)
        self._levels = torch.zeros(2, dtype=torch.float64, device=device)  # of this pass, and of the next
        self._clip_positions = layout.positions(device=device)
        self._positions = torch.zeros(longest, 3, dtype=torch.int64, device=device)
        self._text = like.new_zeros(rows, config.text_len, config.text_width)
        sizes = (rows, config.text_len, config.heads, config.head_dim)
        k, v = (
            tuple(torch.zeros(sizes, dtype=model.dtype, device=device).transpose(1, 2) for _ in range(config.depth))
            for _ in range(2)
        )
        self._keys = TextKeys(k, v)
        relative = window is not None and clips != 1
        self.cache = model.new_cache(layout, rows, window=window, sink=sink, clips=clips or 1, relative=relative)
        self._kept = partial(CleanUnits, layout, sink, window if history is None else history, relative)
        self._clean = self._kept()
        self._noisy = self.options.context_noise > 0
        self._generators: list[torch.Generator] = []
        self.busy = False  # something is being decoded

    def decode(
        self, text: Tensor, *, seeds: Sequence[int], uncond: Tensor | None = None, observer: Observer = UNOBSERVED
    ) -> Iterator[SampledUnit]:
        """Yields unit after unit; arguments as of `sample_units`.

        `observer` sees the part "text", then of every unit "noise", "transformer" for each denoising pass, and "clean".

        Raises:
            RuntimeError: if another clip is not finished.
            ValueError: if seeds and prompts differ in number, guidance lacks `uncond`, or a seed is outside 64 bits.
            TypeError: a seed is no int.
        """
        seeds = [whole("sample_units", "seeds", seed) for seed in seeds]
        if not all(-(1 << 63) <= seed < 1 << 64 for seed in seeds):
            raise ValueError(f"sample_units: expected seeds of 64 bits, got {seeds}")
        if len(seeds) != self.batch or text.shape[0] != self.batch:
            raise ValueError(
                f"sample_units: expected {self.batch} seeds and prompts, got {len(seeds)} and {text.shape[0]}"
            )
        if self.copies > 1 and uncond is None:
            raise ValueError("sample_units: expected features of no prompt (uncond) for guidance, got None")
        return self._decode(text, seeds, uncond, observer)

    @torch.no_grad()
    def _decode(
        self, text: Tensor, seeds: Sequence[int], uncond: Tensor | None, observer: Observer
    ) -> Iterator[SampledUnit]:
        if self.busy:
            raise RuntimeError(
                "UnitDecoder: expected one clip or stream at a time, got a second before the first ended"
            )
        self.busy = True
        try:
            self.cache.reset()
            self._clean = self._kept()
            with observer.part("text"):
                self.read(text, uncond)
            self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            for clip in count() if self.clips is None else range(self.clips):
                for unit in range(len(self.layout.units)):
                    yield self._unit(clip, unit, observer)
        finally:
            self.busy = False

    @torch.no_grad()
    def read(self, text: Tensor, uncond: Tensor | None = None) -> None:
        """Takes another prompt for all later passes; keys and values that are cached stay as they are."""
        for features in (text, uncond) if self.copies == 2 else (text,):
            self.model.check_text(features)
        self._text.zero_()
        for part, features in zip(self._text.chunk(self.copies), (text, uncond), strict=False):
            part[:, : features.shape[1]] = features
        self.run(("text",), self._read)

    @torch.no_grad()
    def switch(self, text: Tensor, uncond: Tensor | None = None) -> None:
        """Goes on under another prompt, under which the clean units that are still seen are computed anew.

        What dropped units left in the keys of deeper layers is gone then; a history of `depth * window` units gives the
        keys that this prompt would have made from the beginning. To be called between two units of `decode`.

        Args:
            text, uncond: as of `decode`.

        Raises:
            RuntimeError: nothing is being decoded. ValueError: another number of prompts.
        """
        if not self.busy:
            raise RuntimeError("UnitDecoder.switch: expected a stream that is being decoded, got none")
        if text.shape[0] != self.batch:
            raise ValueError(f"UnitDecoder.switch: expected {self.batch} prompts, got {text.shape[0]}")
        self.read(text, uncond)
        self.cache.reset()
        for clip, unit, tokens in self._clean.again():
            self._x[:, : tokens.shape[1]] = tokens
            self._place(clip, unit)
            self._keep(unit, self._noises(self._generators, tokens.shape[1], 1)[0] if self._noisy else None)

    def _read(self) -> None:
        found = self.model.encode_text(self._text)
        for kept, new in zip((*self._keys.k, *self._keys.v), (*found.k, *found.v), strict=True):
            kept.copy_(new)

    def _unit(self, clip: int, unit: int, observer: Observer) -> SampledUnit:
        """Denoises a unit, then hands it to the cache."""
        here = slice(0, self.layout.lengths[unit])
        number = clip * len(self.layout.units) + unit
        levels = sampling_levels(self.options.steps, self.options.shift)
        renoise = self.options.method == "renoise"
        with observer.part("noise", frame=number):
            noises = self._noises(self._generators, here.stop, (len(levels) if renoise else 1) + self._noisy)
            self._x[:, here] = noises[0]
        self._place(clip, unit)
        for step, (level, following) in enumerate(zip(levels, (*levels[1:], 0.0), strict=True)):
            with observer.part("transformer", frame=number, scale=step):
                if renoise and following:
                    self._noise[:, here] = noises[step + 1]
                self._pass(unit, level, following)
        with observer.part("clean", frame=number, scale=len(levels)):
            self._keep(unit, noises[-1] if self._noisy else None)
        clean = self._x[:, here].clone()
        self._clean.append(clean)
        return SampledUnit(clip, unit, clean)

    def _keep(self, unit: int, noise: Tensor | None) -> None:
        """The pass for the cache: clean, or with noise (B, n, patch_width), after which the unit is clean again."""
        if noise is None:
            self._pass(unit, 0.0, 0.0)
        else:
            x, level = self._x[:, : noise.shape[1]], self.options.context_noise
            clean = x.clone()
            x.copy_(add_noise(clean, noise, level))
            self._pass(unit, level, level)
            x.copy_(clean)
        self.cache.mark_pending(self.layout.lengths[unit])  # a replayed pass has not told the cache
        self.cache.commit()

    def _noises(self, generators: Sequence[torch.Generator], tokens: int, count: int) -> Tensor:
        """All noise of a unit, `count` times (B, tokens, patch_width), on its way to the device without a wait."""
        like = torch.empty(0, dtype=self._x.dtype, device="cpu")
        noises = [unit_noise(generators, tokens, self.model.config.patch_width, like) for _ in range(count)]
        noises = torch.stack(noises)
        return noises.pin_memory().to(self._x.device, non_blocking=True) if self._x.is_cuda else noises

    def _place(self, clip: int, unit: int) -> None:
        """Positions of a unit, where its passes read them."""
        here, start = self.layout.within(unit), self._clean.start(clip, unit)
        positions = self._positions[: self.layout.lengths[unit]]
        positions.copy_(self._clip_positions[here])
        positions[:, 0] += start
        if self.cache.kv.relative:
            self.cache.kv.place(positions, start=start + self.layout.starts[unit])

    def _pass(self, unit: int, level: float, following: float) -> None:
        """One pass over a unit, from one noise level to the next; from 0 to 0 it stays as it is."""
        self._timesteps.fill_(1000 * level)
        self._levels[0].fill_(level)
        self._levels[1].fill_(following)
        tokens = self.layout.lengths[unit]
        key = (self.layout.units[unit].level, *self.cache.kv.place_key(tokens))
        self.run(key, lambda: self._step(unit, slice(0, tokens)))

    def _step(self, unit: int, here: slice) -> None:
        """What a graph holds; nothing in it may depend on the values of the decoder's tensors."""
        x, (level, following) = self._x[:, here], self._levels.unbind()
        found = self.model.step(
            x.repeat(self.copies, 1, 1), self._timesteps, self._keys, self.layout, unit, self.cache,
            positions=self._positions[here],
        ).to(x.dtype)  # fmt: skip
        if self.copies == 2:
            cond, without = found.chunk(2)
            found = without + self.options.guidance * (cond - without)
        if self.options.method == "euler":
            x.copy_(x + (following - level) * found)
        else:
            x.copy_(add_noise(clean_from(x, found, level), self._noise[:, here], following))
