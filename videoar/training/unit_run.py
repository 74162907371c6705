"""Flow matching on a pool of latents: what the teacher's and the causal model's runs share.

All that a step draws follows from (seed, step), so a run that was killed and resumed goes on as if it had not been.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from videoar.evaluation.caption_use import CaptionUse, caption_use
from videoar.model_folder import load_model_folder, read_json
from videoar.next_unit.autoencoders import Autoencoder, load_autoencoder
from videoar.next_unit.config import BackboneConfig, preset
from videoar.next_unit.latents import patch_grid
from videoar.next_unit.layout import Grid, UnitLayout
from videoar.next_unit.pipeline import UnitDefaults, UnitPipeline
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.next_unit.units import parse_units
from videoar.text import Conditioner, WordEncoder, WordEncoderConfig, WordTokenizer, load_conditioner
from videoar.training.clips import ClipsConfig
from videoar.training.ema import WeightAverage
from videoar.training.expectations import (
    expect_at_least,
    expect_finite,
    expect_no_sink,
    expect_run,
    expect_share,
    expect_wrap,
)
from videoar.training.heldout import heldout_latents, measured_adherence
from videoar.training.latents import Encode, LatentBatch, all_captions, latent_batches
from videoar.training.loop import descend, run_steps
from videoar.training.optimizer import OptimizerConfig, build_optimizer
from videoar.training.unit_objective import FlowObjective, NoiseConfig

# What AdamW keeps under Muon: embeddings, modulation, and the layers that read and write latents or timesteps.
PLAIN = ("embedding", "place", "time_projection", "modulation", "head.")


@dataclass(frozen=True)
class UnitTraining:
    """A run of flow matching.

    Args:
        output: folder of the run: `settings.json`, checkpoints, TensorBoard logs, `curve.json` and, last, `model/`.
        autoencoder: folder of the frozen autoencoder; None: that of `start`.
        start: folder of a model to start from, whose text encoder stays as it is; None: from random weights.
        units: the scheme, as `parse_units` reads it.
        preset: shape of the transformer, where it does not start from one; channels are the autoencoder's.
        model: a shape in place of the preset.
        window, sink: units that a unit sees, see `FlowObjective`; read where units are causal.
        clips: clips that follow each other in a sample, as in a stream; `data.frames` covers them all.
        noise, optimizer, data: the parts; a clip's first latent frame is dropped, as it stands for one frame, not four.
        sampling: of evaluations and of the model that is saved; units, grid and wrap follow from the run.
        steps: of the whole run.
        batch: clips a step and process.
        seed: of everything.
        pool: clips encoded once and drawn from; 0 encodes fresh ones at every step.
        cache: folder that keeps encoded pools, for runs of the same autoencoder; None keeps none.
        caption_dropout: share of clips trained without their caption, for guidance.
        level_weight: exponent e of a token's weight (cells of the finest level / cells of its own)^e.
        frame_levels: share of a teacher's clips whose frames have noise levels of their own: a frame beside a clean one
            shows what motion is far sooner than a clip that is all noise.
        average: decay of the weight average.
        precision: Accelerate's mixed precision.
        gradient_checkpointing: recompute blocks in the backward pass.
        log_every, evaluate_every, checkpoint_every: in steps; 0 never.
        prompts: prompts generated and measured at each evaluation; 0 none.
        stored_as: type of the final weights.
    """

    output: str = "runs/unit"
    autoencoder: str | None = None
    start: str | None = None
    units: str = "cube(1, 1, 1)"
    preset: str = "sprites"
    model: BackboneConfig | None = None
    window: int | None = None
    sink: int = 0
    clips: int = 1
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.05))
    data: ClipsConfig = field(default_factory=lambda: ClipsConfig(frames=21, wrap=True))
    sampling: UnitDefaults = field(default_factory=lambda: UnitDefaults(steps=50, method="euler", guidance=2.0))
    steps: int = 1500
    batch: int = 32
    seed: int = 0
    pool: int = 8192
    cache: str | None = None
    caption_dropout: float = 0.1
    level_weight: float = 0.0
    frame_levels: float = 0.0
    average: float = 0.99
    precision: str = "no"
    gradient_checkpointing: bool = False
    log_every: int = 25
    evaluate_every: int = 500
    checkpoint_every: int = 100
    prompts: int = 64
    stored_as: str = "float16"

    def __post_init__(self) -> None:
        parse_units(self.units)
        if self.autoencoder is None and self.start is None:
            raise ValueError("autoencoder: expected the folder of one, or a start that has one, got neither")
        expect_run(self)
        expect_at_least(self, 1, "batch", "clips")
        expect_at_least(self, 0, "sink", "pool", "prompts")
        expect_share(self, "caption_dropout", "frame_levels")
        expect_finite(self, "level_weight")
        if self.window is not None:
            expect_at_least(self, 0, "window")
        expect_no_sink(f"{type(self).__name__}: expected sink 0 with several clips", self.sink, self.clips)

    @property
    def autoencoder_folder(self) -> Path:
        return Path(self.start) / "autoencoder" if self.autoencoder is None else Path(self.autoencoder)


def stationary_latents(autoencoder: Autoencoder, device: torch.device) -> Encode:
    """Videos to latents without their first frame, so that every latent frame stands for equally many frames."""
    return lambda video: autoencoder.encode(video.to(device))[:, :, 1:]


def pool_folder(config: UnitTraining) -> Path | None:
    """Where a pool is kept: its name follows from all that decides it. A user's clips may change, so theirs are not."""
    if config.data.kind != "sprites" or not config.pool:
        return None
    weights = b"".join(path.read_bytes() for path in sorted(config.autoencoder_folder.glob("*.safetensors")))
    name = sha256(weights + repr((config.data, config.seed, config.pool)).encode()).hexdigest()[:16]
    return Path(config.cache) / f"pool-{name}"


def load_frozen(folder: str | Path, device: torch.device) -> Autoencoder:
    """The autoencoder in a folder, for encoding alone."""
    autoencoder = load_autoencoder(folder).to(device)
    return autoencoder.requires_grad_(False) if isinstance(autoencoder, nn.Module) else autoencoder


def train_units(config: UnitTraining, *, causal: bool) -> Path:
    """Run (or resume) a training and return the folder of the trained model.

    Args:
        config: of the run.
        causal: clean history by teacher forcing and a noise level a unit; else all tokens see all, at one level.
    """
    accelerator = Accelerator(mixed_precision=config.precision, log_with="tensorboard", project_dir=config.output)
    accelerator.init_trackers("logs")
    torch.manual_seed(config.seed)
    autoencoder = load_frozen(config.autoencoder_folder, accelerator.device)
    encode = stationary_latents(autoencoder, accelerator.device)
    objective = build_objective(config, autoencoder, causal=causal)
    optimizer = build_optimizer(objective, config.optimizer, plain=PLAIN)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    average = WeightAverage(objective, config.average)
    rank, world = accelerator.process_index, accelerator.num_processes
    keep = pool_folder(config) if config.cache else None
    clips = latent_batches(encode, config.data, config.batch, config.seed, pool=config.pool, keep=keep)
    heldout = heldout_latents(encode, config.data) if config.evaluate_every and config.data.kind == "sprites" else []

    def step(number: int) -> dict[str, float]:
        place = number * world + rank
        loss, terms = unit_loss(wrapped, objective, clips(place), config, place)
        norm = descend(accelerator, loss, wrapped, optimizer, config.optimizer, step=number, steps=config.steps)
        return {"loss": loss.item(), **{name: value.item() for name, value in terms.items()}, "gradient": norm}

    def report() -> dict[str, float]:
        if not heldout:
            return {}
        judged = averaged(config, autoencoder, average, causal=causal).to(accelerator.device)
        losses = {f"loss_{name}": x for name, x in caption_losses(judged, heldout, config.noise)._asdict().items()}
        several = len(clip_layout(config, autoencoder, judged.transformer.config.patch).units) > 1
        if not config.prompts or (several and not causal):  # who knows units only together cannot take them in turn
            return losses
        return losses | measured_adherence(pipeline(config, autoencoder, judged), config.prompts, wrap=config.data.wrap)

    run_steps(accelerator, config, objective, optimizer, average, step=step, evaluate=report)
    accelerator.end_training()
    folder = Path(config.output) / "model"
    if accelerator.is_main_process:
        model = pipeline(config, autoencoder, averaged(config, autoencoder, average, causal=causal))
        model.save_pretrained(folder, dtype=getattr(torch, config.stored_as))
    return folder


def build_objective(config: UnitTraining, autoencoder: Autoencoder, *, causal: bool) -> FlowObjective:
    """A model of the run's shape, from `start` or from random weights.

    Raises:
        ValueError: `start` was trained on sprites that wrap, and these do not, or the other way round.
    """
    shape = backbone(config, autoencoder)
    if config.start is None:
        words = WordTokenizer.from_captions(all_captions(config.data), shape.text_len).words
        text: Conditioner = WordEncoder(WordEncoderConfig(words, shape.text_width, shape.text_len))
        transformer = NextUnitTransformer(shape)
    else:
        expect_wrap(config.data, read_json(Path(config.start) / "sampling.json")["wrap"], "start")
        text = load_conditioner(Path(config.start) / "text").requires_grad_(False)
        transformer = start_from(Path(config.start) / "transformer", shape)
    transformer.checkpoint_blocks = config.gradient_checkpointing
    return FlowObjective(
        transformer,
        text,
        parse_units(config.units),
        causal=causal,
        window=config.window,
        sink=config.sink,
        clips=config.clips,
        level_weight=config.level_weight,
        frame_levels=config.frame_levels,
    )


def backbone(config: UnitTraining, autoencoder: Autoencoder) -> BackboneConfig:
    """The transformer's shape: that of `start`, `model` or `preset`, with a level embedding where units have levels."""
    if config.start is not None:
        shape = BackboneConfig(**read_json(Path(config.start) / "transformer" / "config.json"))
    else:
        shape = (config.model or preset(config.preset)).replace(channels=autoencoder.config.latent_width)
    levels = len(clip_layout(config, autoencoder, shape.patch).levels)
    return shape.replace(levels=levels if levels > 1 else 0)


def clip_layout(config: UnitTraining, autoencoder: Autoencoder, patch: Grid) -> UnitLayout:
    """The units over one of a sample's clips."""
    shape, data = autoencoder.config, config.data
    side = data.size // shape.space_stride
    frames = (data.frames - 1) // (shape.time_stride * config.clips)
    grid = patch_grid(torch.empty(1, 1, frames, side, side, device="meta"), patch)
    return parse_units(config.units).on(grid)


def start_from(folder: Path, shape: BackboneConfig) -> NextUnitTransformer:
    """The transformer in a folder at another number of levels: their embedding starts at zero where it had none.

    Raises:
        ValueError: it has another number of levels of its own.
    """
    config, state = load_model_folder(folder)
    if config["levels"] not in (0, shape.levels):
        raise ValueError(f"start: expected a model of 0 or {shape.levels} levels in {folder}, got {config['levels']}")
    transformer = NextUnitTransformer(shape)
    if shape.levels:
        state.setdefault("level_embedding", transformer.level_embedding.detach())
    transformer.load_state_dict(state)
    return transformer


def unit_loss(
    objective: nn.Module, model: FlowObjective, clips: LatentBatch, config: UnitTraining, place: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and terms of batch number `place`, which decides noise and dropped captions.

    Args:
        objective: `model`, as Accelerate wrapped it.
        model: gives layout and device.
        clips, config, place: the batch, the run, its number.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + place)
    dropped = torch.rand(len(clips.captions), generator=generator) < config.caption_dropout
    captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), clips.captions, strict=True)]
    device = next(model.parameters()).device
    drawn = model.draw(clips.latents, config.noise, generator)
    return objective(clips.latents.to(device), captions, drawn.levels.to(device), drawn.noise.to(device))


@torch.no_grad()
def caption_losses(model: FlowObjective, batches: list[LatentBatch], noise: NoiseConfig) -> CaptionUse:
    """The loss under the right, a wrong and no caption, at the same noise each time."""
    device = next(model.parameters()).device

    def loss(latents: Tensor, captions: list[str | None]) -> float:
        drawn = model.draw(latents, noise, torch.Generator().manual_seed(0))
        return float(model(latents.to(device), captions, drawn.levels.to(device), drawn.noise.to(device))[0])

    return caption_use(loss, batches)


def averaged(config: UnitTraining, autoencoder: Autoencoder, average: WeightAverage, *, causal: bool) -> FlowObjective:
    """The model of the averaged weights."""
    objective = build_objective(config, autoencoder, causal=causal)
    objective.load_state_dict(average.weights)
    return objective.eval()


def pipeline(config: UnitTraining, autoencoder: Autoencoder, model: FlowObjective) -> UnitPipeline:
    """A model with its autoencoder and the run's way of sampling."""
    grid = clip_layout(config, autoencoder, model.transformer.config.patch).grid
    defaults = replace(
        config.sampling, units=config.units, grid=grid, wrap=config.data.wrap, window=config.window, sink=config.sink
    )
    return UnitPipeline(autoencoder, model.transformer, model.conditioner, defaults)
