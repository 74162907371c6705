"""A run in stages of clips of different lengths, shared by tokenizer and autoencoder.

Every random number of a step follows from (seed, step), so a run that was killed and resumed goes on as if it had
not been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from accelerate import Accelerator
from torch import Tensor, nn

from videoar.training.clips import ClipsConfig, clip_batches
from videoar.training.ema import WeightAverage
from videoar.training.expectations import expect_at_least, expect_run
from videoar.training.loop import descend, run_steps
from videoar.training.optimizer import OptimizerConfig, build_optimizer


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

    def __post_init__(self) -> None:
        expect_at_least(self, 1, "steps", "frames", "batch")


@dataclass(frozen=True)
class StagedTraining:
    """A run in stages.

    Args:
        output: folder of the run: checkpoints, TensorBoard logs, `curve.json` and, at the end, the model.
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

    def __post_init__(self) -> None:
        expect_run(self)

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
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = [
        clip_batches(replace(config.data, frames=stage.frames), stage.batch, config.seed, rank=rank, world=world)
        for stage in config.stages
    ]

    def step(number: int) -> dict[str, float]:
        _freeze(model, average, config, number, fixed)
        inputs = batches[config.stage_at(number)](number), *drawn(number, rank)
        loss, terms = wrapped(*(x.to(accelerator.device) if isinstance(x, Tensor) else x for x in inputs))
        norm = descend(accelerator, loss, wrapped, optimizer, config.optimizer, step=number, steps=config.steps)
        return {"loss": loss.item(), **{name: value.item() for name, value in terms.items()}, "gradient": norm}

    def report() -> dict[str, float]:
        return measure(average.weights) if config.data.kind == "sprites" else {}

    run_steps(accelerator, config, model, optimizer, average, step=step, evaluate=report)
    accelerator.end_training()
    return accelerator, average.weights


def _freeze(model: nn.Module, average: WeightAverage, config: StagedTraining, step: int, fixed: Sequence[str]) -> None:
    """Freeze or free the encoder for this step's stage; what is frozen are its averaged weights, the ones that stay."""
    stage = config.stage_at(step)
    frozen = config.stages[stage].decoder_only
    if frozen and step and not config.stages[config.stage_at(step - 1)].decoder_only:
        model.load_state_dict(average.weights)
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(fixed)):
            parameter.requires_grad_(not frozen)
