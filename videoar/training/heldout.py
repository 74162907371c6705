"""What a transformer run is judged by while it trains: whether the caption is used, and whether samples follow it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar.evaluation.adherence import VideoGenerator, text_to_video_adherence
from videoar.evaluation.caption_use import CaptionUse, caption_use
from videoar.next_scale.inputs import teacher_inputs
from videoar.next_scale.pipeline import VideoPipeline
from videoar.training.clips import ClipsConfig
from videoar.training.latents import Encode, LatentBatch, captioned_clips
from videoar_kernels import bit_cross_entropy

_SEED = 3_000_017  # a sequence of clips that no training run starts from


@torch.no_grad()
def heldout_latents(encode: Encode, data: ClipsConfig | None = None, clips: int = 128) -> list[LatentBatch]:
    """Latents and captions of held-out combinations, 16 clips at a time, starting from clip 0 of their own seed.

    Args:
        encode: the frozen encoder.
        data: built-in sprites; the default size if None.
        clips: how many, rounded up to 16.
    """
    draw = captioned_clips(data or ClipsConfig(), 16, _SEED, split="heldout")
    batches = [draw(step) for step in range(-(-clips // 16))]
    return [LatentBatch(encode(video), text) for video, text in batches]


def encoder_of(pipeline: VideoPipeline) -> Encode:
    """The tokenizer of a pipeline as an encoder."""
    return lambda video: pipeline.tokenizer.encode(video.to(pipeline.device))


@torch.no_grad()
def caption_losses(pipeline: VideoPipeline, batches: Sequence[LatentBatch]) -> CaptionUse:
    """Bit loss without flips or hidden frames under the right, a wrong and no caption."""
    transformer = pipeline.transformer

    def loss(latents: Tensor, captions: Sequence[str | None]) -> float:
        teacher = teacher_inputs(latents, transformer.config)
        logits = transformer(pipeline.conditioner(captions), teacher.inputs, teacher.context)
        return float(bit_cross_entropy(logits, teacher.labels).loss)

    return caption_use(loss, batches)


def pipeline_caption_losses(pipeline: VideoPipeline, *, clips: int = 128) -> dict[str, float]:
    """`caption_losses` over held-out sprites: right, wrong, none, and excess = wrong / right - 1."""
    return caption_losses(pipeline, heldout_latents(encoder_of(pipeline), clips=clips))._asdict()


def measured_adherence(pipeline: VideoGenerator, prompts: int, *, wrap: bool = False) -> dict[str, float]:
    """Share of held-out prompts that samples follow, per attribute; `wrap` as in `score`."""
    found = text_to_video_adherence(pipeline, prompts=prompts, wrap=wrap)
    return {**found.right, "colour_kept": found.colour_kept, "shape_kept": found.shape_kept}
