"""The tokenizer: video to per-frame multi-scale bits and back (paper S, Sec. 4.1)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.model_folder import load_model, save_model_folder
from videoar.tokenizer.config import TokenizerConfig
from videoar.tokenizer.layers import Tails
from videoar.tokenizer.network import Decoder, Encoder
from videoar_kernels import pyramid_decode, pyramid_encode


class EncoderState(NamedTuple):
    """What encoding the next frames of a stream needs of those before."""

    tails: tuple[Tensor, ...]


class DecoderState(NamedTuple):
    """What decoding the next latent frames of a stream needs of those before."""

    tails: tuple[Tensor, ...]


class EncodedChunk(NamedTuple):
    """Latents (B, T', H', W', d), T' may be 0, and the state for the next chunk."""

    latent: Tensor
    state: EncoderState


class DecodedChunk(NamedTuple):
    """Video (B, 3, T, H, W) and the state for the next chunk."""

    video: Tensor
    state: DecoderState


class VideoTokenizer(nn.Module):
    """Causal 3D CNN with temporal-independent multi-scale bit quantization.

    Video is (B, 3, T, H, W) in [-1, 1]; latents are (B, T', H', W', d). The first frame is a latent frame of its own,
    then every `config.time_stride` frames are one; an image is a video of one frame. Frames that do not yet fill a
    latent frame wait in the encoder's state. A latent frame depends on no later frame, nor does a decoded one.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.gain = nn.Parameter(torch.tensor(1.5))  # length of a latent; a code has length 1
        self.to(memory_format=torch.channels_last_3d)

    @property
    def decoding(self) -> torch.dtype:
        """What the decoder computes in."""
        return self.decoder.conv_in.weight.dtype

    def decode_in(self, dtype: torch.dtype) -> VideoTokenizer:
        """Lets the decoder compute in another dtype from now on, in place; its weights are rounded.

        The encoder stays as it is: the signs of its results become bits. Pixels are float32 or wider all the same.

        Returns:
            The tokenizer, which can neither be trained nor saved any more if the dtype is narrower.
        """
        self.decoder.to(dtype)
        return self

    def encode_chunk(self, video: Tensor, state: EncoderState | None = None) -> EncodedChunk:
        """Encode the next frames of a stream.

        Args:
            video: (B, 3, T, H, W) in [-1, 1], T >= 1; H and W multiples of `config.space_stride`.
            state: what the chunk before returned; None at the start.
        """
        self.config.check_video(video)
        tails = Tails(None if state is None else state.tails)
        x = self.encoder(video, tails).permute(0, 2, 3, 4, 1)
        x = self.gain * F.normalize(x, dim=-1)  # (B, T', H', W', d)
        return EncodedChunk(x, EncoderState(tails.collect()))

    def decode_chunk(self, latent: Tensor, state: DecoderState | None = None) -> DecodedChunk:
        """Decode the next latent frames (B, T' >= 1, H', W', d) of a stream; `state` as for `encode_chunk`."""
        if latent.ndim != 5 or latent.shape[1] < 1 or latent.shape[-1] != self.config.bits:
            expected = f"(B, T >= 1, H, W, {self.config.bits})"
            raise ValueError(f"decode: expected latent of shape {expected}, got {tuple(latent.shape)}")
        tails = Tails(None if state is None else state.tails)
        video = self.decoder(latent.permute(0, 4, 1, 2, 3).to(self.decoding), tails)
        video = video.to(torch.promote_types(self.decoding, torch.float32))
        return DecodedChunk(video, DecoderState(tails.collect()))

    def encode(self, video: Tensor) -> Tensor:
        """Latents (B, T', H', W', d) of a whole video (B, 3, T, H, W)."""
        return self.encode_chunk(video).latent

    def decode(self, latent: Tensor) -> Tensor:
        """Video (B, 3, T, H, W) of all latents of a stream; not clamped."""
        return self.decode_chunk(latent).video

    def tokenize(self, video: Tensor) -> Tensor:
        """Packed bits (B, T', N, ceil(d / 8)) of a whole video at the configured scales."""
        return pyramid_encode(self.encode(video), self.config.scales).labels

    def detokenize(self, bits: Tensor, keep: int | None = None) -> Tensor:
        """Video of packed bits (B, T', N, ceil(d / 8)), from the first `keep` scales (all if None)."""
        return self.decode(pyramid_decode(bits, self.config.scales, dim=self.config.bits, keep=keep))

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors; weights in `dtype`, if given.

        Raises:
            ValueError: after `decode_in` another dtype.
        """
        if self.decoding != self.gain.dtype:
            raise ValueError(
                f"save_pretrained: expected a tokenizer as it was trained, got one that decodes in {self.decoding}"
            )
        save_model_folder(folder, asdict(self.config), self.state_dict(), dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VideoTokenizer:
        """Read what `save_pretrained` wrote, in float32 and evaluation mode."""
        return load_model(folder, cls, TokenizerConfig)
