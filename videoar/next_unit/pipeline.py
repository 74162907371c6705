"""Text in, video out, unit after unit. A folder holds autoencoder, transformer, text and how to sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from videoar.decode_ahead import decode_ahead
from videoar.model_folder import replaced_folder, write_json
from videoar.next_unit.autoencoders import Autoencoder, load_autoencoder
from videoar.next_unit.defaults import WAN_DEFAULTS, UnitDefaults
from videoar.next_unit.frames import latent_frames, whole_frames
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.prompt_switch import with_switches
from videoar.next_unit.sampling import UnitDecoder
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.next_unit.wan import load_wan
from videoar.next_unit.wan_vae import WanVideoAutoencoder
from videoar.step_graphs import KeptDecoders
from videoar.text import (
    Conditioner,
    PretrainedTextConfig,
    PretrainedTextEncoder,
    Prompt,
    check_prompts,
    is_one_prompt,
    load_conditioner,
)
from videoar_kernels.argument_types import whole


class UnitPipeline:
    """An autoencoder, a transformer and a conditioner that belong together.

    Args:
        autoencoder, transformer, conditioner: the parts, on one device.
        defaults: how to sample where the caller says nothing.

    Raises:
        ValueError: parts that do not fit one another.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        transformer: NextUnitTransformer,
        conditioner: Conditioner,
        defaults: UnitDefaults | None = None,
    ) -> None:
        channels, width = transformer.config.channels, transformer.config.text_width
        if autoencoder.config.latent_width != channels:
            raise ValueError(
                f"UnitPipeline: expected an autoencoder of {channels} channels, got {autoencoder.config.latent_width}"
            )
        if conditioner.width != width:
            raise ValueError(f"UnitPipeline: expected text features of width {width}, got {conditioner.width}")
        self.autoencoder, self.transformer, self.conditioner = autoencoder, transformer, conditioner
        self.defaults = defaults or UnitDefaults()
        self._decoders = KeptDecoders()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> UnitPipeline:
        """Read a folder that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: a part is missing. ValueError: a sampling.json of something else.
        """
        folder = Path(folder)
        if not (folder / "sampling.json").is_file():
            raise FileNotFoundError(f"UnitPipeline: expected sampling.json in {folder}")
        return cls(
            load_autoencoder(folder / "autoencoder"),
            NextUnitTransformer.from_pretrained(folder / "transformer"),
            load_conditioner(folder / "text"),
            UnitDefaults.read(folder / "sampling.json"),
        )

    @classmethod
    def from_wan(
        cls, folder: str | Path, defaults: UnitDefaults = WAN_DEFAULTS, *, dtype: torch.dtype = torch.float32
    ) -> UnitPipeline:
        """Read Wan 2.1 from a local folder in diffusers' layout: `transformer/`, `vae/`, `text_encoder/`, `tokenizer/`.

        Args:
            folder: nothing is downloaded.
            defaults: by default the full-attention sampling that the public weights were trained for, though without
                a negative prompt.
            dtype: of the transformer and the autoencoder.

        Raises:
            FileNotFoundError: a part is missing. ImportError: diffusers or transformers is not installed.
        """
        transformer = load_wan(folder, dtype=dtype).model
        text = PretrainedTextConfig(str(folder), length=transformer.config.text_len)
        autoencoder = WanVideoAutoencoder.from_pretrained(folder, dtype=dtype)
        return cls(autoencoder, transformer, PretrainedTextEncoder(text), defaults)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write `autoencoder/`, `transformer/`, `text/` and `sampling.json`, whole or not at all.

        Args:
            folder: to create or replace.
            dtype: of the weights; None keeps theirs.

        Raises:
            ValueError: after `pack`.
        """
        with replaced_folder(folder) as fresh:
            self.autoencoder.save_pretrained(fresh / "autoencoder", dtype=dtype)
            self.transformer.save_pretrained(fresh / "transformer", dtype=dtype)
            self.conditioner.save_pretrained(fresh / "text", dtype=dtype)
            write_json(fresh / "sampling.json", asdict(self.defaults))

    def to(self, device: torch.device | str) -> UnitPipeline:
        for part in (self.autoencoder, self.transformer, self.conditioner):
            part.to(device)
        self._decoders.clear()
        return self

    def pack(self, dtype: torch.dtype = torch.bfloat16) -> UnitPipeline:
        """Puts the transformer into its form for inference, in place: `NextUnitTransformer.pack`."""
        self.transformer.pack(dtype)
        self._decoders.clear()
        return self

    @property
    def device(self) -> torch.device:
        return self.transformer.patch_embedding.weight.device

    @property
    def frames(self) -> int:
        """Pixel frames of one clip."""
        return self.pixel_frames(self.clip_latents)

    @property
    def clip_latents(self) -> int:
        """Latent frames of one clip."""
        return self.defaults.grid[0] * self.transformer.config.patch[0]

    def pixel_frames(self, latents: int) -> int:
        """Pixel frames of the first latent frames, of which the very first holds one: where the next one begins."""
        return 1 + (latents - 1) * self.autoencoder.config.time_stride

    def last_switch(self, frames: int) -> float:
        """Second up to which another prompt still shows in a stream of so many pixel frames; 0 where none does."""
        patch, clips = self.transformer.config.patch[0], range(0, frames + 1, self.clip_latents)
        latents = (clip + patch * count for clip in clips for count in whole_frames(self.defaults.layout))
        return (
            max((begin for begin in map(self.pixel_frames, latents) if begin < frames), default=0) / self.defaults.fps
        )

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        sizes = zip(self.defaults.grid[1:], self.transformer.config.patch[1:], strict=True)
        height, width = (cells * patch * self.autoencoder.config.space_stride for cells, patch in sizes)
        return height, width

    def with_options(self, **changes) -> UnitPipeline:
        """The same parts with other defaults; what is None stays."""
        said = {name: value for name, value in changes.items() if value is not None}
        return UnitPipeline(self.autoencoder, self.transformer, self.conditioner, replace(self.defaults, **said))

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        frames: int | None = None,
        seed: int | Sequence[int] = 0,
        **changes,
    ) -> Tensor:
        """Pixels (B, 3, frames, H, W) in [-1, 1].

        Args:
            prompts: B captions or classes; None and "" are no condition.
            frames: in pixels; one clip if None.
            seed: one for all prompts, or one each; a (seed, prompt) gives the same video in any batch, on a GPU
                up to what rounding makes of it.
            changes: other values for fields of `UnitDefaults`, such as steps, guidance or units.

        Raises:
            ValueError: no frame, another number of seeds, or values that make no sense. TypeError: a prompt in place
                of a list of them, or frames or seeds that are no ints.
        """
        frames = self.with_options(**changes).frames if frames is None else frames
        return torch.cat(list(self.stream(prompts, frames=frames, seed=seed, **changes)), dim=2)

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[Prompt],
        *,
        frames: int | None = None,
        seed: int | Sequence[int] = 0,
        switches: Mapping[float, Prompt | Sequence[Prompt]] | None = None,
        **changes,
    ) -> Iterator[Tensor]:
        """Yield pixels (B, 3, n, H, W) in [-1, 1] as soon as their latent frames are complete.

        Args:
            prompts, seed, changes: as `generate`.
            frames: pixel frames in all; without end if None.
            switches: other prompts, B or one for all, by the second from which they hold: they are taken up where the
                next unit begins a frame. Times later than the last one taken up may be added while it runs.

        Raises:
            ValueError: as `generate`, a switch at the very beginning or earlier, or one too late to show.
        """
        left = frames
        latents = self.latents(prompts, frames=frames, seed=seed, switches=switches, **changes)
        for video in decode_ahead(latents, self.autoencoder.decode_chunk):
            if left is not None:
                video = video[:, :, :left]
                left -= video.shape[2]
            yield video

    @torch.no_grad()
    def latents(
        self,
        prompts: Sequence[Prompt],
        *,
        frames: int | None = None,
        seed: int | Sequence[int] = 0,
        switches: Mapping[float, Prompt | Sequence[Prompt]] | None = None,
        **changes,
    ) -> Iterator[Tensor]:
        """Yield latents (B, C, n, H', W') in the order of time as they are complete; arguments as `stream`."""
        check_prompts("UnitPipeline", prompts)
        asked = self.with_options(**changes)
        chosen = asked.defaults
        frames = None if frames is None else whole("UnitPipeline", "frames", frames)
        if frames is not None and frames < 1:
            raise ValueError(f"UnitPipeline: expected at least one frame, got {frames}")
        if switches and min(switches) <= 0:
            raise ValueError(f"UnitPipeline: expected switches after 0 s, got {min(switches)}")
        if switches and frames is not None and max(switches) > (last := asked.last_switch(frames)):
            raise ValueError(
                f"UnitPipeline: expected switches up to {last:g} s, the last that {frames} frames show, "
                f"got {max(switches)}"
            )
        count, layout, options = len(prompts), chosen.layout, chosen.options
        config, stride = self.transformer.config, self.autoencoder.config.time_stride
        needed = None if frames is None else 1 + -(-(frames - 1) // stride)  # latent frames
        clips = None if needed is None else -(-needed // asked.clip_latents)
        window = chosen.window if clips == 1 else chosen.stream_window
        text = self.conditioner(prompts)
        uncond = None if options.guidance == 1 else self.conditioner([None]).expand(count, -1, -1)
        history = None if clips == 1 else chosen.history
        shape = {"options": options, "clips": clips, "window": window, "sink": chosen.sink, "history": history}
        seeds = list(seed) if isinstance(seed, Iterable) else [seed] * count
        decoder = self._decoder(text, layout, shape)
        units = decoder.decode(text, seeds=seeds, uncond=uncond)

        def switch(said: Prompt | Sequence[Prompt]) -> None:
            decoder.switch(self.conditioner([said] * count if is_one_prompt(said) else said), uncond)

        def seconds(frames: int) -> float:
            return self.pixel_frames(frames * config.patch[0]) / chosen.fps

        if switches is not None:
            units = with_switches(units, layout, switches, seconds=seconds, switch=switch)
        for part in latent_frames(units, layout, config.patch):
            if needed is None:
                yield part
            elif needed > 0:
                yield part[:, :, :needed]
                needed -= part.shape[2]
                if needed <= 0:
                    return

    def _decoder(self, text: Tensor, layout: UnitLayout, shape: dict) -> UnitDecoder:
        """A decoder for clips like this; on CUDA one whose graphs are kept from clip to clip."""
        key = (len(text), text.dtype, text.device, layout, *shape.values())
        return self._decoders.get(
            key, text.device, lambda run: UnitDecoder(self.transformer, text, layout, run=run, **shape)
        )
