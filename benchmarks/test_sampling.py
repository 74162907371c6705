"""Paper S's preset L on the UCF-101 shape: 17 x 128 x 128 pixels, 30 steps, guidance, batch 1, the transformer only.

Ours draws the bits and sums the pyramid as well, on a GPU as the product does: steps are CUDA graphs, kept from clip to
clip. The peer is handed the inputs of every step and only draws.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from limits import emulated
from registry import Case, Steps, cases, on_gpu
from torch import Tensor

from videoar.next_scale import GuidanceSchedule, TransformerConfig, preset
from videoar.next_scale.sampling import FrameDecoder
from videoar.profiling.eager_clip import disagreement
from videoar.profiling.eager_model import EagerTransformer
from videoar.profiling.random_weights import random_transformer
from videoar.profiling.work import TransformerWork
from videoar.step_graphs import KeptDecoders

FRAMES, COPIES = 5, 2  # guidance doubles the batch


class Step(NamedTuple):
    frame: int
    scale: int
    inputs: Tensor
    context: Tensor


def random_steps(config: TransformerConfig) -> list[Step]:
    def draw(scale: int) -> Tensor:
        height, width = config.scales[scale]
        return torch.randn(1, height * width, config.bits).repeat(COPIES, 1, 1) * config.bits**-0.5

    return [Step(f, k, draw(k), draw(k)) for f in range(FRAMES) for k in range(len(config.scales))]


def floor_steps(config: TransformerConfig, dtype: torch.dtype) -> Steps:
    """Bytes and FLOPs of every step after the text."""
    size = torch.empty((), dtype=dtype).element_size()
    steps = TransformerWork(config, COPIES, weight_bytes=size, cache_bytes=size).steps(FRAMES)
    return Steps(
        tuple((step.work.bytes, step.work.flops) for step in steps),
        "one (frame, scale): its weights and its cache read once, its products",
    )


@cases("sampling")
def sampling(full: bool):
    if on_gpu():
        yield from clips(24, torch.bfloat16)
        return
    yield from clips(2, torch.bfloat16)
    if full:
        yield from clips(2, torch.float32)
        yield from clips(24, torch.bfloat16)


@torch.no_grad()
def clips(depth: int, dtype: torch.dtype):
    config = preset("L", depth=depth)
    peer_dtype = dtype if dtype == torch.float32 or not emulated(dtype) else torch.float32
    model = random_transformer(config, dtype=peer_dtype)
    eager = EagerTransformer(model, whole_clips=False).eval()
    model.pack(dtype)
    text = torch.randn(1, config.text_len, config.text_width).to(dtype)
    steps, prompt = random_steps(config), torch.cat([text, torch.zeros_like(text)])
    guidance, kept = GuidanceSchedule.ucf(), KeptDecoders()

    def decoder(run):
        return FrameDecoder(model, text, frames=FRAMES, guidance=guidance, run=run)

    def ours():
        return list(kept.get("clip", text.device, decoder).decode(text, seeds=[0], uncond=torch.zeros_like(text)))

    def peer():
        features = prompt.to(peer_dtype)
        cache = eager.prefill(features)
        for step in steps:
            logits = peer_step(step, features, cache)
            cond, uncond = logits.chunk(2)
            strength = guidance.at(step.frame, step.scale, FRAMES, len(config.scales))
            _ = torch.sigmoid(uncond + strength * (cond - uncond)) > torch.rand_like(cond)

    def peer_step(step, features, cache):
        inputs, context = step.inputs.to(peer_dtype), step.context.to(peer_dtype)
        return eager.step(features, inputs, context, cache, frame=step.frame, scale=step.scale)

    def verify():
        error, allowed = disagreement(model, eager, prompt, FRAMES), 1e-3 if dtype == torch.float32 else 0.05
        if not error < allowed:
            raise AssertionError(f"relative error of the logits {error:.1e}, allowed {allowed}")
        if [frame.total.shape for frame in ours()] != [(1, *config.scales[-1], config.bits)] * FRAMES:
            raise AssertionError("frames of another shape")

    name = f"eager {str(peer_dtype).removeprefix('torch.')}"
    yield Case(
        op="sampling",
        shape=f"L, {depth} of 24 layers, 30 steps" if depth < 24 else "L, 30 steps",
        dtype=dtype,
        ours=ours,
        verify=verify,
        peers={name: peer},
        limit=floor_steps(config, dtype),
        bars={"limit": 1 / 1.3, name: 1.5},
        notes=""
        if peer_dtype == dtype
        else f"This processor multiplies {str(dtype).removeprefix('torch.')} matrices far slower than float32's, so "
        "the peer keeps float32 weights.",
    )


def test_sampling(case, compare):
    compare(case)
