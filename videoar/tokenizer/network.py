"""Encoder and decoder of tokenizer and autoencoder (paper S, Sec. 4.1): causal 3D CNNs with per-frame norms."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from videoar.tokenizer.config import NetworkConfig
from videoar.tokenizer.layers import (
    CausalConv3d,
    Downsample,
    FrameNorm,
    ResidualBlock,
    ShuffleDownsample,
    ShuffleUpsample,
    Tails,
    Upsample,
    channels_last,
    patchify,
    unpatchify,
)


class Encoder(nn.Module):
    """Pixels to latents: (B, 3, T, H, W) -> (B, d, T', H', W')."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.patch, self.padding = config.patch, config.time_padding
        folded = config.image_channels * config.patch[0] * config.patch[1] ** 2
        self.conv_in = CausalConv3d(folded, config.channels[0], (1, 3))
        self.levels = nn.ModuleList()
        for level, width in enumerate(config.channels):
            layers = [ResidualBlock(width, config.time_kernels[level], self.padding) for _ in range(config.blocks)]
            if level < len(config.strides):
                following = config.channels[level + 1]
                down = ShuffleDownsample if config.shuffle else Downsample
                layers.append(down(width, following, config.strides[level], self.padding))
            self.levels.append(nn.ModuleList(layers))
        self.norm_out = FrameNorm(config.channels[-1])
        self.conv_out = CausalConv3d(config.channels[-1], config.latent_width, (1, 3))

    def forward(self, video: Tensor, tails: Tails) -> Tensor:
        x = patchify(video, self.patch, tails, self.padding)
        x = self.conv_in(channels_last(x), tails)
        for level in self.levels:
            for layer in level:
                x = layer(x, tails)
        return self.conv_out(F.silu(self.norm_out(x)), tails)


class Decoder(nn.Module):
    """Latents to pixels: (B, d, T', H', W') -> (B, 3, T, H, W)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.patch, padding = config.patch, config.time_padding
        folded = config.image_channels * config.patch[0] * config.patch[1] ** 2
        self.conv_in = CausalConv3d(config.latent_width, config.channels[-1], (1, 3))
        self.levels = nn.ModuleList()
        for level in reversed(range(len(config.channels))):
            width = config.channels[level]
            time = config.time_kernels[level]
            layers = [ResidualBlock(width, time, padding) for _ in range(config.blocks + 1)]
            if level > 0:
                up = ShuffleUpsample if config.shuffle else Upsample
                layers.append(up(width, config.channels[level - 1], config.strides[level - 1], padding))
            self.levels.append(nn.ModuleList(layers))
        self.norm_out = FrameNorm(config.channels[0])
        self.conv_out = CausalConv3d(config.channels[0], folded, (1, 3))

    def forward(self, latent: Tensor, tails: Tails) -> Tensor:
        x = self.conv_in(channels_last(latent), tails)
        for level in self.levels:
            for layer in level:
                x = layer(x, tails)
        x = self.conv_out(F.silu(self.norm_out(x)), tails)
        return unpatchify(x, self.patch, tails)
