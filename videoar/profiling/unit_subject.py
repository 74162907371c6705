"""Paper U as it is profiled: backbone, units, how they are sampled, and the autoencoder that decodes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from videoar.decode_ahead import decode_ahead
from videoar.next_unit.autoencoders import Autoencoder
from videoar.next_unit.config import BackboneConfig, preset
from videoar.next_unit.frames import latent_frames
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.pipeline import UnitPipeline
from videoar.next_unit.sampling import SamplingOptions, UnitDecoder
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.next_unit.units import UnitScheme, parse_units
from videoar.next_unit.wan_vae import WanVideoAutoencoder
from videoar.observer import Observer
from videoar.profiling.contender import ClipWork, Contender, Options, checked_disagreement
from videoar.profiling.eager_backbone import EagerBackbone, EagerUnits, flow_disagreement
from videoar.profiling.limits import dtype_name
from videoar.profiling.random_weights import RandomFeatures, random_backbone
from videoar.profiling.shapes import Shape
from videoar.profiling.subject import eager_dtype, random_dtype
from videoar.profiling.unit_work import BackboneWork, autoencoder_work
from videoar.step_graphs import how_steps_run, step_runner
from videoar.text import Conditioner
from videoar.tokenizer import AutoencoderConfig
from videoar.tokenizer.autoencoder import VideoAutoencoder

SHAPES = {"1.3B": Shape(81, 480, 832), "sprites": Shape(17, 64, 64), "tiny": Shape(9, 32, 32)}
# That of 1.3B is diffusers', which is not needed to profile the transformer alone.
SMALL_AUTOENCODERS = {
    "sprites": AutoencoderConfig(
        latent_channels=16,
        patch=(1, 4),
        channels=(48, 96, 96),
        strides=((2, 2), (2, 2)),
        blocks=1,
        time_kernels=((1, 1), (1, 1), (3, 1)),
        shuffle=True,
    ),
    "tiny": AutoencoderConfig(
        latent_channels=4, patch=(4, 4), channels=(8, 12), strides=((1, 2),), blocks=1, time_kernels=((1, 1), (1, 1))
    ),
}
WAN_STRIDES = (4, 8)  # time and space
UNIT_PARTS = ("noise", "transformer", "clean")
GUIDANCE = 5.0  # where it is asked for and the model has none


@dataclass
class UnitSubject:
    """A backbone and its autoencoder, ready to be profiled, and its eager twin if asked for."""

    model: NextUnitTransformer
    autoencoder: Autoencoder | None
    conditioner: Conditioner
    layout: UnitLayout
    sampling: SamplingOptions
    shape: Shape
    options: Options
    facts: dict[str, str]
    includes: list[str]
    eager: EagerUnits | None = None

    @property
    def computing(self) -> torch.dtype:
        return self.options.pack or self.model.dtype

    @cached_property
    def decoder(self) -> UnitDecoder:
        run = step_runner(torch.device(self.options.device))
        return UnitDecoder(self.model, self.text(), self.layout, options=self.sampling, run=run)

    def text(self, prompt: str | None = "") -> Tensor:
        """Features of the batch's prompts, or of none."""
        return self.conditioner([prompt] * self.options.batch)

    def contenders(self) -> list[Contender]:
        """Ours, without decoding too where there is an autoencoder, and eager PyTorch if it was asked for."""
        name = dtype_name(self.computing)
        found = [Contender("videoar", self.run, name)]
        if self.autoencoder is not None:
            found.append(Contender("without decoding", lambda observer: self.run(observer, decode=False), name))
        if self.eager is not None:
            found.append(Contender("eager", self.run_eager, dtype_name(self.eager.twin.dtype)))
        return found

    def run(self, observer: Observer, *, decode: bool = True) -> None:
        """Makes one clip."""
        with observer.part("text"):
            text, uncond = self.text(), self.text(None) if self.sampling.guidance != 1 else None
        seeds = list(range(self.options.batch))
        units = self.decoder.decode(text, seeds=seeds, uncond=uncond, observer=observer)
        if decode and self.autoencoder is not None:
            latents = latent_frames(units, self.layout, self.model.config.patch)
            units = decode_ahead(latents, self.autoencoder.decode_chunk, observer)
        for _ in units:
            pass

    def run_eager(self, observer: Observer) -> None:
        """Makes one clip in eager PyTorch."""
        with observer.part("text"):
            text = self._rows()
        self.eager.run(text, observer)

    def _rows(self) -> Tensor:
        return torch.cat([self.text(), self.text(None)]) if self.sampling.guidance != 1 else self.text()

    def disagreement(self) -> float | None:
        """How far the two's flows are apart, relative to eager PyTorch's."""
        if self.eager is None:
            return None
        found = flow_disagreement(self.model, self.eager.twin, self.layout, self._rows())
        return checked_disagreement(found, self.options, self.model.dtype, "flow")

    def work(self) -> ClipWork:
        """What a clip needs, weights and cache in the backbone's dtype."""
        size = torch.empty((), dtype=self.computing).element_size()
        rows = self.options.batch * (1 if self.sampling.guidance == 1 else 2)
        backbone = BackboneWork(self.model.config, rows, weight_bytes=size, cache_bytes=size)
        steps = backbone.passes(self.layout, self.sampling.steps)
        parts = {
            "text": [backbone.text()],
            "transformer": [step.work for step in steps if step.scale < self.sampling.steps],
            "clean": [step.work for step in steps if step.scale == self.sampling.steps],
        }
        if self.autoencoder is not None:
            config, grid = self.model.config, self.layout.grid
            cells = (cells * patch for cells, patch in zip(grid, config.patch, strict=True))
            parts["decode"] = autoencoder_work(
                self.autoencoder, (self.options.batch, config.channels, *cells), _element(self.autoencoder)
            )
        return ClipWork(steps, parts, self.layout.length, UNIT_PARTS)


def unit_preset_subject(
    name: str, options: Options, *, units: str, steps: int, shape: Shape | None = None, layers: int | None = None
) -> UnitSubject:
    """A preset with random weights; `layers` cuts it down to its first few blocks.

    Raises:
        ValueError: if there is no such preset, or the sizes don't fit.
    """
    whole, scheme = preset(name), parse_units(units)
    if layers is not None and not 1 <= layers <= whole.depth:
        raise ValueError(f"profile: expected --layers from 1 to {whole.depth} for preset {name}, got {layers}")
    small, shape = SMALL_AUTOENCODERS.get(name), shape or SHAPES.get(name, SHAPES["1.3B"])
    strides = (small.time_stride, small.space_stride) if small else WAN_STRIDES
    layout = _layout(scheme, shape, strides, whole)
    levels = len(layout.levels) if len(layout.levels) > 1 else 0
    config = whole.replace(depth=layers or whole.depth, levels=levels)
    autoencoder, absent = _random_autoencoder(small, options) if options.decode else (None, "not run (--no-decode)")
    model = random_backbone(config, dtype=random_dtype(options), device=options.device)
    features = RandomFeatures(config.text_len, config.text_width, options.device)
    cut = f", {config.depth} of {whole.depth} layers" if config.depth < whole.depth else ""
    facts = {"model": f"preset {name}{cut}", "weights": "random"}
    sampling = SamplingOptions(steps, guidance=GUIDANCE if options.guidance else 1.0)
    text = "the prompt's keys and values (random features stand for the text encoder, which is in no figure)"
    parts = (model, autoencoder, features)
    return _ready(parts, (scheme, layout), sampling, shape, options, facts, absent, text)


def unit_folder_subject(
    folder: Path, options: Options, *, units: str | None, steps: int | None, shape: Shape | None = None
) -> UnitSubject:
    """A saved model, sampled as it says except for what is given.

    Raises:
        FileNotFoundError: if the folder lacks a part.
        ValueError: if the model is of another size.
    """
    pipeline = UnitPipeline.from_pretrained(folder).to(options.device).with_options(units=units, steps=steps)
    defaults, sampling = pipeline.defaults, pipeline.defaults.options
    if options.guidance is not None:
        strength = sampling.guidance if sampling.guidance != 1 else GUIDANCE
        sampling = replace(sampling, guidance=strength if options.guidance else 1.0)
    model = pipeline.transformer
    if options.dtype is not None:
        model.to(options.dtype)
    own = Shape(pipeline.frames, *pipeline.frame_size)
    if (shape or own) != own:
        raise ValueError(f"profile: expected --shape {own}, got {shape}")
    autoencoder = pipeline.autoencoder if options.decode else None
    parts = (model, autoencoder, pipeline.conditioner)
    facts = {"model": str(folder), "weights": "given"}
    cut = (parse_units(defaults.units), defaults.layout)
    return _ready(parts, cut, sampling, own, options, facts, "not run (--no-decode)", "the conditioner")


def _layout(scheme: UnitScheme, shape: Shape, strides: tuple[int, int], config: BackboneConfig) -> UnitLayout:
    (time, space), (frames, height, width) = strides, config.patch
    latent = (shape.frames - 1) // time + 1
    sizes = (latent, shape.height, shape.width)
    cells = (frames, space * height, space * width)
    if (shape.frames - 1) % time or any(size % cell for size, cell in zip(sizes, cells, strict=True)):
        raise ValueError(
            f"profile: expected --shape of 1 + n * {time} frames and multiples of {space * height} x {space * width} "
            f"pixels, got {shape}"
        )
    return scheme.on(tuple(size // cell for size, cell in zip(sizes, cells, strict=True)))


def _random_autoencoder(small: AutoencoderConfig | None, options: Options) -> tuple[Autoencoder | None, str]:
    """With random weights; or None, and why."""
    if small is not None:
        with torch.device(options.device):
            return VideoAutoencoder(small).eval().requires_grad_(False), ""
    try:
        from diffusers import AutoencoderKLWan
    except ImportError:
        return None, "not run, because diffusers is not installed (pip install diffusers)"
    with torch.device(options.device):
        vae = AutoencoderKLWan()
    return WanVideoAutoencoder(vae.to(torch.bfloat16) if options.device == "cuda" else vae), ""


def _ready(parts, cut, sampling, shape, options, facts, absent, text) -> UnitSubject:
    (model, autoencoder, conditioner), (scheme, layout) = parts, cut
    model.requires_grad_(False)
    weights = sum(parameter.numel() for parameter in model.parameters())
    eager = None
    if options.compare_eager:
        model.to(eager_dtype(options, model.dtype))
        eager = EagerUnits(EagerBackbone(model).eval(), layout, sampling, autoencoder)
    if options.pack is not None:
        model.pack(options.pack)
    elif options.compare_eager and options.dtype is not None:
        model.to(options.dtype)
    packed = f"{dtype_name(options.pack)}, packed" if options.pack else dtype_name(model.dtype)
    lengths = sorted(set(layout.lengths))
    tokens = f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"
    guided = "off" if sampling.guidance == 1 else "on: each pass runs with and without the prompt, as one batch"
    facts |= {
        "clip": f"{shape} pixels (frames x height x width)",
        "units": f"{scheme}: {len(layout.units)} of {tokens} tokens, {sampling.steps} steps and a clean pass each",
        "batch": str(options.batch),
        "guidance": guided,
        "transformer": f"{packed}; {weights / 1e6:,.1f} M weights",
        "autoencoder": absent if autoencoder is None else _kind(autoencoder),
        "device": options.device,
        "passes": how_steps_run(torch.device(options.device)),
    }
    includes = _includes(text, None if autoencoder is not None else absent)
    return UnitSubject(model, autoencoder, conditioner.eval(), layout, sampling, shape, options, facts, includes, eager)


def _kind(autoencoder: Autoencoder) -> str:
    if not isinstance(autoencoder, WanVideoAutoencoder):
        return "ours, float32"
    return f"diffusers' AutoencoderKLWan, {dtype_name(autoencoder.vae.dtype)}"


def _element(autoencoder: Autoencoder) -> int:
    return autoencoder.vae.dtype.itemsize if isinstance(autoencoder, WanVideoAutoencoder) else 4


def _includes(text: str, absent: str | None) -> list[str]:
    """Sentences on what the figures include."""
    decoded = ", and the decoder to float pixels" if absent is None else ""
    return [
        f"A clip includes {text}, the noise, drawn on the CPU, every pass over every unit through the key/value cache, "
        f"the clean ones too{decoded}.",
        f"It leaves out loading and packing weights, {f'decoding ({absent}), ' if absent else ''}turning pixels into "
        "bytes, copying them from a GPU, and writing a file.",
        "FLOPs and bytes are counted from the configuration: linear layers, attention, weights, cache, convolutions; "
        "not norms, RoPE, modulation, GELU, and the steps between noise levels.",
        "A floor is the sum over passes of the longer of FLOPs at the matmul limit and bytes at the copy limit.",
    ]
