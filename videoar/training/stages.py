"""A run in stages of clips of different lengths, shared by tokenizer and autoencoder.

Every random number of a step follows from (seed, step), so a run that was killed and resumed goes on as if it had
not been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from videoar.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from videoar.training.clips import ClipsConfig, clip_batches
from videoar.training.ema import WeightAverage
from videoar.training.logging import RunLog
from videoar.training.optimizer import OptimizerConfig, build_optimizer, schedule


@dataclass(frozen=True)
class Stage:
    """Part of a run: `steps` steps of `batch` clips (per process) of `frames` frames.

    What things look like is learned fastest from many single frames; motion then needs few clips. `decoder_only`
    freezes the encoder, so that the latents, and every transformer trained on them, stay as they are.
    """

    steps: int
    frames: int
    batch: int
    decoder_only: bool = False


@dataclass(frozen=True)
class StagedTraining:
    """A run in stages.

    Args:
        output: folder of the run: checkpoints, TensorBoard logs and, at the end, the model.
        optimizer, data: the parts.
        stages: one after another, under one learning-rate schedule.
        seed: of everything.
        average: decay of the weight average.
        precision: Accelerate's mixed precision.
        log_every, evaluate_every, checkpoint_every: in steps; 0 never.
        evaluation_clips: sprites measured at each evaluation.
        stored_as: type of the final weights.
    """

    output: str = "runs/tokenizer"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: ClipsConfig = field(default_factory=ClipsConfig)
    stages: tuple[Stage, ...] = (Stage(steps=3000, frames=17, batch=8),)
    seed: int = 0
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

    def step_seed(self, step: int, rank: int = 0) -> int:
        """A seed of a step's own."""
        return (self.seed * 1_000_003 + step) * 1_009 + rank


def run_stages(
    config: StagedTraining,
    objective: nn.Module,
    model: nn.Module,
    *,
    drawn: Callable[[int, int], tuple],
    fixed: Sequence[str],
    measure: Callable[[Mapping[str, Tensor]], dict[str, float]],
) -> tuple[Accelerator, Mapping[str, Tensor]]:
    """Run (or resume) a training.

    Args:
        config: of the run.
        objective: (video, *drawn) to loss and terms; one module, so that Accelerate can wrap the whole computation.
        model: the part of it that is averaged and kept.
        drawn: (step, rank) to the random inputs of a step.
        fixed: how the names of the parameters begin that a decoder's stage leaves alone.
        measure: averaged weights to held-out figures.

    Returns:
        The accelerator and the averaged weights.
    """
    accelerator = Accelerator(mixed_precision=config.precision, log_with="tensorboard", project_dir=config.output)
    accelerator.init_trackers("logs")
    optimizer = build_optimizer(objective, config.optimizer, plain=("conv_in", "conv_out"))
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    average = WeightAverage(model, config.average)
    start = 0
    if (checkpoint := latest_checkpoint(config.output)) is not None:
        start = load_checkpoint(checkpoint, model, optimizer, average)["step"]
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = [
        clip_batches(replace(config.data, frames=stage.frames), stage.batch, config.seed, rank=rank, world=world)
        for stage in config.stages
    ]
    with RunLog(accelerator, config.steps, start=start, every=config.log_every) as log:
        for step in range(start, config.steps):
            _freeze(model, average, config, step, fixed)
            inputs = batches[config.stage_at(step)](step), *drawn(step, rank)
            log.step(step, _step(accelerator, wrapped, optimizer, inputs, config, step))
            average.update(model)
            done = step + 1
            if config.evaluate_every and done % config.evaluate_every == 0 and config.data.kind == "sprites":
                log.report(done, measure(average.weights), prefix="heldout")
            if config.checkpoint_every and done % config.checkpoint_every == 0 and accelerator.is_main_process:
                save_checkpoint(config.output, done, model, optimizer, average)
    accelerator.end_training()
    return accelerator, average.weights


def _step(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: AcceleratedOptimizer,
    inputs: Sequence,
    config: StagedTraining,
    step: int,
) -> dict[str, float]:
    moved = [x.to(accelerator.device) if isinstance(x, Tensor) else x for x in inputs]
    loss, terms = objective(*moved)
    accelerator.backward(loss)
    settings = config.optimizer
    norm = accelerator.clip_grad_norm_(objective.parameters(), settings.clip) if settings.clip else torch.tensor(0.0)
    share = schedule(step, config.steps, warmup=settings.warmup, final=settings.final)
    optimizer.optimizer.set_learning_rate(share)
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss.item(), **{name: value.item() for name, value in terms.items()}, "gradient": norm.item()}


def _freeze(model: nn.Module, average: WeightAverage, config: StagedTraining, step: int, fixed: Sequence[str]) -> None:
    """Freeze or free the encoder for this step's stage; what is frozen are its averaged weights, the ones that stay."""
    stage = config.stage_at(step)
    frozen = config.stages[stage].decoder_only
    if frozen and step and not config.stages[config.stage_at(step - 1)].decoder_only:
        model.load_state_dict(average.weights)
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(fixed)):
            parameter.requires_grad_(not frozen)
