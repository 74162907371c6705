"""Training of paper S's transformer: bit-wise cross-entropy, Cross-Frame Error Correction, Random Frame Mask.

Every random number of a step follows from (seed, step), so a run that was killed and resumed goes on as if it had
not been. Source: paper S, Sec. 4.2 and App. A.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from videoar.next_scale.config import TransformerConfig
from videoar.next_scale.correction import CorrectionConfig, flip_probabilities
from videoar.next_scale.frame_mask import random_frame_keep
from videoar.next_scale.inputs import TeacherInputs, teacher_inputs
from videoar.next_scale.pipeline import SamplingDefaults, VideoPipeline
from videoar.next_scale.transformer import NextScaleTransformer
from videoar.text import Conditioner, WordEncoder, WordEncoderConfig, WordTokenizer
from videoar.tokenizer import VideoTokenizer
from videoar.training.clips import ClipsConfig
from videoar.training.ema import WeightAverage
from videoar.training.expectations import expect_at_least, expect_run, expect_share
from videoar.training.heldout import caption_losses, encoder_of, heldout_latents, measured_adherence
from videoar.training.latents import LatentBatch, all_captions, latent_batches
from videoar.training.loop import descend, run_steps
from videoar.training.optimizer import OptimizerConfig, build_optimizer
from videoar_kernels import bit_cross_entropy
from videoar_kernels.reference.philox import philox_uniform

# What AdamW keeps under Muon: embeddings, and the layers that read and write codes.
_PLAIN = ("embedding", "place", "input", "context", "head")

# Independent Philox streams of a step; the first one draws clips.
_CAPTIONS, _FLIP_P, _FLIPS, _FRAMES, _STREAMS = range(1, 6)


@dataclass(frozen=True)
class TransformerTraining:
    """A transformer run.

    Args:
        output: folder of the run: checkpoints, TensorBoard logs, `curve.json` and, at the end, the model (`model/`).
        tokenizer: folder of the trained tokenizer; its bits and scales replace the model's.
        model, correction, optimizer, data: the parts.
        steps: of the whole run.
        batch: clips a step and process.
        seed: of everything.
        pool: clips encoded once and drawn from; 0 encodes fresh ones at every step.
        caption_dropout: share of clips trained without their caption, for guidance.
        frame_mask: probability that an earlier frame is hidden (Eq. 9).
        scale_weight: exponent e of a token's weight (last scale's area / own area)^e; 0 weighs tokens alike.
        average: decay of the weight average.
        precision: Accelerate's mixed precision.
        gradient_checkpointing: recompute blocks in the backward pass.
        log_every, evaluate_every, checkpoint_every: in steps; 0 never.
        prompts: prompts generated and measured at each evaluation.
        sampling: how; also the defaults of the model that is saved.
        stored_as: type of the final weights.
    """

    output: str = "runs/transformer"
    tokenizer: str = "runs/tokenizer/tokenizer"
    model: TransformerConfig = field(default_factory=TransformerConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.05))
    data: ClipsConfig = field(default_factory=ClipsConfig)
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    steps: int = 6000
    batch: int = 16
    seed: int = 0
    pool: int = 16384
    caption_dropout: float = 0.1
    frame_mask: float = 0.1
    scale_weight: float = 0.0
    average: float = 0.999
    precision: str = "no"
    gradient_checkpointing: bool = False
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500
    prompts: int = 64
    stored_as: str = "float16"

    def __post_init__(self) -> None:
        expect_run(self)
        expect_at_least(self, 1, "batch")
        expect_at_least(self, 0, "pool", "prompts")
        expect_share(self, "caption_dropout", "frame_mask")


class TransformerObjective(nn.Module):
    """Captions and a teacher's inputs to the loss: a module, so that Accelerate can wrap the whole computation."""

    def __init__(self, transformer: NextScaleTransformer, conditioner: Conditioner, scale_weight: float = 0.0) -> None:
        super().__init__()
        self.transformer, self.conditioner = transformer, conditioner
        areas = torch.tensor([h * w for h, w in transformer.config.scales], dtype=torch.float32)
        weight = (areas[-1] / areas) ** scale_weight
        ids = transformer.layout(1).scale_ids
        self.register_buffer("scale_ids", ids, persistent=False)
        self.register_buffer("weight", weight[ids] if scale_weight else None, persistent=False)

    def forward(
        self, teacher: TeacherInputs, captions: list[str], frame_keep: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss, and per scale the plain loss and the share of bits predicted right."""
        text = self.conditioner(captions)
        logits = self.transformer(text, teacher.inputs, teacher.context, frame_keep=frame_keep)
        scales = len(self.transformer.config.scales)
        found = bit_cross_entropy(
            logits, teacher.labels, weight=self.weight, scale_ids=self.scale_ids, num_scales=scales
        )
        terms = {f"loss_{k}": x.detach() for k, x in enumerate(found.per_scale, start=1)}
        terms |= {f"accuracy_{k}": x for k, x in enumerate(found.per_scale_accuracy, start=1)}
        return found.loss, {**terms, "accuracy": found.accuracy}


def train(config: TransformerTraining) -> Path:
    """Run (or resume) a training and return the folder of the trained model: tokenizer, transformer and text."""
    accelerator = Accelerator(mixed_precision=config.precision, log_with="tensorboard", project_dir=config.output)
    accelerator.init_trackers("logs")
    torch.manual_seed(config.seed)
    tokenizer = VideoTokenizer.from_pretrained(config.tokenizer).to(accelerator.device).requires_grad_(False)
    objective = build_objective(config, tokenizer)
    optimizer = build_optimizer(objective, config.optimizer, plain=_PLAIN)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    average = WeightAverage(objective, config.average)
    rank, world = accelerator.process_index, accelerator.num_processes
    clips = latent_batches(
        lambda video: tokenizer.encode(video.to(accelerator.device)),
        config.data,
        config.batch,
        config.seed,
        pool=config.pool,
        streams=_STREAMS,
    )

    def step(number: int) -> dict[str, float]:
        place = number * world + rank
        return _step(accelerator, wrapped, optimizer, clips(place), config, number, place * _STREAMS)

    def report() -> dict[str, float]:
        return evaluate(config, tokenizer, average)

    run_steps(accelerator, config, objective, optimizer, average, step=step, evaluate=report)
    accelerator.end_training()
    folder = Path(config.output) / "model"
    if accelerator.is_main_process:
        averaged(config, tokenizer, average).save_pretrained(folder, dtype=getattr(torch, config.stored_as))
    return folder


def build_objective(config: TransformerTraining, tokenizer: VideoTokenizer) -> TransformerObjective:
    """The transformer at the tokenizer's bits and scales, with the word encoder of the data's captions."""
    shape = config.model.replace(bits=tokenizer.config.bits, scales=tokenizer.config.scales)
    words = WordTokenizer.from_captions(all_captions(config.data), shape.text_len).words
    text = WordEncoder(WordEncoderConfig(words, shape.text_width, shape.text_len))
    transformer = NextScaleTransformer(shape)
    transformer.checkpoint_blocks = config.gradient_checkpointing
    return TransformerObjective(transformer, text, config.scale_weight)


def _step(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer,
    clips: LatentBatch,
    config: TransformerTraining,
    step: int,
    offset: int,
) -> dict[str, float]:
    model = accelerator.unwrap_model(objective).transformer.config
    latents = clips.latents.to(accelerator.device)
    batch, frames = latents.shape[:2]
    dropped = philox_uniform(batch, config.seed, offset + _CAPTIONS) < config.caption_dropout
    captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), clips.captions, strict=True)]
    flip_p = flip_probabilities(
        batch, frames, len(model.scales), config.correction, seed=config.seed, offset=offset + _FLIP_P
    )
    teacher = teacher_inputs(latents, model, flip_p=flip_p.to(latents.device), seed=config.seed, offset=offset + _FLIPS)
    keep = (
        random_frame_keep(frames, config.frame_mask, seed=config.seed, offset=offset + _FRAMES)
        if config.frame_mask
        else None
    )
    loss, terms = objective(teacher, captions, keep)
    norm = descend(accelerator, loss, objective, optimizer, config.optimizer, step=step, steps=config.steps)
    return {"loss": loss.item(), **{name: value.item() for name, value in terms.items()}, "gradient": norm}


def averaged(config: TransformerTraining, tokenizer: VideoTokenizer, average: WeightAverage) -> VideoPipeline:
    """The pipeline of the averaged weights."""
    objective = build_objective(config, tokenizer)
    objective.load_state_dict(average.weights)
    objective.to(next(tokenizer.parameters()).device).eval()
    return VideoPipeline(tokenizer, objective.transformer, objective.conditioner, config.sampling)


def evaluate(config: TransformerTraining, tokenizer: VideoTokenizer, average: WeightAverage) -> dict[str, float]:
    """Loss under the right, a wrong and no caption, and prompt adherence; a folder's clips have neither."""
    if config.data.kind != "sprites":
        return {}
    pipeline = averaged(config, tokenizer, average)
    losses = caption_losses(pipeline, heldout_latents(encoder_of(pipeline), config.data))
    report = {f"loss_{name}": value for name, value in losses._asdict().items()}
    return report | (measured_adherence(pipeline, config.prompts) if config.prompts else {})
