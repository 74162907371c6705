"""The residual pyramid of every frame: encoding, decoding and a step of sampling."""

from __future__ import annotations

import torch
from registry import Case, cases

import videoar_kernels as vk
from videoar_kernels import reference

SCALES = [(1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)]
TOKENS = sum(h * w for h, w in SCALES)
DIM = 48


def agree(ours, exact) -> None:
    torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)


@cases("pyramid")
def pyramid(full: bool):
    clips = (16, 256) if full else (16,)
    for batch in clips:
        z = torch.randn(batch, 5, 8, 8, DIM)
        encoded = vk.pyramid_encode(z, SCALES)
        where = f"{batch} clips of 5 x 8 x 8 x {DIM}, 6 scales"
        encode, decode = (torch.compile(f, dynamic=False) for f in (reference_encode, reference_decode))
        yield Case(
            op="pyramid_encode",
            shape=where,
            dtype=z.dtype,
            ours=lambda z=z: vk.pyramid_encode(z, SCALES),
            verify=lambda z=z, e=encoded: agree(e.total, reference_encode(z)[2]),
            peers={"eager": lambda z=z: reference_encode(z), "torch.compile": lambda z=z, f=encode: f(z)},
            bytes=z.nbytes + encoded.total.nbytes + encoded.inputs.nbytes + encoded.labels.nbytes,
            limit="copy same size",
            bars={"eager": 4.0, "torch.compile": 1.0},
        )
        yield Case(
            op="pyramid_decode",
            shape=where,
            dtype=z.dtype,
            ours=lambda bits=encoded.labels: vk.pyramid_decode(bits, SCALES),
            verify=lambda bits=encoded.labels: agree(vk.pyramid_decode(bits, SCALES), reference_decode(bits)),
            peers={
                "eager": lambda bits=encoded.labels: reference_decode(bits),
                "torch.compile": lambda bits=encoded.labels, f=decode: f(bits),
            },
            bytes=z.nbytes + encoded.labels.nbytes,
            limit="copy same size",
            bars={"eager": 4.0, "torch.compile": 1.0},
        )
        total, bits = z[:, 0].contiguous(), encoded.labels[:, 0, 1 + 4 : 1 + 4 + 9].contiguous()
        step = torch.compile(reference_step, dynamic=False)
        yield Case(
            op="pyramid_step",
            shape=f"{batch} x 8 x 8 x {DIM}, 3 x 3 to 4 x 4",
            dtype=z.dtype,
            ours=lambda total=total, bits=bits: vk.pyramid_step(total, bits, (3, 3), (4, 4)),
            verify=lambda t=total, b=bits: agree(vk.pyramid_step(t, b, (3, 3), (4, 4)).total, reference_step(t, b)[0]),
            peers={
                "eager": lambda total=total, bits=bits: reference_step(total, bits),
                "torch.compile": lambda total=total, bits=bits, f=step: f(total, bits),
            },
            bytes=2 * total.nbytes + bits.nbytes + batch * 16 * DIM * 4,
            limit="copy same size",
            bars={"eager": 4.0, "torch.compile": 1.0},
        )


def reference_encode(z):
    return reference.pyramid.pyramid_encode(z, SCALES)


def reference_decode(bits):
    return reference.pyramid.pyramid_decode(bits, SCALES)


def reference_step(total, bits):
    return reference.pyramid.pyramid_step(total, bits, (3, 3), (4, 4))


def test_pyramid(case, compare):
    compare(case)
