"""The residual pyramid of every frame: encoding, decoding and a step of sampling.

The eager peers are what a user writes: `interpolate` scale by scale, on bits that stay booleans, which saves them the
packing that ours does.
"""

from __future__ import annotations

import torch
from registry import Case, cases
from torch import Tensor
from torch.nn.functional import interpolate

import videoar_kernels as vk
from videoar_kernels import reference

SCALES = [(1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)]
TOKENS = sum(h * w for h, w in SCALES)
DIM = 48


STEP, NEXT = (3, 3), (4, 4)


def agree(ours, exact) -> None:
    torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)


@cases("pyramid")
def pyramid(full: bool):
    clips = (16, 256) if full else (16,)
    for batch in clips:
        z = torch.randn(batch, 5, 8, 8, DIM)
        encoded = vk.pyramid_encode(z, SCALES)
        ones = vk.unpack_bits(encoded.labels)
        where = f"{batch} clips of 5 x 8 x 8 x {DIM}, 6 scales"
        encode, decode = (torch.compile(f, dynamic=False) for f in (eager_encode, eager_decode))
        yield Case(
            op="pyramid_encode",
            shape=where,
            dtype=z.dtype,
            ours=lambda z=z: vk.pyramid_encode(z, SCALES),
            verify=lambda z=z: verify_encode(z),
            peers={"eager": lambda z=z: eager_encode(z), "torch.compile": lambda z=z, f=encode: f(z)},
            bytes=z.nbytes + encoded.total.nbytes + encoded.inputs.nbytes + encoded.labels.nbytes,
            limit="copy same size",
            bars={"eager": 4.0, "torch.compile": 1.0},
        )
        yield Case(
            op="pyramid_decode",
            shape=where,
            dtype=z.dtype,
            ours=lambda bits=encoded.labels: vk.pyramid_decode(bits, SCALES),
            verify=lambda bits=encoded.labels, ones=ones: verify_decode(bits, ones),
            peers={
                "eager": lambda ones=ones: eager_decode(ones),
                "torch.compile": lambda ones=ones, f=decode: f(ones),
            },
            bytes=z.nbytes + encoded.labels.nbytes,
            limit="copy same size",
            bars={"eager": 4.0, "torch.compile": 1.0},
        )
        total, bits = z[:, 0].contiguous(), encoded.labels[:, 0, 1 + 4 : 1 + 4 + 9].contiguous()
        chosen = vk.unpack_bits(bits)
        step = torch.compile(eager_step, dynamic=False)
        yield Case(
            op="pyramid_step",
            shape=f"{batch} x 8 x 8 x {DIM}, 3 x 3 to 4 x 4",
            dtype=z.dtype,
            ours=lambda total=total, bits=bits: vk.pyramid_step(total, bits, STEP, NEXT),
            verify=lambda total=total, bits=bits, ones=chosen: verify_step(total, bits, ones),
            peers={
                "eager": lambda total=total, ones=chosen: eager_step(total, ones),
                "torch.compile": lambda total=total, ones=chosen, f=step: f(total, ones),
            },
            bytes=2 * total.nbytes + bits.nbytes + batch * 16 * DIM * 4,
            limit="copy same size",
            bars={"eager": 4.0, "torch.compile": 1.0},
        )


def code_planes(ones: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, n, d) bits of one scale as channel-first codes (B, d, h, w)."""
    value = ones.shape[-1] ** -0.5
    return torch.where(ones, value, -value).mT.unflatten(2, size)


def tokens_of(planes: Tensor, batch: int) -> Tensor:
    """(B T, d, h, w) -> (B, T, h w, d)."""
    return planes.flatten(2).mT.unflatten(0, (batch, -1))


def eager_encode(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (B, T, N, d) as booleans, inputs (B, T, N, d) and the sum (B, T, H, W, d)."""
    batch, size, value = z.shape[0], z.shape[2:4], z.shape[-1] ** -0.5
    x = z.movedim(-1, 2).flatten(0, 1)  # (B T, d, H, W)
    total, labels, inputs = torch.zeros_like(x), [], []
    for scale in SCALES:
        inputs.append(tokens_of(interpolate(total, scale, mode="area"), batch))
        ones = interpolate(x - total, scale, mode="area") > 0
        labels.append(tokens_of(ones, batch))
        total = total + interpolate(torch.where(ones, value, -value), size, mode="bilinear")
    last = tokens_of(interpolate(total, SCALES[0], mode="area"), batch)
    inputs[0] = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], dim=1)
    return torch.cat(labels, 2), torch.cat(inputs, 2), total.unflatten(0, (batch, -1)).movedim(2, -1)


def eager_decode(ones: Tensor) -> Tensor:
    """(B, T, N, d) bits -> (B, T, H, W, d)."""
    flat, total, start = ones.flatten(0, 1), 0, 0
    for h, w in SCALES:
        codes = code_planes(flat[:, start : start + h * w], (h, w))
        total = total + interpolate(codes, SCALES[-1], mode="bilinear")
        start += h * w
    return total.unflatten(0, ones.shape[:2]).movedim(2, -1)


def eager_step(total: Tensor, ones: Tensor) -> tuple[Tensor, Tensor]:
    x = total.movedim(-1, 1) + interpolate(code_planes(ones, STEP), total.shape[1:3], mode="bilinear")
    return x.movedim(1, -1), interpolate(x, NEXT, mode="area").flatten(2).mT


def verify_encode(z: Tensor) -> None:
    """Everything ours and the peer return equals the reference, but for frames with a residual that is zero but for
    rounding: there a label may go either way, and what follows from it."""
    exact, ours, eager = reference.pyramid.pyramid_encode(z, SCALES), vk.pyramid_encode(z, SCALES), eager_encode(z)
    for labels, inputs, total in (ours, (vk.pack_bits(eager[0]), *eager[1:])):
        same = (labels == exact.labels).flatten(2).all(2)  # (B, T)
        assert same.float().mean() > 0.9
        agree(total[same], exact.total[same])
        before = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], dim=1)
        agree(inputs[same & before], exact.inputs[same & before])


def verify_decode(bits: Tensor, ones: Tensor) -> None:
    exact = reference.pyramid.pyramid_decode(bits, SCALES)
    agree(vk.pyramid_decode(bits, SCALES), exact)
    agree(eager_decode(ones), exact)


def verify_step(total: Tensor, bits: Tensor, ones: Tensor) -> None:
    exact = reference.pyramid.pyramid_step(total, bits, STEP, NEXT)
    agree(tuple(vk.pyramid_step(total, bits, STEP, NEXT)), tuple(exact))
    agree(eager_step(total, ones), tuple(exact))


def test_pyramid(case, compare):
    compare(case)
