"""How many FLOPs and bytes a clip needs, counted from the configuration.

Transformer, for one block of n tokens in each of R rows (R = batch, twice that with guidance), seeing m keys:

    FLOPs = 2 R n (depth P + I) + 4 R n m depth C          P = C (H + 2 Hk) D + C C + 3 C F
    bytes = w (depth P + I) + 2 R (m + n) Hk D depth c     I = (bits C, again with context) + C bits + pooled text

P and I are the weights of a block and of what stands around the blocks, w and c the bytes of a weight and of a cache
entry. Weights are read once a step, the cached keys and values read once and the new ones written once. Pooled text is
computed once a row and not a token. Norms, RoPE, SwiGLU, activations and logits are left out: under 1% of the FLOPs,
and they stay in a cache. Drawing bits and summing the pyramid have no entry.

Decoder: every convolution's products; its weights, input and output once each. Norms and SiLU are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from videoar.next_scale.config import TransformerConfig
from videoar.tokenizer import TokenizerConfig, VideoTokenizer
from videoar.tokenizer.layers import CausalConv3d


class Work(NamedTuple):
    """FLOPs and bytes that cannot be avoided."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def floor(self, flop_rate: float, byte_rate: float) -> float:
        """Seconds at the machine's rates, arithmetic and memory overlapped."""
        return max(self.flops / flop_rate, self.bytes / byte_rate)


class Step(NamedTuple):
    """One (frame, scale): `seen` counts its own tokens too."""

    frame: int
    scale: int
    tokens: int
    seen: int
    work: Work


class TransformerWork:
    """What a transformer's parts need.

    Args:
        config: its shape.
        rows: sequences at once: the batch, twice that with guidance.
        weight_bytes, cache_bytes: of one weight, of one cached number.
    """

    def __init__(self, config: TransformerConfig, rows: int, *, weight_bytes: int, cache_bytes: int) -> None:
        self.config, self.rows, self.weight_bytes, self.cache_bytes = config, rows, weight_bytes, cache_bytes
        width, head_dim = config.width, config.head_dim
        qkv = width * (config.heads + 2 * config.key_heads) * head_dim
        self.block_weights = config.depth * (qkv + width**2 + 3 * width * config.ffn_width)
        inputs = 2 if config.context == "resampled" else 1
        self.outer_weights = (inputs + 1) * config.bits * width
        self.pooled_weights = width * (config.text_width + width) if config.pooled_text else 0

    def text(self) -> Work:
        """The text prefix into the cache."""
        length, text_in = self.config.text_len, self.config.text_width * self.config.width
        weights = self.block_weights + text_in
        return self._block(length, length, 2 * self.rows * length * weights, weights)

    def steps(self, frames: int) -> list[Step]:
        """Every (frame, scale) of a clip of `frames` latent frames."""
        config, found = self.config, []
        kept = frames if config.window is None else config.window
        for frame in range(frames):
            seen = config.text_len + min(frame, kept) * config.tokens_per_frame
            for scale, (height, width) in enumerate(config.scales):
                tokens = height * width
                seen += tokens
                found.append(Step(frame, scale, tokens, seen, self._step(tokens, seen)))
        return found

    def _step(self, tokens: int, seen: int) -> Work:
        weights = self.block_weights + self.outer_weights
        products = 2 * self.rows * (tokens * weights + self.pooled_weights)
        return self._block(tokens, seen, products, weights + self.pooled_weights)

    def _block(self, tokens: int, seen: int, products: float, weights: int) -> Work:
        config, rows = self.config, self.rows
        attention = 4 * rows * tokens * seen * config.depth * config.width
        cached = 2 * rows * (seen + tokens) * config.key_heads * config.head_dim * config.depth
        return Work(products + attention, weights * self.weight_bytes + cached * self.cache_bytes)


def decoder_work(config: TokenizerConfig, frames: int, batch: int, element_bytes: int) -> list[Work]:
    """What decoding each latent frame of a stream needs, from a run of the decoder on PyTorch's meta device."""
    found = Work()

    def count(layer: CausalConv3d, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal found
        numbers = layer.weight.numel() + inputs[0].numel() + output.numel()
        found += Work(2 * output.numel() * layer.weight[0].numel(), numbers * element_bytes)

    with torch.device("meta"), torch.no_grad():
        tokenizer = VideoTokenizer(config)
        for module in tokenizer.decoder.modules():
            if isinstance(module, CausalConv3d):
                module.register_forward_hook(count)
        state, works = None, []
        for _ in range(min(frames, 2)):  # from the second latent frame on, all are alike
            found = Work()
            state = tokenizer.decode_chunk(torch.empty(batch, 1, *config.scales[-1], config.bits), state).state
            works.append(found)
    return works + works[-1:] * (frames - len(works))
