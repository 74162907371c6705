"""A small continuous video autoencoder for paper U: the tokenizer's causal 3D CNN without its bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from videoar.model_folder import load_model, save_model_folder
from videoar.tokenizer.config import AutoencoderConfig
from videoar.tokenizer.layers import Tails
from videoar.tokenizer.model import DecodedChunk, DecoderState, EncoderState
from videoar.tokenizer.network import Decoder, Encoder


class LatentChunk(NamedTuple):
    """Latents (B, C, T', H', W'), T' may be 0, and the state for the next chunk."""

    latents: Tensor
    state: EncoderState


class VideoAutoencoder(nn.Module):
    """Video (B, 3, T, H, W) in [-1, 1] to latents (B, C, T', H', W') of about zero mean and unit variance, and back.

    The first frame is a latent frame of its own, then every `config.time_stride` frames are one. A latent frame depends
    on no later frame, nor does a decoded one; state is explicit, as in `VideoTokenizer`.

    Args:
        config: its shape.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))
        self.to(memory_format=torch.channels_last_3d)

    def encode_chunk(self, video: Tensor, state: EncoderState | None = None) -> LatentChunk:
        """Encode the next frames of a stream.

        Args:
            video: (B, 3, T >= 1, H, W) in [-1, 1]; H and W multiples of `config.space_stride`.
            state: what the chunk before returned; None at the start.

        Raises:
            ValueError: a shape that does not fit.
        """
        self.config.check_video(video)
        tails = Tails(None if state is None else state.tails)
        mean, std = self._statistics()
        return LatentChunk((self.encoder(video, tails) - mean) / std, EncoderState(tails.collect()))

    def decode_chunk(self, latents: Tensor, state: DecoderState | None = None) -> DecodedChunk:
        """Decode the next latent frames (B, C, T' >= 1, H', W') of a stream; `state` as for `encode_chunk`.

        Raises:
            ValueError: a shape that does not fit.
        """
        if latents.ndim != 5 or latents.shape[2] < 1 or latents.shape[1] != self.config.latent_channels:
            expected = f"(B, {self.config.latent_channels}, T >= 1, H, W)"
            raise ValueError(f"decode: expected latents of shape {expected}, got {tuple(latents.shape)}")
        tails = Tails(None if state is None else state.tails)
        mean, std = self._statistics()
        return DecodedChunk(self.decoder(latents * std + mean, tails), DecoderState(tails.collect()))

    def encode(self, video: Tensor) -> Tensor:
        """Latents (B, C, T', H', W') of a whole video."""
        return self.encode_chunk(video).latents

    def decode(self, latents: Tensor) -> Tensor:
        """Video (B, 3, T, H, W) of all latents of a stream; not clamped."""
        return self.decode_chunk(latents).video

    @torch.no_grad()
    def calibrate(self, videos: Iterable[Tensor]) -> None:
        """Set the latents' mean and standard deviation by channel to what these videos have, first frames aside."""
        mean, std = self._statistics()
        found = torch.cat(
            [(self.encode(video) * std + mean)[:, :, 1:].transpose(0, 1).flatten(1) for video in videos], 1
        )
        self.latent_mean.copy_(found.mean(1))
        self.latent_std.copy_(found.std(1))

    def _statistics(self) -> tuple[Tensor, Tensor]:
        return self.latent_mean[:, None, None, None], self.latent_std[:, None, None, None]

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors; weights in `dtype`, if given."""
        save_model_folder(folder, asdict(self.config), self.state_dict(), dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VideoAutoencoder:
        """Read what `save_pretrained` wrote, in float32 and evaluation mode."""
        return load_model(folder, cls, AutoencoderConfig)
