"""Training of the tokenizer (paper S, Sec. 4.1 and Eq. 4), with scale dropout and bit flips.

Every random number of a step follows from (seed, step), so a run that was killed and resumed goes on as if it had
not been.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from videoar.evaluation.tokenizer import evaluate_tokenizer
from videoar.tokenizer.config import TokenizerConfig
from videoar.tokenizer.losses import LossConfig, tokenizer_loss
from videoar.tokenizer.model import VideoTokenizer
from videoar.tokenizer.quantizer import quantize
from videoar.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from videoar.training.clips import ClipsConfig, clip_batches
from videoar.training.ema import WeightAverage
from videoar.training.logging import RunLog
from videoar.training.optimizer import OptimizerConfig, build_optimizer, schedule


@dataclass(frozen=True)
class Stage:
    """Part of a run: `steps` steps of `batch` clips (per process) of `frames` frames.

    What things look like is learned fastest from many single frames; motion then needs few clips. `decoder_only`
    freezes the encoder, so that the bits, and every transformer trained on them, stay as they are.
    """

    steps: int
    frames: int
    batch: int
    decoder_only: bool = False


@dataclass(frozen=True)
class TokenizerTraining:
    """A tokenizer run.

    Args:
        output: folder of the run: checkpoints, TensorBoard logs and, at the end, the model (`tokenizer/`).
        model, loss, optimizer, data: the parts.
        stages: one after another, under one learning-rate schedule.
        seed: of everything.
        scale_dropout: share of clips decoded from the first k scales only, k drawn evenly below all.
        flip: largest probability of a flipped bit; half of the clips have none.
        average: decay of the weight average.
        precision: Accelerate's mixed precision.
        log_every, evaluate_every, checkpoint_every: in steps; 0 never.
        evaluation_clips: sprites measured at each evaluation.
        stored_as: type of the final weights.
    """

    output: str = "runs/tokenizer"
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: ClipsConfig = field(default_factory=ClipsConfig)
    stages: tuple[Stage, ...] = (Stage(steps=3000, frames=17, batch=8),)
    seed: int = 0
    scale_dropout: float = 0.5
    flip: float = 0.05
    average: float = 0.998
    precision: str = "no"
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500
    evaluation_clips: int = 64
    stored_as: str = "float32"

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> int:
        """Index of the stage that a step belongs to."""
        ends = accumulate(stage.steps for stage in self.stages)
        return next(index for index, end in enumerate(ends) if step < end)


class Corruption(NamedTuple):
    """What a step does to the bits: scales kept (B,) and flip probability (B,)."""

    keep: Tensor
    flip: Tensor


def corruption(config: TokenizerTraining, step: int, rank: int = 0) -> Corruption:
    """Draw scale dropout and flips of a step."""
    generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * 1_009 + rank)
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
    accelerator = Accelerator(mixed_precision=config.precision, log_with="tensorboard", project_dir=config.output)
    accelerator.init_trackers("logs")
    torch.manual_seed(config.seed)
    model = TokenizerObjective(VideoTokenizer(config.model), config.loss)
    optimizer = build_optimizer(model, config.optimizer, plain=("conv_in", "conv_out"))
    model, optimizer = accelerator.prepare(model, optimizer)
    tokenizer = accelerator.unwrap_model(model).tokenizer
    average = WeightAverage(tokenizer, config.average)
    start = 0
    if (checkpoint := latest_checkpoint(config.output)) is not None:
        start = load_checkpoint(checkpoint, tokenizer, optimizer, average)["step"]
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = [
        clip_batches(replace(config.data, frames=stage.frames), stage.batch, config.seed, rank=rank, world=world)
        for stage in config.stages
    ]
    with RunLog(accelerator, config.steps, start=start, every=config.log_every) as log:
        for step in range(start, config.steps):
            stage = config.stage_at(step)
            _freeze_encoder(tokenizer, average, config, step)
            video = batches[stage](step)
            metrics = _step(accelerator, model, optimizer, video, config, step)
            average.update(tokenizer)
            log.step(step, metrics)
            done = step + 1
            if config.evaluate_every and done % config.evaluate_every == 0 and config.data.kind == "sprites":
                log.report(done, _measure(average, config), prefix="heldout")
            if config.checkpoint_every and done % config.checkpoint_every == 0 and accelerator.is_main_process:
                save_checkpoint(config.output, done, tokenizer, optimizer, average)
    accelerator.end_training()
    folder = Path(config.output) / "tokenizer"
    if accelerator.is_main_process:
        _averaged(average, config).save_pretrained(folder, dtype=getattr(torch, config.stored_as))
    return folder


def _step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    video: Tensor,
    config: TokenizerTraining,
    step: int,
) -> dict[str, float]:
    rank = accelerator.process_index
    keep, flip = (x.to(accelerator.device) for x in corruption(config, step, rank))
    seed = (config.seed * 1_000_003 + step) * 1_009 + rank
    loss, terms = model(video.to(accelerator.device), keep, flip, seed)
    accelerator.backward(loss)
    settings = config.optimizer
    norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip) if settings.clip else torch.tensor(0.0)
    share = schedule(step, config.steps, warmup=settings.warmup, final=settings.final)
    optimizer.optimizer.set_learning_rate(share)
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss.item(), **{name: value.item() for name, value in terms.items()}, "gradient": norm.item()}


def _freeze_encoder(tokenizer: VideoTokenizer, average: WeightAverage, config: TokenizerTraining, step: int) -> None:
    """Freeze or free the encoder for this step's stage; what is frozen are its averaged weights, the ones that stay."""
    stage = config.stage_at(step)
    frozen = config.stages[stage].decoder_only
    if frozen and step and not config.stages[config.stage_at(step - 1)].decoder_only:
        tokenizer.load_state_dict(average.weights)
    tokenizer.encoder.requires_grad_(not frozen)
    tokenizer.gain.requires_grad_(not frozen)


def _averaged(average: WeightAverage, config: TokenizerTraining) -> VideoTokenizer:
    tokenizer = VideoTokenizer(config.model)
    tokenizer.load_state_dict(average.weights)
    return tokenizer.eval()


def _measure(average: WeightAverage, config: TokenizerTraining) -> dict[str, float]:
    report = evaluate_tokenizer(_averaged(average, config).cpu(), clips=config.evaluation_clips)
    metrics = {"psnr": report.psnr, "foreground_psnr": report.foreground_psnr}
    for scale, (found, bits) in enumerate(zip(report.attributes, report.entropy.lowest_frame, strict=True), start=1):
        metrics.update({f"{name}_from_{scale}": share for name, share in found.items() if name != "speed"})
        metrics[f"entropy_{scale}"] = bits
    return metrics
