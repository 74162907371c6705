"""The operators under torch.compile's default backend: a transformer block, forward and backward, in one graph."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

import videoar_kernels as vk

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="Inductor needs a C++ compiler on the CPU"
)
SCALES = [(1, 1), (2, 2), (3, 3)]
MASK = vk.RangeMask.multiscale(2, 2, SCALES)
HEADS, HEAD_DIM = 2, 16


def block_loss(x: Tensor, qkv: Tensor, head: Tensor, modulation: Tensor, positions: Tensor, bits: Tensor) -> Tensor:
    """A transformer block of every differentiable operator, and the loss of its logits."""
    batch, length, _ = x.shape
    h = vk.adaln_norm(x, modulation[:, :1], modulation[:, 1:2])
    q, k, v = (h @ qkv).view(batch, length, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
    q, k = vk.qk_norm_rope(q, k, None, None, positions)
    attended = vk.range_attention(q, vk.rope_3d(k, positions), v, MASK).transpose(1, 2).flatten(2)
    x = vk.gated_residual(x, vk.swiglu(attended, h), modulation[:, 2:])
    return vk.bit_cross_entropy(x @ head, bits).loss


def inputs() -> list[Tensor]:
    width = HEADS * HEAD_DIM
    return [
        torch.randn(2, MASK.q_len, width, requires_grad=True),
        torch.randn(width, 3 * width, requires_grad=True),
        torch.randn(width, 8, requires_grad=True),
        torch.randn(2, 3, width, requires_grad=True),
        vk.multiscale_positions(2, 2, SCALES),
        torch.randint(0, 256, (2, MASK.q_len, 1), dtype=torch.uint8),
    ]


@needs_compiler
def test_compiled_block_gives_eager_loss_and_gradients():
    arguments = inputs()
    eager = block_loss(*arguments)
    expected = torch.autograd.grad(eager, arguments[:4])
    compiled = torch.compile(block_loss, fullgraph=True)(*arguments)
    torch.testing.assert_close(compiled, eager)
    for found, wanted in zip(torch.autograd.grad(compiled, arguments[:4]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_compiled_inference_draws_the_same_bits():
    def sample(logits: Tensor, bits: Tensor) -> tuple[Tensor, ...]:
        flipped = vk.flip_bits(bits, 0.3, seed=5)
        drawn = vk.sample_bits(logits * 2, seed=3, offset=1)
        return flipped, drawn.bits, drawn.code, vk.bsq_quantize(logits).bits

    logits, bits = torch.randn(3, 7, 24), torch.randint(0, 256, (3, 7, 3), dtype=torch.uint8)
    with torch.no_grad():
        compiled = torch.compile(sample, fullgraph=True)(logits, bits)
        assert all(torch.equal(a, b) for a, b in zip(compiled, sample(logits, bits), strict=True))
