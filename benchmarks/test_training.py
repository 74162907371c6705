"""One training step of paper S's transformer, forward and backward: ours against its eager twin, and that compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from closeness import assert_close
from limits import emulated
from registry import MEMORY, Case, cases
from torch import Tensor, nn

from videoar.next_scale import NextScaleTransformer, preset
from videoar.next_scale.config import TransformerConfig
from videoar.profiling.eager_model import EagerTransformer
from videoar_kernels import RangeMask, bit_cross_entropy, pack_bits

COMPILED = "torch.compile, SDPA masked"


@cases("training")
def training(full: bool) -> Iterator[Case]:
    dtypes = (torch.float32,) if emulated(torch.bfloat16) else (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        yield step("S, 2 of 12 layers, batch 1", preset("S", depth=2), 1, dtype)
        if full:
            yield step("L, 4 of 24 layers, batch 1", preset("L", depth=4), 1, dtype)


def step(shape: str, config: TransformerConfig, batch: int, dtype: torch.dtype) -> Case:
    model = NextScaleTransformer(config)
    for parameter in model.parameters():  # some start at zero, and would get and pass no gradient
        nn.init.normal_(parameter, std=0.02)
    model.to(dtype)
    tokens = config.frames * config.tokens_per_frame
    text = torch.randn(batch, config.text_len, config.text_width).to(dtype)
    inputs, context = (torch.randn(batch, config.frames, config.tokens_per_frame, config.bits) for _ in range(2))
    inputs, context = inputs.to(dtype) / config.bits**0.5, context.to(dtype) / config.bits**0.5
    choices = torch.rand(inputs.shape) < 0.5
    labels = pack_bits(choices)

    def ours() -> list[Tensor]:
        loss = bit_cross_entropy(model(text, inputs, context), labels).loss
        return gradients(loss, model)

    def eager(twin: nn.Module, wide: torch.dtype = dtype) -> Callable[[], list[Tensor]]:
        arguments = [x.to(wide) for x in (text, inputs, context)]
        wanted = choices.to(torch.promote_types(wide, torch.float32))

        def run() -> list[Tensor]:
            logits = twin(*arguments).to(wanted.dtype)
            return gradients(F.binary_cross_entropy_with_logits(logits, wanted), twin)

        return run

    twin = EagerTransformer(model)

    def verify() -> None:
        exact = eager(EagerTransformer(model).double(), torch.float64)()
        for found, right, low in zip(ours(), exact, eager(twin)(), strict=True):
            assert_close(found, right, low)

    return Case(
        op="training step",
        shape=shape,
        dtype=dtype,
        ours=ours,
        verify=verify,
        peers={"eager, SDPA masked": eager(twin), COMPILED: eager(torch.compile(twin))},
        flops=flops(config, batch * (tokens + config.text_len), batch),
        limit="matmul f32" if dtype == torch.float32 else "matmul",
        bars={COMPILED: 1.3, f"{MEMORY}{COMPILED}": 1.0},
        grad=True,
    )


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def flops(config: TransformerConfig, tokens: int, batch: int) -> float:
    """Products of the blocks' weights, thrice (forward, and both gradients), and of attention under its mask."""
    head = config.head_dim
    linear = config.width * (head * (2 * config.heads + 2 * config.key_heads) + 3 * config.ffn_width)
    mask = RangeMask.multiscale(config.text_len, config.frames, list(config.scales), window=config.window)
    pairs = batch * config.heads * mask.density * mask.q_len * mask.k_len
    return config.depth * (6 * linear * tokens + (4 + 10) * head * pairs)


def test_training(case, compare):
    compare(case)
