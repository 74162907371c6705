"""What a transformer run is judged by while it trains: whether the caption is used, and whether samples follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from videoar.data.captions import VOCABULARY, Attributes, caption_of, parse_caption
from videoar.evaluation.adherence import text_to_video_adherence
from videoar.next_scale.inputs import teacher_inputs
from videoar.next_scale.pipeline import VideoPipeline
from videoar.tokenizer import VideoTokenizer
from videoar.training.clips import ClipsConfig
from videoar.training.latents import captioned_clips

if TYPE_CHECKING:
    from videoar.training.transformer import TransformerObjective

_SEED = 3_000_017  # a sequence of clips that no training run starts from


@dataclass(frozen=True)
class HeldOut:
    """Clips of held-out combinations: latents (B, T, H, W, d), their captions and wrong ones."""

    latents: Tensor
    right: list[str]
    wrong: list[str]

    @classmethod
    @torch.no_grad()
    def draw(cls, tokenizer: VideoTokenizer, data: ClipsConfig, clips: int = 128) -> HeldOut:
        """Encode held-out clips; a folder's clips, which have no captions, come from the training data."""
        video, captions = captioned_clips(data, clips, _SEED, split="heldout")(0)
        device = next(tokenizer.parameters()).device
        latents = torch.cat([tokenizer.encode(part.to(device)) for part in video.split(16)])
        wrong = [wrong_caption(caption) if caption else caption for caption in captions]
        return cls(latents, captions, wrong)


def wrong_caption(caption: str) -> str:
    """A caption of the built-in data that is wrong about every attribute."""
    found = parse_caption(caption)
    shifted = []
    for name, value in zip(VOCABULARY, found, strict=True):
        words = VOCABULARY[name]
        shifted.append(words[(words.index(value) + (len(words) // 2)) % len(words)])
    return caption_of(Attributes(*shifted))


@torch.no_grad()
def caption_losses(objective: TransformerObjective, heldout: HeldOut, *, batch: int = 32) -> dict[str, float]:
    """Loss without flips or hidden frames under the right, a wrong and no caption; wrong over right as a ratio."""
    prompts = {"right": heldout.right, "wrong": heldout.wrong, "none": [""] * len(heldout.right)}
    config = objective.transformer.config
    losses = {}
    for name, captions in prompts.items():
        total = 0.0
        for first in range(0, len(captions), batch):
            some = slice(first, first + batch)
            loss, _ = objective(teacher_inputs(heldout.latents[some], config), captions[some])
            total += loss.item() * len(captions[some])
        losses[f"loss_{name}"] = total / len(captions)
    return {**losses, "wrong_over_right": losses["loss_wrong"] / losses["loss_right"]}


def measured_adherence(pipeline: VideoPipeline, prompts: int) -> dict[str, float]:
    """Share of held-out prompts that samples follow, per attribute."""
    found = text_to_video_adherence(pipeline, prompts=prompts)
    return {**found.right, "colour_kept": found.colour_kept, "shape_kept": found.shape_kept}
