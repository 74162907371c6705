"""Training of paper U's few-step generator by Symmetric DMD, from prompts alone.

The generator rolls out unit after unit with its own cache, so it learns from its own mistakes; see
`unit_dmd_objective`. All that a step draws follows from (seed, step), so a run that was killed and resumed goes on as
if it had not been. Source: paper U, Sec. 3.3 and 4; Self-Forcing.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from videoar.next_unit.flow import sampling_levels
from videoar.next_unit.pipeline import UnitPipeline
from videoar.training.clips import ClipsConfig
from videoar.training.ema import WeightAverage
from videoar.training.expectations import (
    expect_at_least,
    expect_finite,
    expect_no_sink,
    expect_positive,
    expect_run,
    expect_wrap,
)
from videoar.training.heldout import measured_adherence
from videoar.training.latents import all_captions
from videoar.training.loop import descend, run_steps
from videoar.training.optimizer import MuonAdamW, OptimizerConfig, build_optimizer
from videoar.training.unit_dmd_objective import CRITICS, Judged, Prompts, SymmetricDmd, draw_judged
from videoar.training.unit_run import PLAIN


def _adamw(rate: float) -> OptimizerConfig:
    return OptimizerConfig("adamw", rate, betas=(0.0, 0.999), weight_decay=0.01, warmup=20, final=1.0, clip=10.0)


@dataclass(frozen=True)
class DmdTraining:
    """A run of Symmetric DMD; units, grid, window and sink are those of `start`.

    Args:
        output: folder of the run: `settings.json`, checkpoints, TensorBoard logs, `curve.json` and, last, `model/`.
        start: folder of the causal model that generator and critics start from.
        teacher: folder of the full-attention model, the real score; its text encoder must be that of `start`. For
            `multiscale` it must know the joint sequence of all levels.
        critics: masks of the generated score, the paper's Table 4: "full" (which starts from the teacher), "forward",
            "backward", or "both".
        guidance: of the teacher; None: as it is sampled.
        passes: steps of the generator before the clean one.
        shift: of the levels of these steps.
        clips: at most so many clips in a row are rolled out, as in a stream; scores are compared on the last of them.
            More than one needs a `start` without sink.
        score_shift: of the levels at which scores are compared.
        critic_steps: moves of the critics before each move of the generator.
        critic_reuse: moves of the critics on the same clips, each at fresh noise.
        critic_only: first steps in which the critics move alone.
        generator, critic: how each is moved.
        data: whose captions of training are the prompts.
        steps: moves of the generator in the whole run, those of `critic_only` included.
        batch: prompts a move and process.
        seed: of everything.
        average: decay of the generator's weight average.
        precision: Accelerate's mixed precision.
        gradient_checkpointing: recompute blocks in the backward pass.
        log_every, evaluate_every, checkpoint_every: in steps; 0 never.
        prompts: prompts generated and measured at each evaluation; 0 none.
        stored_as: type of the final weights.
    """

    output: str = "runs/unit_dmd"
    start: str = "runs/unit_causal/model"
    teacher: str = "runs/unit_teacher/model"
    critics: str = "both"
    guidance: float | None = None
    passes: int = 4
    shift: float = 5.0
    clips: int = 1
    score_shift: float = 5.0
    critic_steps: int = 5
    critic_reuse: int = 1
    critic_only: int = 0
    # The paper's 2e-6 suits 1.3B parameters.
    generator: OptimizerConfig = field(default_factory=lambda: _adamw(2e-4))
    critic: OptimizerConfig = field(default_factory=lambda: _adamw(4e-4))
    data: ClipsConfig = field(default_factory=lambda: ClipsConfig(frames=21, wrap=True))
    steps: int = 600
    batch: int = 32
    seed: int = 0
    average: float = 0.99
    precision: str = "no"
    gradient_checkpointing: bool = False
    log_every: int = 10
    evaluate_every: int = 100
    checkpoint_every: int = 50
    prompts: int = 64
    stored_as: str = "float16"

    def __post_init__(self) -> None:
        if self.critics not in CRITICS:
            raise ValueError(f"DmdTraining: expected critics to be one of {sorted(CRITICS)}, got {self.critics!r}")
        expect_run(self)
        expect_at_least(self, 1, "critic_steps", "critic_reuse", "passes", "clips", "batch")
        expect_at_least(self, 0, "prompts", "critic_only")
        expect_positive(self, "shift", "score_shift")
        expect_finite(self, "guidance")
        if self.critic_only >= self.steps:
            raise ValueError(f"DmdTraining: expected critic_only below {self.steps} steps, got {self.critic_only}")


class GeneratorAverage(WeightAverage):
    """The average of a distillation's generator alone."""

    def __init__(self, objective: SymmetricDmd, decay: float) -> None:
        super().__init__(objective.generator, decay)

    def update(self, model: SymmetricDmd) -> None:
        super().update(model.generator)


def train(config: DmdTraining) -> Path:
    """Run (or resume) a training and return the folder of the generator, a `UnitPipeline`."""
    # A move of the critics leaves the generator without gradient, and the other way round.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision=config.precision, log_with="tensorboard", project_dir=config.output, kwargs_handlers=[unused]
    )
    accelerator.init_trackers("logs")
    torch.manual_seed(config.seed)
    start, teacher = (UnitPipeline.from_pretrained(x).to(accelerator.device) for x in (config.start, config.teacher))
    objective = build_objective(config, start, teacher)
    optimizer = build_optimizers(config, objective)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    average = GeneratorAverage(objective, config.average)
    rank, world = accelerator.process_index, accelerator.num_processes
    real = teacher.transformer.requires_grad_(False)
    draws = Draws(config, start)

    def move(number: int, loss: tuple[Tensor, dict[str, Tensor]], how: OptimizerConfig, moves: int) -> dict[str, float]:
        value, terms = loss
        norm = descend(accelerator, value, wrapped, optimizer, how, step=number, steps=moves)
        return {"loss": value.item(), "gradient": norm, **{name: x.item() for name, x in terms.items()}}

    def step(number: int) -> dict[str, float]:
        first = (number * world + rank) * (config.critic_steps + 1)
        sums: dict[str, float] = {}
        for k in range(config.critic_steps):
            if k % config.critic_reuse == 0:
                prompts, noise = draws.rollout(first + k)
                with accelerator.autocast():
                    clips = objective.clips(prompts, noise)
            loss = wrapped(clips, prompts, draws.judged(first + k))
            for name, x in move(number, loss, config.critic, config.steps).items():
                name = name if name.startswith("critic") else f"critic_{name}"
                sums[name] = sums.get(name, 0.0) + x / config.critic_steps
        if number < config.critic_only:
            return {"loss": sums["critic_loss"], **sums}
        prompts, noise = draws.rollout(first + config.critic_steps)
        with accelerator.autocast():
            rollout = objective.roll_out(prompts, noise)
        loss = wrapped(rollout, prompts, draws.judged(first + config.critic_steps), real)
        return move(number - config.critic_only, loss, config.generator, config.steps - config.critic_only) | sums

    def report() -> dict[str, float]:
        if not config.prompts or config.data.kind != "sprites":
            return {}
        return measured_adherence(averaged(config, start, average), config.prompts, wrap=config.data.wrap)

    run_steps(accelerator, config, objective, optimizer, average, step=step, evaluate=report)
    accelerator.end_training()
    folder = Path(config.output) / "model"
    if accelerator.is_main_process:
        averaged(config, start, average).save_pretrained(folder, dtype=getattr(torch, config.stored_as))
    return folder


def build_objective(config: DmdTraining, start: UnitPipeline, teacher: UnitPipeline) -> SymmetricDmd:
    """Generator and critics on the units of `start`.

    Raises:
        ValueError: the teacher knows other levels or reads other features of a prompt, one of the two models knows
            sprites that move otherwise, or `start` has a sink and several clips shall be rolled out.
    """
    for name, model in (("start", start), ("teacher", teacher)):
        expect_wrap(config.data, model.defaults.wrap, name)
    expect_no_sink("unit-dmd: expected a start without sink for several clips", start.defaults.sink, config.clips)
    known, wanted = teacher.transformer.config.levels, start.transformer.config.levels
    if known != wanted:
        raise ValueError(f"unit-dmd: expected a teacher of {wanted} levels, as the units of start have, got {known}")
    same = [pipeline.conditioner([all_captions(config.data)[0]]) for pipeline in (start, teacher)]
    if same[0].shape != same[1].shape or not torch.allclose(*same):
        raise ValueError("unit-dmd: expected the teacher's text encoder to be that of start, got another")
    defaults = start.defaults
    generator = deepcopy(start.transformer)
    critics = {way: deepcopy((teacher if way == "full" else start).transformer) for way in CRITICS[config.critics]}
    for model in (generator, *critics.values()):
        model.checkpoint_blocks = config.gradient_checkpointing
    objective = SymmetricDmd(
        generator,
        critics,
        defaults.layout,
        sampling_levels(config.passes, config.shift),
        window=defaults.window,
        sink=defaults.sink,
        guidance=teacher.defaults.guidance if config.guidance is None else config.guidance,
    )
    return objective.requires_grad_().train()


def build_optimizers(config: DmdTraining, objective: SymmetricDmd) -> MuonAdamW:
    """One optimizer, whose groups move by turns: a parameter without gradient rests."""
    parts: list[tuple[nn.Module, OptimizerConfig]]
    parts = [(objective.generator, config.generator), (objective.critics, config.critic)]
    return MuonAdamW(group for part, how in parts for group in build_optimizer(part, how, plain=PLAIN).param_groups)


class Draws:
    """All that move number n of a run draws, on the CPU and so equal on every device.

    Args:
        config: of the run.
        start: gives layout, text encoder and device.
    """

    def __init__(self, config: DmdTraining, start: UnitPipeline) -> None:
        self.config, self.start, self.layout = config, start, start.defaults.layout
        self.captions = all_captions(config.data, "train")
        self.width = start.transformer.config.patch_width

    @torch.no_grad()
    def rollout(self, number: int) -> tuple[Prompts, Tensor]:
        """Prompts, and noise (steps, B, clips * L, P) for as many steps and clips as are rolled out."""
        generator, config = self._generator(number, 0), self.config
        rows = torch.randint(len(self.captions), (config.batch,), generator=generator).tolist()
        steps = 1 + int(torch.randint(config.passes, (1,), generator=generator))
        clips = 1 + int(torch.randint(config.clips, (1,), generator=generator))
        noise = torch.randn(steps, config.batch, clips * self.layout.length, self.width, generator=generator)
        conditioner = self.start.conditioner
        prompts = Prompts(conditioner([self.captions[row] for row in rows]), conditioner([None]))
        return prompts, noise.to(self.start.device)

    def judged(self, number: int) -> Judged:
        """Where scores are compared."""
        generator, config = self._generator(number, 1), self.config
        return draw_judged(config.batch, self.layout, self.width, config.score_shift, generator).to(self.start.device)

    def _generator(self, number: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.seed * 1_000_000_007 + 2 * number + stream)


def averaged(config: DmdTraining, start: UnitPipeline, average: WeightAverage) -> UnitPipeline:
    """The averaged generator, with all else of `start`, sampled in few steps."""
    generator = deepcopy(start.transformer)
    generator.load_state_dict(average.weights)
    defaults = replace(start.defaults, steps=config.passes, shift=config.shift, method="renoise", guidance=1.0)
    return UnitPipeline(start.autoencoder, generator.eval(), start.conditioner, defaults)
