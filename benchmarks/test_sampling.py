"""Paper S's preset L on the UCF-101 shape: 17 x 128 x 128 pixels, 30 steps, guidance, batch 1, the transformer only.

Ours draws the bits and sums the pyramid as well; the peer is handed the inputs of every step and only draws.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from eager_model import EagerTransformer
from limits import emulated
from registry import Case, Steps, cases
from torch import Tensor

from videoar.next_scale import GuidanceSchedule, NextScaleTransformer, TransformerConfig, decode_frames, preset
from videoar.next_scale.sampling import decoding_cache
from videoar_kernels import PackedLinear

FRAMES, COPIES = 5, 2  # guidance doubles the batch


class Step(NamedTuple):
    frame: int
    scale: int
    inputs: Tensor
    context: Tensor


def random_model(config: TransformerConfig) -> NextScaleTransformer:
    """Random weights, the same in every block: drawing 900 million would take longer than measuring."""
    with torch.device("meta"):
        model = NextScaleTransformer(config)
    model.to_empty(device="cpu").requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and not name.startswith("blocks.0."):
            continue
        if name.endswith(("norm.weight", "_norm")):
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    for block in model.blocks[1:]:
        block.load_state_dict(model.blocks[0].state_dict())
    return model.eval()


def random_steps(config: TransformerConfig) -> list[Step]:
    def draw(scale: int) -> Tensor:
        height, width = config.scales[scale]
        return torch.randn(1, height * width, config.bits).repeat(COPIES, 1, 1) * config.bits**-0.5

    return [Step(f, k, draw(k), draw(k)) for f in range(FRAMES) for k in range(len(config.scales))]


def floor_steps(model: NextScaleTransformer) -> Steps:
    """Weights as they are packed, and FLOPs of layers and attention, for every step after the text.

    What a clip needs once, whatever its steps, is not in it: the layers that only see the text.
    """
    config = model.config
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear) and not name.startswith(("text_in", "pooled_text"))
    ]
    weights = sum(layer.packed.nbytes for layer in layers)
    products = sum(layer.in_features * layer.out_features for layer in layers)
    steps, seen = [], config.text_len
    for _ in range(FRAMES):
        for height, width in config.scales:
            tokens = height * width
            seen += tokens
            attention = 2 * config.depth * config.width * tokens * seen
            steps.append((weights, 2 * COPIES * (products * tokens + attention)))
    return Steps(tuple(steps), "one (frame, scale): its weights read once, its products")


@cases("sampling")
def sampling(full: bool):
    yield from clips(2, torch.bfloat16)
    if full:
        yield from clips(2, torch.float32)
        yield from clips(24, torch.bfloat16)


@torch.no_grad()
def clips(depth: int, dtype: torch.dtype):
    config = preset("L", depth=depth)
    peer_dtype = dtype if dtype == torch.float32 or not emulated(dtype) else torch.float32
    model = random_model(config)
    eager = EagerTransformer(model.to(peer_dtype)).eval()
    model.pack(dtype)
    text = torch.randn(1, config.text_len, config.text_width).to(dtype)
    steps, prompt = random_steps(config), torch.cat([text, torch.zeros_like(text)])
    guidance = GuidanceSchedule.ucf()

    def ours():
        uncond = torch.zeros_like(text)
        return list(decode_frames(model, text, frames=FRAMES, seeds=[0], uncond=uncond, guidance=guidance))

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
        features, cache = prompt.to(peer_dtype), decoding_cache(model, prompt, FRAMES)
        model.prefill(prompt, cache)
        cache.commit()
        past = eager.prefill(features)
        for step in steps[: len(config.scales) + 3]:
            found = model.step(prompt, step.inputs, step.context, cache, frame=step.frame, scale=step.scale)
            cache.commit(close=step.scale == len(config.scales) - 1)
            expected = peer_step(step, features, past).float()
            error = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
            allowed = 1e-3 if dtype == torch.float32 else 0.05
            if not error < allowed:
                raise AssertionError(f"step {step.frame}, {step.scale}: relative error {error:.1e}, allowed {allowed}")
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
        limit=floor_steps(model),
        bars={"limit": 1 / 1.3, name: 1.5},
        notes=""
        if peer_dtype == dtype
        else f"This processor multiplies {str(dtype).removeprefix('torch.')} matrices far slower than float32's, so "
        "the peer keeps float32 weights.",
    )


def test_sampling(case, compare):
    compare(case)
