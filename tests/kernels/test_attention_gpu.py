"""range_attention's Triton kernels: interpreted, compiled ahead of time, and where there is a GPU run on it.

Compiling takes two seconds for each kernel and tile size. TARGETS are compiled by default, those for 16 bits that
matter most and are nearest to spilling, and one each of float32 and 256 columns; VIDEOAR_FULL_TESTS=1 compiles all that
are shipped (four minutes).
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.attention_oracle import eager_attention, exact_attention, inputs
from tests.closeness import assert_close
from videoar_kernels import RangeMask, range_attention

ROOT = Path(__file__).parents[2]
requires_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")


def compare(attention, q, k, v, mask=None, scale=None):
    """Raises unless attention's outputs and gradients err about as little against float64 as eager PyTorch's."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    grad, grad_lse = torch.randn_like(q), torch.randn(q.shape[:3], device=q.device)
    dense = None if mask is None else mask.to_dense(q.device)

    def differentiate(function, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        out, lse = function(*leaves, dense, scale)
        seen = lse.isfinite()
        weights = (grad.to(out.dtype), grad_lse[seen].to(lse.dtype))
        return out, lse, *torch.autograd.grad((out, lse[seen]), leaves, weights)

    ours = attention(q, k, v, mask, scale, grad, grad_lse)
    exact = differentiate(exact_attention, torch.float64)
    eager = differentiate(eager_attention, q.dtype)
    assert ours[0].dtype == q.dtype and ours[1].dtype == torch.float32
    factor = 8.0 if q.dtype == torch.float32 else 2.0
    for a, b, low in zip(ours, exact, eager, strict=True):
        # The interpreter cuts bfloat16 off instead of rounding it.
        assert_close(a, b, low * (1 + torch.finfo(low.dtype).eps), factor=factor)


def check_lengths_and_head_dims(attention, device):
    for q_len, k_len, head_dim in ((37, 53, 40), (1, 1, 1), (70, 33, 96), (5, 20, 256)):
        q, k, v = (x.to(device) for x in inputs(torch.float32, 1, 2, 2, q_len, k_len, head_dim))
        compare(attention, q, k, v)


def check_dtypes_groups_and_a_mask_for_each_sample(attention, device):
    scales = [(1, 1), (3, 3), (4, 5)]
    mask = RangeMask.multiscale(5, 2, scales, frame_keep=torch.tensor([[[0, 0], [1, 0]], [[0, 0], [0, 0]]]).bool())
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (x.to(device) for x in inputs(dtype, 2, 2, 1, mask.q_len, mask.k_len, 16))
        compare(attention, q, k, v, mask)


def check_long_masks(attention, device):
    for mask in (RangeMask.teacher_forcing([100, 70], 9), RangeMask.units([130, 3, 100], window=1, sink=1)):
        q, k, v = (x.to(device) for x in inputs(torch.float16, 1, 1, 1, mask.q_len, mask.k_len, 32))
        compare(attention, q, k, v, mask)


def check_random_masks_and_queries_without_keys(attention, device):
    dense = torch.rand(150, 140) < torch.rand(150, 1)
    dense[[0, 20, 149]] = False
    dense[60:110] = False
    dense[:, 64:96] = False
    q, k, v = (x.to(device) for x in inputs(torch.float32, 1, 3, 1, 150, 140, 32))
    compare(attention, q, k, v, RangeMask.from_dense(dense))
    none = RangeMask.from_dense(torch.zeros(150, 140, dtype=torch.bool))
    out, lse, *grads = attention(q, k, v, none, 1.0, torch.ones_like(q), torch.ones_like(q[..., 0]))
    assert not out.any() and (lse == -torch.inf).all() and not any(g.any() for g in grads)


def check_scales_and_peaked_rows(attention, device):
    q, k, v = (x.to(device) for x in inputs(torch.float32, 1, 1, 1, 30, 70, 32))
    for scale in (0.7, -0.3, 1e-6):
        compare(attention, q, k, v, RangeMask.full(30, 70), scale)
    compare(attention, q, k, v, RangeMask.from_dense(torch.rand(30, 70) < 0.5), -0.3)
    for dtype in (torch.float32, torch.float16):
        compare(attention, *(x.to(device) for x in inputs(dtype, 1, 1, 1, 30, 70, 32, peak=15.0)))


def check_few_queries_against_many_keys(attention, device):
    keep = RangeMask.from_dense(torch.rand(5, 600) < 0.8)
    for mask, dtype, heads in ((None, torch.float32, 3), (keep, torch.bfloat16, 6)):
        compare(attention, *(x.to(device) for x in inputs(dtype, 1, heads, 1, 5, 600, 32)), mask)


def check_nothing_leaks_from_unseen_keys(attention, device):
    keep = torch.rand(3, 3) < 0.5
    mask = RangeMask.multiscale(3, 3, [(1, 1), (2, 3), (6, 6)], frame_keep=keep)
    dense = mask.to_dense(device)
    q, k, v = (x.to(device) for x in inputs(torch.float32, 1, 1, 1, mask.q_len, mask.k_len, 16))
    grad, grad_lse = torch.randn_like(q), torch.randn_like(q[..., 0])

    def run(q, k, v, grad=grad):
        return attention(q, k, v, mask, 0.2, grad, grad_lse)

    clean = run(q, k, v)
    for bad, at in ((torch.nan, 4), (torch.inf, mask.k_len - 1)):
        k2, v2, q2, grad2 = (x.clone() for x in (k, v, q, grad))
        for x in (k2, v2, q2, grad2):
            x[:, :, at] = bad
        clear = ~dense[:, at]
        for keys, values in ((k2, v2), (k, v2)):
            out, _, grad_q, _, _ = run(q, keys, values)
            assert torch.equal(out[:, :, clear], clean[0][:, :, clear])
            assert torch.equal(grad_q[:, :, clear], clean[2][:, :, clear])
            assert not out[:, :, ~clear].isfinite().any()
        clear = ~dense[at]
        for queries, grads in ((q2, grad), (q, grad2)):
            *_, grad_k, grad_v = run(queries, k, v, grads)
            assert torch.equal(grad_k[:, :, clear], clean[3][:, :, clear])
            assert torch.equal(grad_v[:, :, clear], clean[4][:, :, clear])
            assert not grad_v[:, :, ~clear].isfinite().all()


def check_strides_and_empty_sizes(attention, device):
    mask = RangeMask.units([5, 20, 13], 4)
    fused = torch.randn(2, mask.q_len, 3, 2, 48, device=device)[..., :32]  # (B, L, qkv, H, D), rows with gaps
    q, k, v = (x.transpose(1, 2) for x in fused.unbind(2))
    grad = torch.randn(mask.q_len, 1, 2, 32, device=device).permute(1, 2, 0, 3).expand_as(q)
    grad_lse = torch.randn(2, mask.q_len, 2, device=device).mT
    columns = torch.randn(2, 2, 32, mask.q_len, device=device).mT  # the last dimension is not contiguous
    for case in ((q, k[:, :1], v[:, 1:]), (q, k[:, :1].expand_as(k), k[:, :1].expand_as(k)), (columns, k, columns)):
        ours = attention(*case, mask, 0.2, grad, grad_lse)
        dense = attention(*(x.contiguous() for x in case), mask, 0.2, grad.contiguous(), grad_lse.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(ours, dense, strict=True))
        assert ours[0].transpose(1, 2).is_contiguous()
    into = torch.full((2, mask.q_len, 2, 40), torch.nan, device=device).transpose(1, 2)[..., :32]
    assert torch.equal(attention(*case, mask, 0.2, grad, grad_lse, out=into)[0], ours[0])
    assert torch.equal(into, ours[0])
    for batch, q_len, k_len in ((0, 5, 6), (2, 0, 6), (2, 5, 0)):
        q, k, v = (x.to(device) for x in inputs(torch.float32, batch, 2, 2, q_len, k_len, 32))
        out, _, *grads = attention(q, k, v, None, 0.2, torch.ones_like(q), torch.ones_like(q[..., 0]))
        assert out.shape == q.shape and not out.any()
        assert all(not g.any() and g.shape == x.shape for g, x in zip(grads, (q, k, v), strict=True))


def by_operators(q, k, v, mask, scale, grad, grad_lse, out=None):
    """(out, lse, gradients) by the Triton operators themselves, whatever the device."""
    from videoar_kernels.triton import attention, attention_backward

    arrays = (None,) * 4 if mask is None else (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges)
    if out is None:
        out, lse = attention.operator(q, k, v, *arrays, scale)
    else:
        lse = attention.operator_out(q, k, v, *arrays, scale, out)
    return out, lse, *attention_backward.operator(grad, grad_lse, q, k, v, out, lse, *arrays, scale)


def by_public_function(q, k, v, mask, scale, grad, grad_lse, out=None):
    if out is not None:
        return range_attention(q, k, v, mask, scale=scale, return_lse=True, out=out)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = range_attention(*leaves, mask, scale=scale, return_lse=True)
    return out, lse, *torch.autograd.grad((out, lse), leaves, (grad, grad_lse))


CHECKS = [value for name, value in dict(globals()).items() if name.startswith("check_")]


@requires_triton
def test_interpreted_kernels_match_float64():
    # Triton reads the variable when it is imported, so this needs a process of its own.
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


POINTERS = {
    **dict.fromkeys(["q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v", "parts"], "element"),
    **dict.fromkeys(["lse", "grad_lse", "delta", "part_lse"], "*fp32"),
    **dict.fromkeys(["tiles", "tile_ptr", "full", "partial", "patterns"], "*i32"),
    "scale": "fp32",
}


def compile_attention(kernel, config, element, capability, **constants):
    """Compiles an attention kernel for one row of the tables, with strides that are multiples of 16."""
    from tests.ahead_of_time import compile_kernel

    types = {n: f"*{element}" if t == "element" else t for n, t in POINTERS.items()}
    if constants.get("SPLIT") and "q" in kernel.arg_names:
        types["out"] = "*fp32"  # what merge_kernel reads
    names = kernel.arg_names
    axes = ("_batch", "_head", "_token")
    return compile_kernel(
        kernel,
        {n: t for n, t in types.items() if n in names},
        {n: c for n, c in constants.items() if n in names},
        capability,
        warps=config.warps,
        stages=config.stages,
        aligned=tuple(n for n in names if n.endswith(axes) and not n.startswith("lse")),
    )


KERNELS = ("forward", "decode", "queries", "keys")
FAMILIES = (80, 86, 90, 100)
TARGETS = [
    (90, "bf16", 128, KERNELS),
    (90, "bf16", 64, ("forward", "keys")),
    (90, "bf16", 256, ("forward",)),
    (90, "fp32", 64, ("forward",)),
    (80, "bf16", 128, ("forward", "keys")),
    (100, "bf16", 128, ("forward", "keys")),
]
if os.environ.get("VIDEOAR_FULL_TESTS"):
    TARGETS = list(itertools.product(FAMILIES, ("bf16", "fp32"), (64, 128, 256), (KERNELS,)))


@requires_triton
@pytest.mark.parametrize(("capability", "element", "columns", "kernels"), TARGETS)
def test_shipped_configs_compile_without_spills(capability, element, columns, kernels):
    from tests.ahead_of_time import VERSION
    from videoar_kernels.triton import attention, attention_backward
    from videoar_kernels.triton import attention_configs as configs
    from videoar_kernels.triton.attention_launch import precision

    size = 2 if element == "bf16" else 4
    constants = {"D": columns, "COLUMNS": columns, "NEGATIVE": False, "WIDEN": False, "LSE_GRAD": True}
    constants |= {"F32": precision(size), "PACK": 1, "SPLIT": False}
    # float32 needs more registers than there are, whatever the tile.
    most_stack = {128: 16, 256: 512}.get(columns, 0) if element == "fp32" else 0
    if VERSION < (3, 9):  # 3.6, that of PyTorch 2.11: "keys" on sm_90, hardly read in the loops over blocks
        most_stack = max(most_stack, 128)
    most_shared = configs.SHARED[configs.family(capability)] * 1024
    bad = []
    for name, kernel in (
        ("forward", attention.forward_kernel),
        ("decode", attention.forward_kernel),
        ("queries", attention_backward.queries_kernel),
        ("keys", attention_backward.keys_kernel),
    ):
        if name not in kernels:
            continue
        config = configs.config(name, configs.family(capability), columns, size)
        if name == "decode" and size == 4 and config == configs.config("forward", 90, columns, 4):
            continue  # it differs by the dtype it stores alone
        sizes = {"M": config.tile, "TILE": config.tile, "BLOCK": config.block}
        if name == "decode":
            sizes |= {"SPLIT": True}
        made = compile_attention(kernel, config, element, capability, **constants | sizes)
        hopper = capability == 90 and element == "bf16" and config.tile >= 64
        if made.stack > most_stack or made.shared > most_shared or (hopper and "wgmma.mma_async" not in made.ptx):
            bad.append(f"{name} {config}: {made.registers} registers, stack {made.stack}, shared {made.shared}")
    assert not bad, "\n".join(bad)


@requires_triton
def test_small_tiles_and_the_merge_compile():
    from videoar_kernels.triton import attention
    from videoar_kernels.triton import attention_configs as configs

    config = configs.config("decode", 90, 128, 2)
    constants = {"D": 96, "COLUMNS": 128, "BLOCK": config.block, "NEGATIVE": True, "WIDEN": False, "F32": "ieee"}
    sizes = {"M": 16, "TILE": 5, "PACK": 3, "SPLIT": True}
    assert compile_attention(attention.forward_kernel, config, "fp16", 90, **constants, **sizes).stack == 0
    merge = {"D": 96, "COLUMNS": 128, "MOST": attention.MOST_PARTS, "ROWS": attention.MERGED_ROWS}
    assert compile_attention(attention.merge_kernel, config, "fp32", 90, **merge).stack == 0


def test_info_says_that_triton_runs_attention_on_a_gpu():
    pytest.importorskip("triton", reason="Triton is not installed")
    code = (
        "import torch; torch.version.cuda = torch.version.cuda or '13.0'\n"
        "import videoar_kernels as vk\n"
        "for name in ('range_attention', 'range_attention_out', 'range_attention_backward'):\n"
        "    print(vk.info().operators[name]['cuda'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["triton, not yet run on a GPU (float64: reference)"] * 3, done.stderr


def test_every_gpu_has_a_row_in_the_tables():
    pytest.importorskip("triton", reason="Triton is not installed")
    from videoar_kernels.triton import attention_configs as configs

    families = {75: 80, 80: 80, 86: 86, 89: 86, 90: 90, 100: 100, 103: 100, 120: 86, 121: 86}
    assert {c: configs.family(c) for c in families} == families
    assert configs.FAMILIES == FAMILIES
    for family in configs.FAMILIES:
        for kernel in configs.KERNELS:
            for columns in (16, 32, 64, 128, 256):
                for size in (2, 4):
                    assert configs.config(kernel, family, columns, size).warps in (4, 8)


requires_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


@pytest.mark.gpu
@requires_gpu
@pytest.mark.parametrize("check", CHECKS)
def test_gpu_matches_float64(check):
    check(by_public_function, "cuda")


@pytest.mark.gpu
@requires_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_gpu_at_full_size_matches_float64_and_gives_the_same_bits_again(dtype, head_dim):
    mask = RangeMask.multiscale(33, 4, [(1, 1), (3, 3), (8, 8), (17, 19)], window=2)
    q, k, v = (x.cuda() for x in inputs(dtype, 2, 4, 2, mask.q_len, mask.k_len, head_dim))
    compare(by_public_function, q, k, v, mask)
    rest = (mask, 0.1, torch.randn_like(q), torch.randn_like(q[..., 0], dtype=torch.float32))
    first = by_public_function(q, k, v, *rest)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, by_public_function(q, k, v, *rest), strict=True))


@pytest.mark.gpu
@requires_gpu
def test_gpu_graph_replays_with_new_values_and_refuses_a_new_mask():
    mask = RangeMask.units([130, 70], 9)
    q, k, v = (x.cuda() for x in inputs(torch.bfloat16, 1, 2, 2, mask.q_len, mask.k_len, 64))
    range_attention(q, k, v, mask)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = range_attention(q, k, v, mask)
    q.copy_(torch.randn_like(q))
    graph.replay()
    assert torch.equal(out, range_attention(q, k, v, mask))
    refused = pytest.raises(RuntimeError, match="used before the CUDA graph is captured")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):  # a graph is captured once
        range_attention(q, k, v, RangeMask.units([100, 100], 9))


if __name__ == "__main__":
    for check in CHECKS:
        torch.manual_seed(0)
        check(by_operators, "cpu")
        print(check.__name__, "passed", flush=True)
