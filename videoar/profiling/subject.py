"""What is profiled: a pipeline, the size of its clips, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from videoar.next_scale.config import Scales, TransformerConfig, preset
from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.pipeline import SamplingDefaults, VideoPipeline
from videoar.observer import Observer
from videoar.profiling.eager_clip import EagerClip
from videoar.profiling.eager_model import EagerTransformer
from videoar.profiling.limits import dtype_name, emulated
from videoar.profiling.random_weights import RandomFeatures, random_tokenizer, random_transformer
from videoar.profiling.shapes import Shape, fitted
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


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a subject is run.

    Args:
        device: "cpu" or "cuda".
        batch: clips at once.
        guidance: whether each step also runs without the condition; None is the model's own choice.
        decode: whether pixels are made.
        pack: dtype to pack the transformer in, as `videoar generate --precision` does; None leaves it.
        dtype: what a transformer that is not packed computes in; None leaves it.
        compare_eager: whether eager PyTorch runs beside it.
    """

    device: str = "cpu"
    batch: int = 1
    guidance: bool | None = None
    decode: bool = True
    pack: torch.dtype | None = None
    dtype: torch.dtype | None = None
    compare_eager: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"profile: expected --batch of at least 1, got {self.batch}")
        if self.pack is not None and self.dtype is not None:
            raise ValueError("profile: expected --precision or --dtype, got both")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("profile: expected --device cpu, because this PyTorch sees no GPU")


@dataclass
class Subject:
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
) -> Subject:
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
    transformer = random_transformer(config, dtype=_random_dtype(options), device=options.device)
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
) -> Subject:
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


def _random_dtype(options: Options) -> torch.dtype:
    if options.compare_eager:
        return _eager_dtype(options, torch.float32)
    return options.pack or options.dtype or torch.float32


def _eager_dtype(options: Options, own: torch.dtype) -> torch.dtype:
    """What eager PyTorch computes in: the same, but float32 where the processor would crawl."""
    wanted = options.pack or options.dtype or own
    return torch.float32 if emulated(wanted, options.device) else wanted


def _ready(pipeline: VideoPipeline, shape: Shape, options: Options, facts: dict[str, str], text: str) -> Subject:
    transformer, own = pipeline.transformer, pipeline.defaults.guidance
    transformer.requires_grad_(False)
    weights = sum(parameter.numel() for parameter in transformer.parameters())
    eager = None
    if options.compare_eager:
        if transformer.config.window is not None:
            raise ValueError("profile: expected a model without a window for --compare eager: the twin keeps all")
        transformer.to(_eager_dtype(options, transformer.dtype))
        eager = EagerClip(pipeline, EagerTransformer(transformer, whole_clips=False).eval())
    if options.pack is not None:
        pipeline.pack(options.pack)
    elif options.compare_eager and options.dtype is not None:
        transformer.to(options.dtype)
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
        "tokenizer": "float32" if options.decode else "not run",
        "device": options.device,
    }
    prompts: list[Prompt] = [0 if is_class else ""] * options.batch
    return Subject(pipeline, shape, options, guidance, prompts, facts, _includes(text, options.decode), eager)


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
