"""How many FLOPs and bytes a clip of paper U needs, counted from the configuration.

For one pass over a unit of n tokens in each of R rows (R = batch, twice that with guidance) that sees m keys and T text
tokens:

    FLOPs = 2 R (n (depth P + 2 p C) + S) + 4 R n (m + T) depth C       P = 6 C C + 2 C F
    bytes = w (depth P + 2 p C) + 4 S + 2 R (m + n + T) C depth c       S = f C + 7 C C

P are the weights of a block (cross-attention's keys and values belong to the text), p the numbers in a patch, S what
the timestep goes through, in float32 and once a row. w and c are the bytes of a weight and of a cached number. Norms,
RoPE, modulation, GELU, guidance and the steps between noise levels are left out.

Decoder: all products that PyTorch counts; of every convolution weights, input and output once each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from videoar.next_unit.autoencoders import Autoencoder
from videoar.next_unit.config import BackboneConfig
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.wan_vae import WanVideoAutoencoder
from videoar.profiling.contender import StepWork
from videoar.profiling.work import Work
from videoar.tokenizer.autoencoder import VideoAutoencoder
from videoar.tokenizer.layers import CausalConv3d


class BackboneWork:
    """What a backbone's parts need.

    Args:
        config: its shape.
        rows: sequences at once: the batch, twice that with guidance.
        weight_bytes, cache_bytes: of one weight, of one cached number.
    """

    def __init__(self, config: BackboneConfig, rows: int, *, weight_bytes: int, cache_bytes: int) -> None:
        self.config, self.rows, self.weight_bytes, self.cache_bytes = config, rows, weight_bytes, cache_bytes
        width = config.width
        self.token_weights = config.depth * (6 * width**2 + 2 * width * config.ffn_width)
        self.token_weights += 2 * config.patch_width * width
        self.time_weights = config.freq_dim * width + 7 * width**2

    def text(self) -> Work:
        """The prompt's keys and values of every layer."""
        config, width = self.config, self.config.width
        weights = config.text_width * width + width**2 + 2 * config.depth * width**2
        written = 2 * self.rows * config.text_len * width * config.depth
        flops = 2 * self.rows * config.text_len * weights
        return Work(flops, weights * self.weight_bytes + written * self.cache_bytes)

    def one_pass(self, tokens: int, seen: int) -> Work:
        """A pass over a unit of `tokens` that sees `seen` keys, its own included."""
        config, rows = self.config, self.rows
        products = 2 * rows * (tokens * self.token_weights + self.time_weights)
        attention = 4 * rows * tokens * (seen + config.text_len) * config.depth * config.width
        cached = 2 * rows * (seen + tokens + config.text_len) * config.width * config.depth
        weights = self.token_weights * self.weight_bytes + 4 * self.time_weights
        return Work(products + attention, weights + cached * self.cache_bytes)

    def passes(self, layout: UnitLayout, steps: int) -> list[StepWork]:
        """Every pass of a clip: `steps` that denoise a unit, then the clean one."""
        found = []
        for unit, (tokens, seen) in enumerate(zip(layout.lengths, layout.offsets[1:], strict=True)):
            work = self.one_pass(tokens, seen)
            for step in range(steps + 1):
                group = f"pass {step + 1}" if step < steps else "clean pass"
                place = f"unit {unit}, {group}"
                found.append(StepWork(unit, step, layout.units[unit].shape, group, place, tokens, seen, work))
        return found


def autoencoder_work(autoencoder: Autoencoder, latents: tuple[int, ...], element_bytes: int) -> list[Work]:
    """What decoding each latent frame of a clip needs, from a run of the decoder on PyTorch's meta device.

    Args:
        autoencoder: ours, or Wan's.
        latents: (B, C, T', H', W').
        element_bytes: of one number.
    """
    decoder, moved = _on_meta(autoencoder), 0

    def count(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal moved
        moved += layer.weight.numel() + inputs[0].numel() + output.numel()

    for module in (decoder.vae if isinstance(decoder, WanVideoAutoencoder) else decoder).modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, CausalConv3d)):
            module.register_forward_hook(count)
    batch, channels, frames, height, width = latents
    state, works = None, []
    with torch.no_grad():
        for _ in range(min(frames, 3)):  # from the third latent frame on, all are alike
            moved = 0
            with FlopCounterMode(display=False) as counter:
                one = torch.empty(batch, channels, 1, height, width, device="meta")
                state = decoder.decode_chunk(one, state)[1]
            works.append(Work(counter.get_total_flops(), moved * element_bytes))
    return works + works[-1:] * (frames - len(works))


def _on_meta(autoencoder: Autoencoder) -> Any:
    with torch.device("meta"):
        if isinstance(autoencoder, WanVideoAutoencoder):
            return WanVideoAutoencoder(type(autoencoder.vae).from_config(autoencoder.vae.config))
        return VideoAutoencoder(autoencoder.config)
