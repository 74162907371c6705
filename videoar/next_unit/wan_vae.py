"""Wan 2.1's video autoencoder: diffusers' weights and layers, behind a decoder that streams with its state in the open.

diffusers keeps what a convolution remembers of earlier frames on the module, and forgets it after every call. Here it
is an argument and a result, so that many streams share one model. Source: Wan 2.1; diffusers' `AutoencoderKLWan`.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

TIME_STRIDE = 4


class WanLatents(NamedTuple):
    """Shape of the latents: pixel frames and pixels a cell, and channels."""

    time_stride: int
    space_stride: int
    latent_width: int


class WanDecoderState(NamedTuple):
    """What decoding the next latent frames of a stream needs of those before; never written into.

    Attributes:
        features: of every causal convolution its last input frames, or diffusers' mark that there were too few.
    """

    features: tuple[Tensor | str | None, ...]


class WanChunk(NamedTuple):
    """Video (B, 3, T, H, W) in [-1, 1] and the state for the next chunk."""

    video: Tensor
    state: WanDecoderState


class WanVideoAutoencoder:
    """Video to latents and back, latents normalised as Wan's transformer expects them.

    Args:
        vae: diffusers' model, of Wan 2.1.

    Raises:
        ValueError: a model that cuts pixels into patches, which Wan 2.1's does not.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        if vae.config.get("patch_size") is not None:
            raise ValueError(f"WanVideoAutoencoder: expected no patch_size, got {vae.config.patch_size}")
        self.vae = vae.eval().requires_grad_(False)
        self.config = WanLatents(TIME_STRIDE, 2 ** (len(vae.config.dim_mult) - 1), vae.config.z_dim)
        convolution = type(vae.post_quant_conv)
        self._slots = sum(isinstance(module, convolution) for module in vae.decoder.modules())

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> WanVideoAutoencoder:
        """Reads diffusers' folder, or its `vae/`; nothing is downloaded.

        Raises:
            ImportError: diffusers is not installed. FileNotFoundError: no such folder.
        """
        try:
            from diffusers import AutoencoderKLWan
        except ImportError as error:
            raise ImportError("WanVideoAutoencoder needs `pip install diffusers`") from error
        folder = Path(folder)
        place = folder / "vae" if (folder / "vae").is_dir() else folder
        if not (place / "config.json").is_file():
            raise FileNotFoundError(f"WanVideoAutoencoder: {place} has no config.json")
        return cls(AutoencoderKLWan.from_pretrained(place, local_files_only=True, torch_dtype=dtype))

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Writes diffusers' folder, the weights in `dtype` if given."""
        (copy.deepcopy(self.vae).to(dtype) if dtype else self.vae).save_pretrained(folder)

    def to(self, device: torch.device | str) -> WanVideoAutoencoder:
        self.vae.to(device)
        return self

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Latents of a video: the posterior's mean, so the same on every run.

        Args:
            video: (B, 3, 4 n + 1, H, W) in [-1, 1].

        Returns:
            (B, 16, n + 1, H / 8, W / 8), normalised.

        Raises:
            ValueError: another number of frames, of which diffusers would drop the last ones.
        """
        if video.ndim != 5 or video.shape[2] % TIME_STRIDE != 1:
            raise ValueError(
                f"WanVideoAutoencoder.encode: expected video (B, 3, 4 n + 1, H, W), got {tuple(video.shape)}"
            )
        mean, std = self._statistics(video)
        return (self.vae.encode(video).latent_dist.mode() - mean) / std

    @torch.no_grad()
    def decode_chunk(self, latents: Tensor, state: WanDecoderState | None = None) -> WanChunk:
        """The next frames of a stream: one for its first latent frame, then four for each.

        Args:
            latents: (B, 16, n, h, w), normalised; n may change from chunk to chunk.
            state: of the chunk before; None at the start of a stream.

        Raises:
            ValueError: no latent frame.
        """
        if latents.ndim != 5 or not latents.shape[2]:
            raise ValueError(
                f"WanVideoAutoencoder.decode_chunk: expected latents (B, C, n >= 1, h, w), got {tuple(latents.shape)}"
            )
        mean, std = self._statistics(latents)
        features = [None] * self._slots if state is None else list(state.features)
        x = self.vae.post_quant_conv((latents * std + mean).to(self.vae.dtype))
        frames = []
        for i in range(x.shape[2]):
            first = state is None and i == 0
            frames.append(self.vae.decoder(x[:, :, i : i + 1], feat_cache=features, feat_idx=[0], first_chunk=first))
        return WanChunk(torch.cat(frames, dim=2).clamp(-1, 1), WanDecoderState(tuple(features)))

    def decode(self, latents: Tensor) -> Tensor:
        """The whole video (B, 3, 4 n - 3, H, W) of latents (B, 16, n, h, w)."""
        return self.decode_chunk(latents).video

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        return tuple(
            _on_device(tuple(values), like.dtype, like.device) for values in (config.latents_mean, config.latents_std)
        )


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(C, 1, 1, 1); kept, for copying it for every chunk would wait for a GPU and all that is queued there."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None, None]
