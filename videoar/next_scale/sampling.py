"""Causal decoding over (frame, scale) with a KV cache. Source: paper S, Sec. 4.2 and App. A."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.transformer import NextScaleTransformer
from videoar.observer import UNOBSERVED, Observer
from videoar.step_graphs import StepRunner, run_eagerly
from videoar_kernels import KVCache, pyramid_resample, pyramid_step, sample_bits
from videoar_kernels.argument_types import whole


class DecodedFrame(NamedTuple):
    """One latent frame: packed bits (B, N, ceil(d / 8)) and what the tokenizer decodes (B, H, W, d)."""

    bits: Tensor
    total: Tensor


def decode_frames(
    transformer: NextScaleTransformer,
    text: Tensor,
    *,
    frames: int,
    seeds: Sequence[int],
    uncond: Tensor | None = None,
    guidance: GuidanceSchedule | None = None,
    temperature: float = 1.0,
    given: Tensor | None = None,
) -> Iterator[DecodedFrame]:
    """Yield latent frames one after another, each as soon as its last scale is drawn.

    A sample depends on its own prompt and seed, and on the CPU on nothing else in the batch. On a GPU matrix products
    are rounded otherwise in another batch, which may move a bit whose draw falls upon its probability.

    Args:
        transformer: the model.
        text: conditioner features (B, text_len, text_width).
        frames: latent frames in all, the given ones included.
        seeds: B seeds.
        uncond: features of no condition, like `text`; needed for guidance.
        guidance: schedule; None is no guidance.
        temperature: of the bits; 0 is greedy.
        given: packed bits of the first frames (B, F, N, ceil(d / 8)): image-to-video and continuation.

    Raises:
        ValueError: if seeds and prompts differ in number, or guidance lacks `uncond`.
    """
    decoder = FrameDecoder(transformer, text, frames=frames, guidance=guidance, temperature=temperature)
    return decoder.decode(text, seeds=seeds, uncond=uncond, given=given)


class FrameDecoder:
    """Decodes batches of clips of one shape; every step works in place on the same tensors.

    Args:
        transformer: the model.
        like: features of the shape, dtype and device that `decode` will get.
        frames: latent frames of a clip.
        guidance: schedule; None is no guidance.
        temperature: of the bits; 0 is greedy.
        run: how steps are run: `run_eagerly`, or `CudaGraphs`, which then belong to this decoder alone.
    """

    @torch.inference_mode(False)  # its tensors are written in later calls, which may be outside
    def __init__(
        self,
        transformer: NextScaleTransformer,
        like: Tensor,
        *,
        frames: int,
        guidance: GuidanceSchedule | None = None,
        temperature: float = 1.0,
        run: StepRunner = run_eagerly,
    ) -> None:
        config = transformer.config
        self.transformer, self.frames, self.temperature, self.run = transformer, frames, temperature, run
        self.guidance = guidance or GuidanceSchedule()
        self.scales, self.layout = list(config.scales), transformer.layout(frames)
        self.batch = like.shape[0]
        self.copies = 1 if self.guidance.is_one else 2  # conditional and not, as one batch
        height, width = self.scales[-1]
        tokens = (self.batch, config.tokens_per_frame)
        # What is known so far adds up in float32, whatever the transformer computes in.
        wide = torch.promote_types(like.dtype, torch.float32)
        self._prompt = like.new_empty(self.copies * self.batch, *like.shape[1:])
        self._seeds = torch.zeros(self.batch, dtype=torch.int64, device=like.device)
        self._total = like.new_zeros(self.batch, height, width, config.bits, dtype=wide)
        self._previous = torch.zeros_like(self._total)
        self._resampled = like.new_zeros(*tokens, config.bits, dtype=wide)  # the frame before, at every scale
        self._inputs = torch.zeros_like(self._resampled)  # what is known before a scale is drawn
        self._bits = like.new_zeros(*tokens, (config.bits + 7) // 8, dtype=torch.uint8)
        self._cache = decoding_cache(transformer, self._prompt, frames)
        # A graph knows addresses alone: all that its steps read is held here.
        self._positions = self.layout.positions_on(like.device)
        self._whole = self._inside = UNOBSERVED
        self.busy = False  # a clip is being decoded

    @torch.no_grad()
    def decode(
        self,
        text: Tensor,
        *,
        seeds: Sequence[int],
        uncond: Tensor | None = None,
        given: Tensor | None = None,
        observer: Observer = UNOBSERVED,
    ) -> Iterator[DecodedFrame]:
        """Yield latent frames; arguments as of `decode_frames`.

        `observer` sees the part "prefill", then "transformer" and "sampling", or "step" where graphs replay whole ones.

        Raises:
            RuntimeError: if another clip is not finished.
            ValueError: if seeds and prompts differ in number, or guidance lacks `uncond`. TypeError: a seed is no int.
        """
        if self.busy:
            raise RuntimeError("FrameDecoder: expected one clip at a time, got a second while the first is decoded")
        self.busy = True
        eager = self.run is run_eagerly
        self._whole, self._inside = (UNOBSERVED, observer) if eager else (observer, UNOBSERVED)
        try:
            self._begin(text, seeds, uncond)
            with observer.part("prefill"):
                tokens = self._prompt.shape[1]
                self._run_step(("text",), self._prefill, tokens, True)
            yield from self._frames(given)
        finally:
            self.busy = False

    def _frames(self, given: Tensor | None) -> Iterator[DecodedFrame]:
        for frame in range(self.frames):
            for scale in range(len(self.scales)):
                here = self.layout.within_frame(scale)
                known = given is not None and frame < given.shape[1]
                if known:
                    self._bits[:, here] = given[:, frame, here]
                with self._whole.part("step", frame=frame, scale=scale):
                    self._run_step(
                        (frame, scale, known),
                        lambda frame=frame, scale=scale, known=known: self._step(frame, scale, known),
                        here.stop - here.start,
                        scale == len(self.scales) - 1,
                    )
            yield DecodedFrame(self._bits.clone(), self._total.clone())

    def _begin(self, text: Tensor, seeds: Sequence[int], uncond: Tensor | None) -> None:
        seeds = [whole("decode_frames", "seeds", seed) for seed in seeds]
        if len(seeds) != self.batch or not all(0 <= seed < 1 << 64 for seed in seeds):
            raise ValueError(f"decode_frames: expected {self.batch} seeds within [0, 2**64), got {seeds}")
        if self.copies > 1 and uncond is None:
            raise ValueError("decode_frames: expected features of no condition (uncond) for guidance, got None")
        self._prompt.copy_(text if self.copies == 1 else torch.cat([text, uncond]))
        signed = [seed - (1 << 64) if seed >= 1 << 63 else seed for seed in seeds]
        self._seeds.copy_(torch.tensor(signed))
        self._total.zero_()
        self._cache.reset()

    def _run_step(self, key: tuple, step, tokens: int, close: bool) -> None:
        self.run(key, step)
        self._cache.mark_pending(tokens)  # a replayed step has not told the cache
        self._cache.commit(close=close)

    def _prefill(self) -> None:
        self.transformer.prefill(self._prompt, self._cache, self._positions)

    def _step(self, frame: int, scale: int, known: bool) -> None:
        """One (frame, scale) on the decoder's tensors; nothing here may depend on their values."""
        if scale == 0:
            with self._inside.part("sampling", frame=frame, scale=0):
                self._previous.copy_(self._total)
                self._total.zero_()
                self._resampled.copy_(pyramid_resample(self._previous[:, None], self.scales)[:, 0])
                here = self.layout.within_frame(0)
                self._inputs[:, here] = self._resampled[:, here]
        with self._inside.part("transformer", frame=frame, scale=scale):
            logits = self._logits(frame, scale)
        with self._inside.part("sampling", frame=frame, scale=scale):
            self._draw(logits, frame, scale, known)

    def _logits(self, frame: int, scale: int) -> Tensor:
        here, copies = self.layout.within_frame(scale), self.copies
        inputs = self._inputs[:, here].repeat(copies, 1, 1)
        context = None if self.transformer.context is None else self._resampled[:, here].repeat(copies, 1, 1)
        options = {"frame": frame, "scale": scale, "positions": self._positions}
        return self.transformer.step(self._prompt, inputs, context, self._cache, **options)

    def _draw(self, logits: Tensor, frame: int, scale: int, known: bool) -> None:
        """The bits of a scale, unless they are known, into the sum and the next scale's input."""
        here = self.layout.within_frame(scale)
        if not known:
            cond, uncond = (logits, None) if self.copies == 1 else logits.chunk(2)
            self._bits[:, here] = sample_bits(
                cond,
                uncond=uncond,
                guidance=self.guidance.at(frame, scale, self.frames, len(self.scales)),
                temperature=self.temperature,
                seed=self._seeds,
                offset=frame * len(self.scales) + scale,
            ).bits
        following = self.scales[scale + 1] if scale + 1 < len(self.scales) else None
        total, inputs = pyramid_step(self._total, self._bits[:, here], self.scales[scale], following)
        self._total.copy_(total)
        if following is not None:
            self._inputs[:, self.layout.within_frame(scale + 1)] = inputs


def decoding_cache(transformer: NextScaleTransformer, text: Tensor, frames: int) -> KVCache:
    """An empty cache for `frames` frames after the text, or for the window where the model has one."""
    config = transformer.config
    seen = frames if config.window is None else min(frames, config.window + 1)
    return KVCache(
        config.depth,
        text.shape[0],
        config.key_heads,
        config.text_len + seen * config.tokens_per_frame,
        config.head_dim,
        sink=config.text_len,
        window=None if config.window is None else config.window * config.tokens_per_frame,
        dtype=text.dtype,
        device=text.device,
    )
