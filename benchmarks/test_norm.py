"""Norms, gated residual and gated activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from closeness import assert_close
from registry import Case, cases

from videoar_kernels import swiglu


@cases("swiglu")
def swiglu_forward(full: bool):
    tokens = (2048, 8192) if full else (8192,)
    for length in tokens:
        gate, up = (torch.randn(length, 4096).bfloat16() for _ in range(2))

        def eager(gate=gate, up=up):
            return F.silu(gate) * up

        def verify(gate=gate, up=up, eager=eager):
            exact = F.silu(gate.double()) * up.double()
            assert_close(swiglu(gate, up), exact, eager())

        yield Case(
            op="swiglu",
            shape=f"{length} x 4096",
            dtype=gate.dtype,
            ours=lambda gate=gate, up=up: swiglu(gate, up),
            verify=verify,
            peers={"eager": eager, "torch.compile": torch.compile(eager, dynamic=False)},
            bytes=3 * gate.numel() * gate.element_size(),
            limit="copy",
            bars={"limit": 0.6, "eager": 1.5},
        )


def test_norm(case, compare):
    compare(case)
