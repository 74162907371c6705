"""How the GPU's kernels are started: on the tensors' device and its current stream, with nothing waited for.

Each case is an operator's call on fixed tensors. On a CPU it only has to repeat itself.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import videoar_kernels as vk
from videoar_kernels.library import ops

SCALES = [(1, 1), (2, 3), (4, 6)]
Call = Callable[[], list[Tensor]]


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def bits(x: Tensor) -> Call:
    ids = torch.arange(64, device=x.device) % 3
    p = torch.linspace(0, 1, 64, device=x.device, dtype=torch.float64)

    def call() -> list[Tensor]:
        found, packed = vk.bsq_quantize(x[0]), vk.bsq_quantize(x[1]).bits
        ones = vk.unpack_bits(found.bits)
        drawn = vk.sample_bits(x[0], uncond=x[1], guidance=2.0, seed=3)
        flipped = [vk.flip_bits(packed, chance, seed=5) for chance in (0.2, p)]
        logits = leaf(x[0])
        loss = vk.bit_cross_entropy(logits, packed, scale_ids=ids, num_scales=3)
        (grad,) = torch.autograd.grad(loss.loss, logits)
        code = vk.bits_to_code(found.bits, 48, x.dtype)
        return [*found, ones, vk.pack_bits(ones), code, *drawn, *flipped, *(t.detach() for t in loss), grad]

    return call


def norms(x: Tensor) -> Call:
    def call() -> list[Tensor]:
        inputs = [leaf(part) for part in (x, x[:, :4], x[:, 4:8], x[0, 0].float())]
        tokens, scale, shift, weight = inputs
        results = [vk.adaln_norm(tokens, scale, shift, weight=weight), vk.gated_residual(tokens, tokens, scale)]
        results.append(vk.swiglu(tokens, tokens.detach()))
        grads = torch.autograd.grad(sum(r.float().sum() for r in results), inputs)
        return [*(r.detach() for r in results), *grads]

    return call


def rope(x: Tensor) -> Call:
    positions = torch.stack([torch.arange(64, device=x.device)] * 3, dim=1)

    def call() -> list[Tensor]:
        q, k = (leaf(part.view(1, 64, 3, 16).transpose(1, 2)) for part in x)
        weight = leaf(x[0, 0, :16].float())
        results = [vk.rope_3d(q, positions), *vk.qk_norm_rope(q, k, weight, weight, positions)]
        grads = torch.autograd.grad(sum(r.float().sum() for r in results), (q, k, weight))
        return [*(r.detach() for r in results), *grads]

    return call


def cache(x: Tensor) -> Call:
    held = vk.KVCache(2, 1, 3, 80, 16, sink=2, dtype=x.dtype, device=x.device)
    positions = torch.stack([torch.arange(64, device=x.device)] * 3, dim=1)
    moves = [40, 41, 30, 3, 20, 9]

    def call() -> list[Tensor]:
        k, v = (part.view(1, 64, 3, 16).transpose(1, 2) for part in x)
        held.append([0, 1], [k, k], [v, v], k_weight=[x[0, 0, :16]] * 2, positions=positions)
        ops.kv_cache_move([*held.k, *held.v], moves)
        return [*held.k, *held.v]

    return call


def pyramid(x: Tensor) -> Call:
    def call() -> list[Tensor]:
        z = leaf(x[:, :48].reshape(2, 2, 4, 6, 48))
        found = vk.pyramid_encode(z, SCALES, flip_p=0.2, seed=4)
        (grad,) = torch.autograd.grad(found.total.float().sum(), z)
        step = vk.pyramid_step(z[:, 0].detach(), found.labels[:, 0, 1:7], SCALES[1], SCALES[2])
        down, up = vk.pyramid_resample(z.detach(), SCALES), vk.pyramid_decode(found.labels, SCALES, dim=48)
        return [*(t.detach() for t in found), grad, *step, down, up]

    return call


FAMILIES = {family.__name__: family for family in (bits, norms, rope, cache, pyramid)}
families = pytest.mark.parametrize("family", FAMILIES)


def noise(device: str) -> Tensor:
    return torch.randn(2, 64, 48, generator=torch.Generator().manual_seed(1)).to(device)


def assert_equal(results: list[Tensor], expected: list[Tensor]) -> None:
    assert len(results) == len(expected)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs.cpu())


@families
def test_calls_repeat_themselves(family):
    call = FAMILIES[family](noise("cpu"))
    expected = [t.clone() for t in call()]
    assert all(t.isfinite().all() for t in expected if t.is_floating_point())
    if family != "cache":  # whose tokens move on with every call
        assert_equal(call(), expected)


@pytest.mark.gpu
@families
def test_nothing_waits_for_the_gpu(family):
    call = FAMILIES[family](noise("cuda"))
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@families
def test_kernels_run_on_the_current_stream(family):
    source, stream = noise("cuda"), torch.cuda.Stream()
    expected = [t.clone() for t in FAMILIES[family](source)()]
    x = torch.zeros_like(source)
    call = FAMILIES[family](x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(500_000_000)  # some tenths of a second: on another stream a kernel would find zeros
        x.copy_(source)
        results = [t.clone() for t in call()]
        assert not stream.query()
    stream.synchronize()
    assert_equal(results, expected)


@pytest.mark.gpu
@families
def test_calls_can_be_part_of_a_cuda_graph(family):
    x = noise("cuda")
    call = FAMILIES[family](x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = call()
    x.copy_(noise("cuda").flip(1))
    fresh = FAMILIES[family](x) if family == "cache" else call
    if family == "cache":
        for t in results:
            t.zero_()
    expected = [t.clone() for t in fresh()]
    graph.replay()
    torch.cuda.synchronize()
    assert_equal(results, expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")
@families
def test_kernels_run_on_the_tensors_device(family):
    expected = [t.clone() for t in FAMILIES[family](noise("cuda:0"))()]
    with torch.cuda.device(0):
        results = FAMILIES[family](noise("cuda:1"))()
        assert {t.device.index for t in results} == {1} and torch.cuda.current_device() == 0
    assert_equal(results, expected)
