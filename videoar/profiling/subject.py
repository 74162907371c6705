"""Paper S as it is profiled: a pipeline, the size of its clips, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from videoar.next_scale.config import Scales, TransformerConfig, preset
from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.pipeline import SamplingDefaults, VideoPipeline
from videoar.observer import Observer
from videoar.profiling.contender import ClipWork, Contender, Options, StepWork, checked_disagreement
from videoar.profiling.eager_clip import EagerClip, disagreement
from videoar.profiling.eager_model import EagerTransformer
from videoar.profiling.limits import dtype_name, emulated
from videoar.profiling.random_weights import RandomFeatures, random_tokenizer, random_transformer
from videoar.profiling.shapes import Shape, fitted
from videoar.profiling.work import TransformerWork, decoder_work
from videoar.step_graphs import how_steps_run
from videoar.text import ClassEncoder, ClassEncoderConfig, Prompt
from videoar.tokenizer import TokenizerConfig

UCF_CLASSES = 101
# The tokenizer of every other preset is the paper's, in the widths of its public relative.
SMALL_TOKENIZERS = {
    "sprites": TokenizerConfig(
        bits=32,
        patch=(1, 4),
        channels=(48, 96, 96),
        strides=((2, 2), (2, 2)),
        blocks=1,
        time_kernels=((1, 1), (1, 1), (3, 1)),
        shuffle=True,
    ),
    "tiny": TokenizerConfig(
        bits=12,
        patch=(4, 4),
        channels=(8, 12, 16),
        strides=((1, 2), (1, 2)),
        blocks=1,
        time_kernels=((1, 1), (1, 1), (1, 1)),
    ),
}


@dataclass
class FrameSubject:
    """A pipeline that is ready to be profiled, and its eager twin if asked for."""

    pipeline: VideoPipeline
    shape: Shape
    options: Options
    guidance: GuidanceSchedule
    prompts: list[Prompt]
    facts: dict[str, str]
    includes: list[str]
    eager: EagerClip | None = None

    @property
    def config(self) -> TransformerConfig:
        return self.pipeline.transformer.config

    @property
    def latent_frames(self) -> int:
        return self.pipeline.tokenizer.config.latent_frames(self.shape.frames)

    @property
    def computing(self) -> torch.dtype:
        return self.options.pack or self.pipeline.transformer.dtype

    def contenders(self) -> list[Contender]:
        """Ours, and eager PyTorch if it was asked for."""
        found = [Contender("videoar", self.run, dtype_name(self.computing))]
        if self.eager is not None:
            found.append(Contender("eager", self.run_eager, dtype_name(self.eager.twin.start.dtype)))
        return found

    def disagreement(self) -> float | None:
        """How far the two's logits are apart, relative to eager PyTorch's."""
        if self.eager is None:
            return None
        rows = 1 if self.guidance.is_one else 2
        features = self.pipeline.conditioner(self.prompts[:1]).expand(rows, -1, -1)
        transformer = self.pipeline.transformer
        found = disagreement(transformer, self.eager.twin, features, self.latent_frames)
        return checked_disagreement(found, self.options, transformer.dtype, "logits")

    def work(self) -> ClipWork:
        """What a clip needs, weights and cache in the transformer's dtype."""
        size = torch.empty((), dtype=self.computing).element_size()
        rows = self.options.batch * (1 if self.guidance.is_one else 2)
        transformer = TransformerWork(self.config, rows, weight_bytes=size, cache_bytes=size)
        steps = []
        for step in transformer.steps(self.latent_frames):
            height, width = self.config.scales[step.scale]
            place = f"frame {step.frame}, scale {height}x{width}"
            steps.append(StepWork(step.frame, step.scale, (height, width), f"{height}x{width}", place, *step[2:]))
        works = [step.work for step in steps]
        # Where a step is one CUDA graph it is not divided further.
        parts = {"prefill": [transformer.text()], "transformer": works, "step": works}
        if self.options.decode:
            tokenizer = self.pipeline.tokenizer.config
            size = self.pipeline.tokenizer.decoding.itemsize
            parts["decode"] = decoder_work(tokenizer, self.latent_frames, self.options.batch, element_bytes=size)
        return ClipWork(steps, parts, sum(step.tokens for step in steps))

    def run(self, observer: Observer) -> None:
        """Makes one clip as `videoar generate` does."""
        make = self.pipeline.stream if self.options.decode else self.pipeline.latents
        options = {"frames": self.shape.frames, "guidance": self.guidance, "observer": observer}
        for _ in make(self.prompts, **options):
            pass

    def run_eager(self, observer: Observer) -> None:
        """Makes one clip in eager PyTorch."""
        options = {"guidance": self.guidance, "decode": self.options.decode, "observer": observer}
        for _ in self.eager.stream(self.prompts, latent_frames=self.latent_frames, **options):
            pass


def preset_subject(
    name: str, options: Options, *, shape: Shape | None = None, scales: Scales | None = None, layers: int | None = None
) -> FrameSubject:
    """A preset with random weights; `layers` cuts it down to its first few blocks.

    Raises:
        ValueError: if there is no such preset, or the sizes don't fit.
    """
    whole = preset(name)
    if layers is not None and not 1 <= layers <= whole.depth:
        raise ValueError(f"profile: expected --layers from 1 to {whole.depth} for preset {name}, got {layers}")
    config, tokenizer, shape = fitted(
        whole.replace(depth=layers or whole.depth),
        SMALL_TOKENIZERS.get(name, TokenizerConfig(bits=whole.bits)),
        shape,
        scales,
    )
    classes = config.text_len == 1
    conditioner = (
        ClassEncoder(ClassEncoderConfig(UCF_CLASSES, config.text_width)).to(options.device)
        if classes
        else RandomFeatures(config.text_len, config.text_width, options.device)
    )
    transformer = random_transformer(config, dtype=random_dtype(options), device=options.device)
    guidance = GuidanceSchedule.ucf() if classes else GuidanceSchedule.text()
    defaults = SamplingDefaults(guidance=guidance, frames=shape.frames)
    pipeline = VideoPipeline(
        random_tokenizer(tokenizer, device=options.device), transformer, conditioner.eval(), defaults
    )
    cut = f", {config.depth} of {whole.depth} layers" if config.depth < whole.depth else ""
    text = (
        "the class embedding"
        if classes
        else "the text prefix (random features stand for the text encoder, which is in no figure)"
    )
    return _ready(pipeline, shape, options, {"model": f"preset {name}{cut}", "weights": "random"}, text)


def folder_subject(
    folder: Path, options: Options, *, shape: Shape | None = None, scales: Scales | None = None
) -> FrameSubject:
    """A saved model.

    Raises:
        FileNotFoundError: if the folder lacks a part.
        ValueError: if the model is of another size.
    """
    pipeline = VideoPipeline.from_pretrained(folder).to(options.device)
    if scales is not None:
        raise ValueError("profile: expected --scales only with --preset; a saved model has its own")
    frames = shape.frames if shape else pipeline.defaults.frames
    own = Shape(frames, *pipeline.frame_size)
    stride = pipeline.tokenizer.config.time_stride
    if (shape or own) != own or (frames - 1) % stride:
        raise ValueError(f"profile: expected --shape (1 + n * {stride})x{own.height}x{own.width}, got {shape or own}")
    if options.dtype is not None:
        pipeline.transformer.to(options.dtype)
    kind = getattr(pipeline.conditioner.config, "kind", "text")
    return _ready(pipeline, own, options, {"model": str(folder), "weights": "given"}, f"the conditioner ({kind})")


def random_dtype(options: Options) -> torch.dtype:
    if options.compare_eager:
        return eager_dtype(options, torch.float32)
    return options.pack or options.dtype or torch.float32


def eager_dtype(options: Options, own: torch.dtype) -> torch.dtype:
    """What eager PyTorch computes in: the same, but float32 where the processor would crawl."""
    wanted = options.pack or options.dtype or own
    return torch.float32 if emulated(wanted, options.device) else wanted


def _ready(pipeline: VideoPipeline, shape: Shape, options: Options, facts: dict[str, str], text: str) -> FrameSubject:
    transformer, own = pipeline.transformer, pipeline.defaults.guidance
    transformer.requires_grad_(False)
    weights = sum(parameter.numel() for parameter in transformer.parameters())
    eager = None
    if options.compare_eager:
        if transformer.config.window is not None:
            raise ValueError("profile: expected a model without a window for --compare eager: the twin keeps all")
        transformer.to(eager_dtype(options, transformer.dtype))
        eager = EagerClip(pipeline, EagerTransformer(transformer, whole_clips=False).eval())
    if options.pack is not None:
        pipeline.pack(options.pack)
    elif options.compare_eager and options.dtype is not None:
        transformer.to(options.dtype)
    if options.decode_dtype is not None or options.device == "cuda":
        pipeline.decode_in(options.decode_dtype or torch.bfloat16)
    guidance = own
    if options.guidance is False:
        guidance = GuidanceSchedule()
    elif options.guidance and own.is_one:
        guidance = GuidanceSchedule.constant(2.0)
    is_class = isinstance(pipeline.conditioner, ClassEncoder)
    packed = f"{dtype_name(options.pack)}, packed" if options.pack else dtype_name(transformer.dtype)
    facts |= {
        "clip": f"{shape} pixels (frames x height x width)",
        "scales": " ".join(f"{h}x{w}" for h, w in transformer.config.scales),
        "batch": str(options.batch),
        "guidance": "off" if guidance.is_one else "on: each step runs with and without the condition, as one batch",
        "transformer": f"{packed}; {weights / 1e6:,.1f} M weights",
        "tokenizer": f"decodes in {dtype_name(pipeline.tokenizer.decoding)}" if options.decode else "not run",
        "device": options.device,
        "steps": how_steps_run(torch.device(options.device)),
    }
    prompts: list[Prompt] = [0 if is_class else ""] * options.batch
    return FrameSubject(pipeline, shape, options, guidance, prompts, facts, _includes(text, options.decode), eager)


def _includes(text: str, decode: bool) -> list[str]:
    """Sentences on what the figures include."""
    drawn = (
        "drawing the bits, the pyramid, and the decoder to float pixels"
        if decode
        else "drawing the bits, and the pyramid"
    )
    return [
        f"A clip includes {text}, every (frame, scale) step of the transformer through the key/value cache, {drawn}.",
        f"It leaves out loading and packing weights, {'' if decode else 'decoding (--no-decode), '}turning pixels into "
        "bytes, copying them from a GPU, and writing a file.",
        "FLOPs and bytes are counted from the configuration: linear layers, attention, weights, cache, convolutions; "
        "not norms, RoPE, SwiGLU, drawing, pyramid.",
        "A floor is the sum over steps of the longer of FLOPs at the matmul limit and bytes at the copy limit.",
    ]
