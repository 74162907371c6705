"""Packed bits: quantization, packing, flips, sampling and cross-entropy."""

from __future__ import annotations

import math

import arithmetic
import torch
import torch.nn.functional as F
from memory_bound import LEAST_BYTES, judged_by
from registry import Arithmetic, Case, cases, on_gpu

import videoar_kernels as vk
from videoar_kernels import reference

DIM = 48
TOKENS = {"16 x 650 x 48": 16 * 650, "300,000 x 48": 300_000}
VERIFIED = 300_000  # tokens at the start, at most: the reference is slow
PHILOX = "Philox 4x32-10 alone, from and to the first cache, one draw per element"
SOFTPLUS = "softplus sums alone over the first cache"
SIGMOID = "sigmoid alone, to the dtype's precision, from and to the first cache"


def sizes(full: bool):
    dtypes = (torch.float32, torch.bfloat16)
    for dtype in dtypes if full else dtypes[1:]:
        for shape, tokens in tokens_of(DIM * dtype.itemsize).items():
            yield shape, tokens, dtype


def tokens_of(token_bytes: int) -> dict[str, int]:
    """Sizes by name; on a GPU one, a tensor of which is large if a token takes so many bytes."""
    if not on_gpu():
        return TOKENS
    tokens = math.ceil(LEAST_BYTES / token_bytes / 1000) * 1000
    return {f"{tokens:,} x {DIM}": tokens}


def against(ours, exact):
    """Returns a check that both give equal tensors, as far as those of `exact` go."""

    def verify() -> None:
        for a, b in zip(ours(), exact(), strict=True):
            if not torch.equal(a[: len(b)], b):
                raise AssertionError("results differ")

    return verify


def compiled(function):
    return torch.compile(function, dynamic=False)


def eager_pack(ones):
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=ones.device)
    return (ones.unflatten(-1, (-1, 8)).to(torch.uint8) * weights).sum(-1, dtype=torch.uint8)


def eager_quantize(x):
    ones = x > 0
    return eager_pack(ones), torch.where(ones, DIM**-0.5, -(DIM**-0.5)).to(x.dtype)


@cases("bsq_quantize")
def quantize(full: bool):
    for shape, tokens, dtype in sizes(full):
        x = torch.randn(tokens, DIM).to(dtype)
        out = vk.bsq_quantize(x)
        graph = compiled(eager_quantize)
        yield Case(
            op="bsq_quantize",
            shape=f"{shape}, to out",
            dtype=dtype,
            ours=lambda x=x, out=out: vk.bsq_quantize(x, out=out),
            verify=against(lambda x=x: vk.bsq_quantize(x), lambda x=x: reference.bits.bsq_quantize(x[:VERIFIED])),
            peers={"eager": lambda x=x: eager_quantize(x), "torch.compile": lambda x=x, graph=graph: graph(x)},
            bytes=2 * x.nbytes + x.numel() / 8,
            **judged_by("copy same size", {"limit": 0.6, "eager": 4.0, "torch.compile": 1.0}),
        )


@cases("pack_bits")
def pack(full: bool):
    for shape, tokens in tokens_of(DIM).items():
        ones = torch.rand(tokens, DIM) < 0.5
        out = vk.pack_bits(ones)
        graph = compiled(eager_pack)
        yield Case(
            op="pack_bits",
            shape=f"{shape}, to out",
            dtype=torch.uint8,
            ours=lambda ones=ones, out=out: vk.pack_bits(ones, out=out),
            verify=against(lambda ones=ones: [vk.pack_bits(ones)], lambda ones=ones: [eager_pack(ones[:VERIFIED])]),
            peers={"eager": lambda ones=ones: eager_pack(ones), "torch.compile": lambda o=ones, graph=graph: graph(o)},
            bytes=ones.nbytes * 9 / 8,
            **judged_by("copy same size", {"limit": 0.6, "eager": 4.0, "torch.compile": 1.0}),
        )


def eager_unpack(bits):
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> shifts & 1).flatten(-2).bool()


@cases("unpack_bits")
def unpack(full: bool):
    for shape, tokens in tokens_of(DIM).items():
        bits = torch.randint(0, 256, (tokens, DIM // 8), dtype=torch.uint8)
        out = vk.unpack_bits(bits)
        graph = compiled(eager_unpack)
        yield Case(
            op="unpack_bits",
            shape=f"{shape}, to out",
            dtype=torch.uint8,
            ours=lambda bits=bits, out=out: vk.unpack_bits(bits, out=out),
            verify=against(lambda bits=bits: [vk.unpack_bits(bits)], lambda bits=bits: [eager_unpack(bits[:VERIFIED])]),
            peers={
                "eager": lambda bits=bits: eager_unpack(bits),
                "torch.compile": lambda bits=bits, graph=graph: graph(bits),
            },
            bytes=out.nbytes * 9 / 8,
            **judged_by("copy same size", {"limit": 0.6, "eager": 4.0, "torch.compile": 1.0}),
        )


def eager_flip(bits, p):
    ones = eager_unpack(bits)
    return eager_pack(ones ^ (torch.rand(ones.shape, device=ones.device) < p))


@cases("flip_bits")
def flip(full: bool):
    for shape, tokens in tokens_of(DIM // 8).items():
        bits = torch.randint(0, 256, (tokens, DIM // 8), dtype=torch.uint8)
        graph = compiled(eager_flip)
        yield Case(
            op="flip_bits",
            shape=f"{shape}, in place",
            dtype=torch.uint8,
            ours=lambda bits=bits: vk.flip_bits(bits, 0.1, seed=1, out=bits),
            verify=against(
                lambda bits=bits: [vk.flip_bits(bits, 0.1, seed=1)],
                lambda bits=bits: [reference.bits.flip_bits(bits[:VERIFIED], 0.1, seed=1)],
            ),
            peers={
                "eager": lambda bits=bits: eager_flip(bits, 0.1),
                "torch.compile": lambda bits=bits, graph=graph: graph(bits, 0.1),
            },
            bytes=2 * bits.nbytes,
            flops=tokens * DIM,
            **judged_by(Arithmetic(arithmetic.philox, PHILOX), {"limit": 0.6, "eager": 4.0, "torch.compile": 1.0}),
        )


def eager_sample(logits, uncond):
    chance = torch.sigmoid((uncond + 3.0 * (logits - uncond)).float())
    ones = torch.rand(logits.shape, device=logits.device) < chance
    return eager_pack(ones), torch.where(ones, DIM**-0.5, -(DIM**-0.5)).to(logits.dtype)


def multinomial_sample(logits, uncond):
    pairs = F.pad((uncond + 3.0 * (logits - uncond)).float().unsqueeze(-1), (1, 0)).softmax(-1)
    ones = torch.multinomial(pairs.view(-1, 2), 1).view(logits.shape).bool()
    return eager_pack(ones), torch.where(ones, DIM**-0.5, -(DIM**-0.5)).to(logits.dtype)


@cases("sample_bits")
def sample(full: bool):
    for shape, tokens, dtype in sizes(full):
        logits, uncond = torch.randn(tokens, DIM).to(dtype), torch.randn(tokens, DIM).to(dtype)
        options = {"uncond": uncond, "guidance": 3.0, "seed": 1}
        out = vk.sample_bits(logits, **options)
        graph = compiled(eager_sample)
        peers = {
            "eager (sigmoid)": lambda a=logits, b=uncond: eager_sample(a, b),
            "torch.compile": lambda a=logits, b=uncond, graph=graph: graph(a, b),
        }
        if full or tokens < 100_000:
            peers["eager (multinomial)"] = lambda a=logits, b=uncond: multinomial_sample(a, b)
        yield Case(
            op="sample_bits",
            shape=f"{shape}, guided, to out",
            dtype=dtype,
            ours=lambda x=logits, options=options, out=out: vk.sample_bits(x, **options, out=out),
            verify=against(
                lambda x=logits, options=options: vk.sample_bits(x, **options),
                lambda x=logits, options=options: reference.bits.sample_bits(
                    x[:VERIFIED], **{**options, "uncond": options["uncond"][:VERIFIED]}
                ),
            ),
            peers=peers,
            bytes=3 * logits.nbytes + logits.numel() / 8,
            flops=tokens * DIM,
            **judged_by(Arithmetic(arithmetic.philox, PHILOX), {"eager (sigmoid)": 4.0, "torch.compile": 1.0}),
            notes="" if on_gpu() else "the limit is Philox alone; guidance, exponential and comparison come on top",
        )


def eager_entropy(logits, ones):
    return F.binary_cross_entropy_with_logits(logits.float(), ones)


@cases("bit_cross_entropy")
def entropy(full: bool):
    for shape, tokens, dtype in sizes(full):
        logits, ones = torch.randn(tokens, DIM).to(dtype), torch.rand(tokens, DIM) < 0.5
        bits, target = vk.pack_bits(ones), ones.float()
        graph = compiled(eager_entropy)

        def verify(logits=logits, bits=bits, target=target):
            found, wanted = vk.bit_cross_entropy(logits, bits).loss, eager_entropy(logits, target)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)

        yield Case(
            op="bit_cross_entropy",
            shape=f"{shape}, forward",
            dtype=dtype,
            ours=lambda x=logits, bits=bits: vk.bit_cross_entropy(x, bits),
            verify=verify,
            peers={
                "eager": lambda x=logits, t=target: eager_entropy(x, t),
                "torch.compile": lambda x=logits, t=target, graph=graph: graph(x, t),
            },
            bytes=logits.nbytes + bits.nbytes,
            flops=tokens * DIM,
            **judged_by(Arithmetic(arithmetic.softplus, SOFTPLUS), {"limit": 0.6, "eager": 4.0, "torch.compile": 1.0}),
            notes="peers get the bits unpacked as float32 beforehand",
        )


@cases("bit_cross_entropy backward")
def entropy_backward(full: bool):
    for shape, tokens, dtype in sizes(full):
        logits, ones = torch.randn(tokens, DIM).to(dtype), torch.rand(tokens, DIM) < 0.5
        bits, target = vk.pack_bits(ones), ones.float()
        x = logits.requires_grad_()
        losses = (
            vk.bit_cross_entropy(x, bits).loss,
            eager_entropy(x, target),
            compiled(eager_entropy)(x, target),
        )

        def gradient(loss, x=x):
            return torch.autograd.grad(loss, x, retain_graph=True)[0]

        ours, eager, graph = losses

        def verify(ours=ours, eager=eager, gradient=gradient, dtype=dtype):
            close = {"rtol": 2e-2 if dtype == torch.bfloat16 else 1e-4, "atol": 0}  # the larger the batch, the smaller
            torch.testing.assert_close(gradient(ours), gradient(eager), **close)

        yield Case(
            op="bit_cross_entropy",
            shape=f"{shape}, backward",
            dtype=dtype,
            ours=lambda ours=ours, gradient=gradient: gradient(ours),
            verify=verify,
            peers={
                "eager": lambda eager=eager, gradient=gradient: gradient(eager),
                "torch.compile": lambda graph=graph, gradient=gradient: gradient(graph),
            },
            bytes=2 * x.nbytes + bits.nbytes,
            flops=tokens * DIM,
            **judged_by(
                Arithmetic(lambda dtype=dtype: arithmetic.sigmoid(dtype), SIGMOID),
                {"limit": 0.6, "eager": 4.0, "torch.compile": 1.0},
            ),
            grad=True,
        )


def test_bits(case, compare):
    compare(case)
