"""A clip in eager PyTorch alone: what `videoar profile --compare eager` runs beside ours.

The transformer's eager twin, bits drawn by `torch.rand`, the pyramid by `F.interpolate` and adaptive pooling, the same
tokenizer. Nothing of videoar_kernels runs in its steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.next_scale.config import TransformerConfig
from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.pipeline import VideoPipeline
from videoar.next_scale.sampling import decoding_cache
from videoar.next_scale.transformer import NextScaleTransformer
from videoar.observer import UNOBSERVED, Observer
from videoar.profiling.eager_model import EagerTransformer
from videoar.text import Prompt


class EagerClip:
    """Generates as `VideoPipeline.stream` does, without this library's kernels.

    Args:
        pipeline: gives the conditioner, the tokenizer and the defaults.
        twin: the transformer's twin.
    """

    def __init__(self, pipeline: VideoPipeline, twin: EagerTransformer) -> None:
        self.pipeline, self.twin = pipeline, twin

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[Prompt],
        *,
        latent_frames: int,
        guidance: GuidanceSchedule,
        decode: bool = True,
        observer: Observer = UNOBSERVED,
    ) -> Iterator[Tensor]:
        """Yields pixels (B, 3, n, H, W) of every latent frame, or its sum of codes (B, H, W, d) without `decode`."""
        config, tokenizer, twin = self.twin.config, self.pipeline.tokenizer, self.twin
        scales, count, dtype = list(config.scales), len(prompts), twin.start.dtype
        copies = 1 if guidance.is_one else 2
        with observer.part("text"):
            text = self.pipeline.conditioner(prompts)
            if copies == 2:
                text = torch.cat([text, self.pipeline.conditioner([None]).expand(count, -1, -1)])
            text = text.to(dtype)
        with observer.part("prefill"):
            cache = twin.prefill(text)
        state, previous = None, text.new_zeros(count, *scales[-1], config.bits, dtype=torch.float32)
        for frame in range(latent_frames):
            total = torch.zeros_like(previous)
            for scale, size in enumerate(scales):
                with observer.part("sampling", frame=frame, scale=scale):
                    context = down(previous, size).repeat(copies, 1, 1).to(dtype)
                    inputs = (down(total, size) if scale else down(previous, size)).repeat(copies, 1, 1).to(dtype)
                with observer.part("transformer", frame=frame, scale=scale):
                    logits = twin.step(text, inputs, context, cache, frame=frame, scale=scale)
                with observer.part("sampling", frame=frame, scale=scale):
                    strength = guidance.at(frame, scale, latent_frames, len(scales))
                    bits = draw(logits.float(), copies, strength, self.pipeline.defaults.temperature)
                    total = total + up((bits.float() * 2 - 1) * config.bits**-0.5, size, scales[-1])
            if decode:
                with observer.part("decode", frame=frame):
                    chunk = tokenizer.decode_chunk(total[:, None], state)
                    state = chunk.state
                    pixels = chunk.video.clamp(-1, 1)
            yield pixels if decode else total
            previous = total


def draw(logits: Tensor, copies: int, strength: float, temperature: float) -> Tensor:
    """Guided bits, bool (B, n, d)."""
    if copies == 2:
        cond, uncond = logits.chunk(2)
        logits = uncond + strength * (cond - uncond)
    if temperature == 0:
        return logits > 0
    return torch.rand_like(logits) < torch.sigmoid(logits / temperature)


def down(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Area-resamples x (B, H, W, d) to the tokens of a scale (B, h * w, d)."""
    return F.adaptive_avg_pool2d(x.movedim(-1, 1), size).flatten(2).transpose(1, 2)


def up(x: Tensor, size: tuple[int, int], full: tuple[int, int]) -> Tensor:
    """Bilinearly resamples the tokens of a scale (B, h * w, d) to (B, H, W, d)."""
    x = x.transpose(1, 2).unflatten(-1, size)
    return F.interpolate(x, full, mode="bilinear", align_corners=False).movedim(1, -1)


@torch.no_grad()
def disagreement(ours: NextScaleTransformer, twin: EagerTransformer, text: Tensor, frames: int) -> float:
    """Root mean square difference of the logits of a clip's first steps, in units of the twin's own.

    Both get the same random inputs: all of the first frame and, in a clip of several, half of the second.

    Args:
        ours, twin: the transformer, packed or not, and its twin.
        text: features (R, text_len, text_width).
        frames: latent frames of the clip.
    """
    config, wide = ours.config, twin.start.dtype
    cache, past = decoding_cache(ours, text.to(ours.dtype), frames), twin.prefill(text.to(wide))
    ours.prefill(text.to(ours.dtype), cache)
    cache.commit()
    steps = [(frame, scale) for frame in range(frames) for scale in range(len(config.scales))]
    worst = 0.0
    for frame, scale in steps[: len(config.scales) + len(config.scales) // 2]:
        inputs, context = (random_input(config, scale, text) for _ in range(2))
        found = ours.step(text.to(ours.dtype), inputs, context, cache, frame=frame, scale=scale).float()
        cache.commit(close=scale == len(config.scales) - 1)
        expected = twin.step(text.to(wide), inputs.to(wide), context.to(wide), past, frame=frame, scale=scale).float()
        error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        worst = max(worst, float(error))
    return worst


def random_input(config: TransformerConfig, scale: int, text: Tensor) -> Tensor:
    """What a step may see at its input, the same in every row: (R, h * w, d)."""
    height, width = config.scales[scale]
    one = torch.randn(1, height * width, config.bits, device=text.device)
    return (one * config.bits**-0.5).expand(text.shape[0], -1, -1)
