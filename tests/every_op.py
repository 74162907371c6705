"""Runs every op once or twice on small, awkward shapes: what compute-sanitizer watches in `make gpu-check`.

    python tests/every_op.py [cuda | cpu]

It checks that results are finite, nothing more: the tests compare them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import videoar_kernels as vk

SCALES = [(1, 1), (2, 3), (3, 5)]


class Maker:
    """Makes inputs of one dtype on one device."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.dtype, self.device = dtype, device

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype).requires_grad_()

    def ones(self, size: int) -> Tensor:
        return torch.ones(size, device=self.device, requires_grad=True)


def attention(make: Maker) -> Iterator[Tensor]:
    mask = vk.RangeMask.multiscale(3, 2, SCALES)
    # Triton compiles four kernels or more for each of these.
    for heads, kv_heads, head_dim in ((2, 1, 40),) if make.dtype == torch.float32 else ((2, 2, 64), (4, 2, 128)):
        q, k, v = (make(2, n, mask.q_len, head_dim) for n in (heads, kv_heads, kv_heads))
        yield from differentiated(lambda q, k, v: vk.range_attention(q, k, v, mask), q, k, v)
        yield vk.range_attention(q[:, :, :5].detach(), k.detach(), v.detach())


def rope(make: Maker) -> Iterator[Tensor]:
    positions = vk.multiscale_positions(3, 2, SCALES).to(make.device)
    for head_dim in (40, 64, 128):
        q, k, weight = make(2, 3, len(positions), head_dim), make(2, 1, len(positions), head_dim), make.ones(head_dim)
        yield from differentiated(lambda q: vk.rope_3d(q, positions), q)
        yield from differentiated(lambda q, k, w: vk.qk_norm_rope(q, k, w, w, positions), q, k, weight)


def norms(make: Maker) -> Iterator[Tensor]:
    for width in (48, 192, 1536):
        x, y, weight = make(2, 6, width), make(2, 6, width), make.ones(width)
        scale, shift = make(2, 3, width), make(2, 1, width)
        for kind in ("rms", "layer"):
            yield from differentiated(
                lambda x, a, b, w, kind=kind: vk.adaln_norm(x, a, b, weight=w, kind=kind), x, scale, shift, weight
            )
        yield from differentiated(vk.gated_residual, x, y, scale)
        yield from differentiated(vk.swiglu, x, y)


def bits(make: Maker) -> Iterator[Tensor]:
    seeds, ids = torch.tensor([1, 2, 3], device=make.device), torch.arange(11, device=make.device) % 2
    for dim in (8, 48, 77):
        x = make(3, 11, dim)
        packed, code = vk.bsq_quantize(x.detach())
        yield code
        yield vk.bits_to_code(vk.pack_bits(vk.unpack_bits(packed, dim)), dim, make.dtype)
        yield vk.flip_bits(packed, 0.3, seed=1, dim=dim)
        yield vk.sample_bits(x.detach(), uncond=code, guidance=3.0, seed=seeds).code
        yield from differentiated(
            lambda x, b=packed, d=dim: vk.bit_cross_entropy(x, b, scale_ids=ids, num_scales=2, dim=d).loss, x
        )


def pyramid(make: Maker) -> Iterator[Tensor]:
    for dim in (12, 48):
        z = make(2, 3, 3, 5, dim)
        yield from differentiated(lambda z: vk.pyramid_encode(z, SCALES, flip_p=0.2, seed=4).total, z)
        labels = vk.pyramid_encode(z.detach(), SCALES).labels
        yield vk.pyramid_decode(labels, SCALES, dim=dim)
        yield vk.pyramid_resample(z.detach(), SCALES)
        total, start = torch.zeros(2, 3, 5, dim, device=make.device), 0
        for (height, width), following in zip(SCALES, [*SCALES[1:], None], strict=True):
            tokens = labels[:, 0, start : start + height * width]
            total = vk.pyramid_step(total, tokens, (height, width), following).total
            start += height * width
        yield total


def cache(make: Maker) -> Iterator[Tensor]:
    for head_dim in (40, 128):
        weights = [make.ones(head_dim).detach()] * 3
        held = vk.KVCache(3, 2, 2, 40, head_dim, sink=2, window=20, dtype=make.dtype, device=make.device)
        for number in range(6):
            tokens = 1 + 3 * number % 8
            k, v = (make(2, 2, tokens, head_dim).detach() for _ in range(2))
            positions = torch.randint(0, 9, (tokens, 3), device=make.device)
            held.append([0, 1, 2], [k] * 3, [v] * 3, k_weight=weights, positions=positions)
            held.commit()
        held.evict(held.units - 1, every=2)
        view = held.view(1)
        yield vk.range_attention(k, view.k, view.v, view.mask(k.shape[2]))


FAMILIES = (attention, rope, norms, bits, pyramid, cache)


def differentiated(function: Callable, *inputs: Tensor) -> Iterator[Tensor]:
    """Yields results and gradients."""
    found = function(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    yield from found
    yield from torch.autograd.grad(sum(part.float().sum() for part in found), inputs)


def main(device: str) -> None:
    torch.manual_seed(0)
    for family in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            results = list(family(Maker(dtype, device)))
            wrong = sum(not bool(torch.isfinite(x.float()).all()) for x in results)
            if wrong:
                raise SystemExit(f"every_op: {family.__name__} in {dtype}: {wrong} of {len(results)} not finite")
            print(f"{family.__name__} {dtype}: {len(results)} results", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
