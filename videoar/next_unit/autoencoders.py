"""What paper U's pipeline asks of a video autoencoder, and the two kinds that a folder may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from videoar.model_folder import read_json
from videoar.next_unit.wan_vae import WanVideoAutoencoder
from videoar.tokenizer.autoencoder import VideoAutoencoder


class LatentShape(Protocol):
    """Pixel frames and pixels a latent cell, and its channels."""

    @property
    def time_stride(self) -> int: ...

    @property
    def space_stride(self) -> int: ...

    @property
    def latent_width(self) -> int: ...


class Autoencoder(Protocol):
    """Video (B, 3, T, H, W) in [-1, 1] to latents (B, C, T', H', W') and back, causal in time.

    The first latent frame holds one pixel frame, each later one `config.time_stride`.
    """

    config: LatentShape

    def encode(self, video: Tensor) -> Tensor: ...

    def decode_chunk(self, latents: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None: ...

    def to(self, device: torch.device | str) -> Autoencoder: ...


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """The autoencoder in a folder: ours, or diffusers' of Wan 2.1.

    Raises:
        FileNotFoundError: no `config.json` there.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"load_autoencoder: {folder} has no config.json")
    wan = read_json(path).get("_class_name") == "AutoencoderKLWan"
    return (WanVideoAutoencoder if wan else VideoAutoencoder).from_pretrained(folder)
