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
TOKENS = sum(h * w for h, w in SCALES)


def attention(dtype: torch.dtype) -> Iterator[Tensor]:
    mask = vk.RangeMask.multiscale(3, 2, SCALES)
    for heads, kv_heads, head_dim in ((2, 2, 64), (4, 2, 128), (2, 1, 40)):
        q, k, v = (drawn(dtype, 2, n, mask.q_len, head_dim) for n in (heads, kv_heads, kv_heads))
        yield from differentiated(lambda q, k, v: vk.range_attention(q, k, v, mask), q, k, v)
        yield vk.range_attention(q[:, :, :5].detach(), k.detach(), v.detach())


def rope(dtype: torch.dtype) -> Iterator[Tensor]:
    positions = vk.multiscale_positions(3, 2, SCALES).to(torch.get_default_device())
    for head_dim in (40, 64, 128):
        q, k = drawn(dtype, 2, 3, len(positions), head_dim), drawn(dtype, 2, 1, len(positions), head_dim)
        weight = torch.ones(head_dim)
        yield from differentiated(lambda q: vk.rope_3d(q, positions), q)
        yield from differentiated(lambda q, k, w=weight: vk.qk_norm_rope(q, k, w, w, positions), q, k)


def norms(dtype: torch.dtype) -> Iterator[Tensor]:
    for width in (48, 192, 1536):
        x, y = drawn(dtype, 2, 6, width), drawn(dtype, 2, 6, width)
        scale, shift = drawn(dtype, 2, 3, width), drawn(dtype, 2, 1, width)
        weight = torch.ones(width, requires_grad=True)
        for kind in ("rms", "layer"):
            yield from differentiated(
                lambda x, a, b, w, kind=kind: vk.adaln_norm(x, a, b, weight=w, kind=kind), x, scale, shift, weight
            )
        yield from differentiated(vk.gated_residual, x, y, scale)
        yield from differentiated(vk.swiglu, x, y)


def bits(dtype: torch.dtype) -> Iterator[Tensor]:
    for dim in (8, 48, 77):
        x = drawn(dtype, 3, 11, dim)
        packed, code = vk.bsq_quantize(x.detach())
        yield code
        yield vk.bits_to_code(vk.pack_bits(vk.unpack_bits(packed, dim)), dim, dtype)
        yield vk.flip_bits(packed, 0.3, seed=1, dim=dim)
        yield vk.sample_bits(x.detach(), uncond=code, guidance=3.0, seed=torch.tensor([1, 2, 3])).code
        ids = torch.arange(11) % 2
        yield from differentiated(
            lambda x, b=packed, d=dim, ids=ids: vk.bit_cross_entropy(x, b, scale_ids=ids, num_scales=2, dim=d).loss, x
        )


def pyramid(dtype: torch.dtype) -> Iterator[Tensor]:
    for dim in (12, 48):
        z = drawn(dtype, 2, 3, 3, 5, dim)
        yield from differentiated(lambda z: vk.pyramid_encode(z, SCALES, flip_p=0.2, seed=4).total, z)
        labels = vk.pyramid_encode(z.detach(), SCALES).labels
        yield vk.pyramid_decode(labels, SCALES, dim=dim)
        yield vk.pyramid_resample(z.detach(), SCALES)
        total = torch.zeros(2, 3, 5, dim)
        for index, size in enumerate(SCALES):
            following = SCALES[index + 1] if index + 1 < len(SCALES) else None
            start = sum(h * w for h, w in SCALES[:index])
            step = vk.pyramid_step(total, labels[:, 0, start : start + size[0] * size[1]], size, following)
            total = step.total
        yield total


def cache(dtype: torch.dtype) -> Iterator[Tensor]:
    for head_dim in (40, 128):
        held = vk.KVCache(3, 2, 2, 40, head_dim, sink=2, window=20, dtype=dtype, device=torch.get_default_device())
        for number in range(6):
            tokens = 1 + 3 * number % 8
            k, v = (drawn(dtype, 2, 2, tokens, head_dim).detach() for _ in range(2))
            positions = torch.randint(0, 9, (tokens, 3))
            held.append([0, 1, 2], [k] * 3, [v] * 3, k_weight=[torch.ones(head_dim)] * 3, positions=positions)
            held.commit()
        view = held.view(1)
        yield vk.range_attention(k, view.k, view.v, view.mask(k.shape[2]))


FAMILIES = (attention, rope, norms, bits, pyramid, cache)


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def differentiated(function: Callable, *inputs: Tensor) -> Iterator[Tensor]:
    """Yields results and gradients."""
    found = function(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    yield from found
    yield from torch.autograd.grad(sum(part.float().sum() for part in found), inputs)


def main(device: str) -> None:
    torch.manual_seed(0)
    torch.set_default_device(device)
    for family in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            results = list(family(dtype))
            if device == "cuda":
                torch.cuda.synchronize()
            wrong = sum(not bool(torch.isfinite(x.float()).all()) for x in results)
            if wrong:
                raise SystemExit(f"every_op: {family.__name__} in {dtype}: {wrong} of {len(results)} not finite")
            print(f"{family.__name__} {dtype}: {len(results)} results", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
