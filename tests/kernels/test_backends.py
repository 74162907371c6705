"""What is decided by bits is the same on every backend: compiled CPU kernels, the reference, and a GPU.

`make gpu-check` runs the GPU half; tests/kernels/test_<family>.py compares with float64 and NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import videoar_kernels as kernels
from videoar_kernels import reference

DIMS = (8, 32, 48, 77, 256)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Backend:
    """The functions of one backend, on its device."""

    def __init__(self, device: str, *modules: object) -> None:
        self.device, self._modules = device, modules

    def __getattr__(self, name: str) -> Callable:
        return next(getattr(module, name) for module in self._modules if hasattr(module, name))

    def put(self, x):
        return x.to(self.device) if isinstance(x, Tensor) else x


CPU = Backend("cpu", kernels)


@pytest.fixture(params=["reference", "cuda"])
def other(request) -> Backend:
    if request.param == "reference":
        return Backend("cpu", reference.bits, reference.pyramid)
    return Backend("cuda", kernels)


def assert_same(other: Backend, call: Callable[[Backend], object]) -> None:
    for ours, theirs in zip(tensors(call(CPU)), tensors(call(other)), strict=True):
        assert theirs.dtype == ours.dtype and torch.equal(ours, theirs.cpu())


def tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from tensors(part)


@pytest.mark.parametrize("dim", DIMS)
def test_packing_and_codes(other, dim):
    ones = torch.rand(3, 41, dim) < 0.5
    packed = kernels.pack_bits(ones)
    assert_same(other, lambda b: b.pack_bits(b.put(ones)))
    assert_same(other, lambda b: b.unpack_bits(b.put(packed), dim))
    for dtype in FLOATS:
        assert_same(other, lambda b, dtype=dtype: b.bits_to_code(b.put(packed), dim, dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_quantization(other, dim, dtype):
    x = torch.randn(5, 17, dim).to(dtype)
    x[0, 0, :4] = torch.tensor([0.0, -0.0, float("nan"), float("inf")])
    assert_same(other, lambda b: b.bsq_quantize(b.put(x)))


@pytest.mark.parametrize("offset", [0, 7, (1 << 63) + 5])
@pytest.mark.parametrize("dim", DIMS)
def test_flips(other, dim, offset):
    bits = kernels.pack_bits(torch.rand(3, 130, dim) < 0.5)
    for p in (0.0, 0.25, torch.rand(3, dtype=torch.float64), torch.rand(3, 130)):
        assert_same(
            other, lambda b, p=p: b.flip_bits(b.put(bits), b.put(p), seed=1234567890123, offset=offset, dim=dim)
        )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_draws(other, dim, dtype):
    logits, uncond = (3 * torch.randn(2, 4, 200, dim)).to(dtype).unbind(0)
    for options in (
        {"seed": 3},
        {"seed": (1 << 64) - 1, "offset": 1 << 40, "temperature": 0.7},
        {"seed": 5, "uncond": uncond, "guidance": 4.5},
        {"seed": 5, "uncond": uncond, "guidance": torch.rand(4, 1) * 5, "temperature": 1.3},
        {"seed": torch.tensor([9, 1, -4, 9]), "uncond": uncond, "guidance": 2.0},
        {"seed": 0, "temperature": 0.0},
    ):
        assert_same(
            other, lambda b, o=options: b.sample_bits(b.put(logits), **{name: b.put(x) for name, x in o.items()})
        )


def test_pyramids_whose_sums_are_exact(other):
    # Codes of 16 bits are quarters, and halving sizes have binary weights, so that no sum is rounded anywhere.
    scales = [(1, 1), (2, 2), (4, 4), (8, 8)]
    z = torch.randint(-512, 512, (3, 4, 8, 8, 16)) / 256
    for flips in ({}, {"flip_p": torch.full((3, 4, 4), 0.2), "seed": 11}, {"flip_p": 0.3, "seed": 2, "inherit": False}):
        assert_same(
            other, lambda b, f=flips: b.pyramid_encode(b.put(z), scales, **{name: b.put(x) for name, x in f.items()})
        )
    labels = kernels.pyramid_encode(z, scales).labels
    assert_same(other, lambda b: b.pyramid_decode(b.put(labels), scales, dim=16))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_caches_hold_the_same_bytes(dtype):
    blocks = torch.randn(9, 2, 2, 3, 6, 40).to(dtype)  # rounds, k and v, batch, heads, tokens, head_dim
    views = []
    for device in ("cpu", "cuda"):
        cache = kernels.KVCache(2, 2, 3, 24, 40, sink=2, window=12, dtype=dtype, device=device)
        for number, (k, v) in enumerate(blocks.to(device)):
            k, v = k[..., : 1 + number % 6, :], v[..., : 1 + number % 6, :]
            cache.append([0, 1], [k, -k], [v, 2 * v])
            cache.commit(close=number % 2 == 1)
        held = [(cache.view(layer), layer) for layer in range(2)]
        slots = [slot for begin, end in held[0][0].ranges for slot in range(begin, end)]
        views.append([getattr(view, name)[:, :, slots].cpu() for view, _ in held for name in ("k", "v")])
    assert all(torch.equal(a, b) for a, b in zip(*views, strict=True))
