"""Training of the tokenizer (paper S, Sec. 4.1 and Eq. 4), with scale dropout and bit flips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from videoar.evaluation.tokenizer import evaluate_tokenizer
from videoar.tokenizer.config import TokenizerConfig
from videoar.tokenizer.losses import LossConfig, tokenizer_loss
from videoar.tokenizer.model import VideoTokenizer
from videoar.tokenizer.quantizer import quantize
from videoar.training.stages import StagedTraining, run_stages


@dataclass(frozen=True)
class TokenizerTraining(StagedTraining):
    """A tokenizer run; the model goes to `tokenizer/`.

    Args:
        model, loss: the parts.
        scale_dropout: share of clips decoded from the first k scales only, k drawn evenly below all.
        flip: largest probability of a flipped bit; half of the clips have none.
    """

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    scale_dropout: float = 0.5
    flip: float = 0.05


class Corruption(NamedTuple):
    """What a step does to the bits: scales kept (B,) and flip probability (B,)."""

    keep: Tensor
    flip: Tensor


def corruption(config: TokenizerTraining, step: int, rank: int = 0) -> Corruption:
    """Draw scale dropout and flips of a step."""
    generator = torch.Generator().manual_seed(config.step_seed(step, rank))
    scales = len(config.model.scales)
    batch = config.stages[config.stage_at(step)].batch
    drop, which, flipped, strength = torch.rand(4, batch, generator=generator)
    shortened = 1 + (which * (scales - 1)).long().clamp(max=max(0, scales - 2))
    keep = torch.where(drop < config.scale_dropout, shortened, scales)
    return Corruption(keep, torch.where(flipped < 0.5, config.flip * strength, 0.0))


class TokenizerObjective(nn.Module):
    """Video to loss: a module, so that Accelerate can wrap the whole computation."""

    def __init__(self, tokenizer: VideoTokenizer, loss: LossConfig) -> None:
        super().__init__()
        self.tokenizer, self.loss = tokenizer, loss

    def forward(self, video: Tensor, keep: Tensor, flip: Tensor, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        scales = self.tokenizer.config.scales
        z = self.tokenizer.encode(video)
        quantized = quantize(z, scales, keep=keep, flip=flip, seed=seed)
        output = self.tokenizer.decode(quantized.total)
        return tokenizer_loss(output, video, z, quantized, scales, self.loss)


def train(config: TokenizerTraining) -> Path:
    """Run (or resume) a training and return the folder of the trained tokenizer."""
    torch.manual_seed(config.seed)
    objective = TokenizerObjective(VideoTokenizer(config.model), config.loss)
    accelerator, weights = run_stages(
        config,
        objective,
        objective.tokenizer,
        drawn=lambda step, rank: (*corruption(config, step, rank), config.step_seed(step, rank)),
        fixed=("encoder", "gain"),
        measure=lambda weights: _measure(_tokenizer(weights, config), config.evaluation_clips),
    )
    folder = Path(config.output) / "tokenizer"
    if accelerator.is_main_process:
        _tokenizer(weights, config).save_pretrained(folder, dtype=getattr(torch, config.stored_as))
    return folder


def _tokenizer(weights: Mapping[str, Tensor], config: TokenizerTraining) -> VideoTokenizer:
    tokenizer = VideoTokenizer(config.model)
    tokenizer.load_state_dict(weights)
    return tokenizer.eval()


def _measure(tokenizer: VideoTokenizer, clips: int) -> dict[str, float]:
    report = evaluate_tokenizer(tokenizer, clips=clips)
    metrics = {"psnr": report.psnr, "foreground_psnr": report.foreground_psnr}
    for scale, (found, bits) in enumerate(zip(report.attributes, report.entropy.lowest_frame, strict=True), start=1):
        metrics.update({f"{name}_from_{scale}": share for name, share in found.items() if name != "speed"})
        metrics[f"entropy_{scale}"] = bits
    return metrics
