"""The pyramid as an operator: out= forms, compilation, devices without a kernel, and what it refuses."""

from __future__ import annotations

import pytest
import torch

import videoar_kernels as K
from videoar_kernels import pyramid as encoder
from videoar_kernels import pyramid_sum as decoder
from videoar_kernels.library import ops

RAGGED = [(1, 1), (2, 3), (2, 5), (5, 4), (5, 7)]


def random_latents(dim: int, dtype=torch.float32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 5, 7, dim, dtype=torch.float64).to(dtype)


def forms(dtype):
    """Name -> (function of out=, result without out)."""
    z = random_latents(9, dtype)
    encoded = K.pyramid_encode(z, RAGGED, flip_p=0.2, seed=3)
    bits, total = encoded.labels, encoded.total[:, 0].contiguous()
    calls = {
        "encode": lambda **out: K.pyramid_encode(z, RAGGED, **out),
        "encode with flips": lambda **out: K.pyramid_encode(z, RAGGED, flip_p=0.2, seed=3, inherit=False, **out),
        "decode": lambda **out: (K.pyramid_decode(bits, RAGGED, dim=9, dtype=dtype, **_single(out)),),
        "decode some": lambda **out: (K.pyramid_decode(bits, RAGGED, dim=9, keep=2, dtype=dtype, **_single(out)),),
        "resample": lambda **out: (K.pyramid_resample(z, RAGGED, **_single(out)),),
        "step": lambda **out: K.pyramid_step(total, bits[:, 0, :1], (1, 1), (2, 3), **out),
        "last step": lambda **out: K.pyramid_step(total, bits[:, 0, 37:], (5, 7), **out),
    }
    return {name: (call, call()) for name, call in calls.items()}


def _single(out):
    return {name: value[0] for name, value in out.items()}


@pytest.mark.parametrize("name", list(forms(torch.float32)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_takes_the_functional_result(isa, name, dtype):
    call, expected = forms(dtype)[name]
    out = tuple(None if t is None else torch.full_like(t, 7) for t in expected)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            result = call(out=out)
        for given, got, wanted in zip(out, result, expected, strict=True):
            assert got is given and (wanted is None or torch.equal(got, wanted))


def test_the_sum_may_replace_what_it_is_made_of(isa):
    z = random_latents(9)
    expected, total = K.pyramid_encode(z, RAGGED), z.clone()
    K.pyramid_encode(total, RAGGED, out=(torch.empty_like(expected.labels), torch.empty_like(expected.inputs), total))
    assert torch.equal(total, expected.total)
    total, bits = expected.total[:, 0].contiguous(), expected.labels[:, 0, :1]
    step = K.pyramid_step(total, bits, (1, 1), (2, 3))
    K.pyramid_step(total, bits, (1, 1), (2, 3), out=(total, step.input.clone()))
    assert torch.equal(total, step.total)


@pytest.mark.parametrize("name", list(forms(torch.float32)))
def test_out_that_cannot_be_written_is_refused(name):
    call, expected = forms(torch.float32)[name]
    good = [None if t is None else t.clone() for t in expected]
    for i, t in enumerate(good):
        if t is None:
            continue
        wrong = [
            t[..., :-1].contiguous(),
            t.to(torch.int16),
            t.new_empty(1).expand(t.shape),
            torch.empty_like(t, device="meta"),
        ]
        for out in wrong:
            for grad in (True, False):
                with torch.set_grad_enabled(grad), pytest.raises((TypeError, ValueError), match="expected "):
                    call(out=[*good[:i], out, *good[i + 1 :]])
    if len(good) == 2:
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="input of out"):
                call(out=(good[0], torch.empty(2, 6, 9) if good[1] is None else None))


def test_out_that_overlaps_an_input_or_another_result_is_refused():
    z = random_latents(9)
    encoded = K.pyramid_encode(z, RAGGED)
    labels, inputs, total = (t.clone() for t in encoded)
    memory = torch.zeros(2 * inputs.numel())
    flat = memory[: z.numel()].view(z.shape)
    shifted = memory[1 : 1 + z.numel()].view(z.shape)
    beside = memory[5 : 5 + inputs.numel()].view(inputs.shape)
    sum2, bits = encoded.total[:, 0].contiguous(), labels[:, 0, :1]
    bytes_of_z = z.view(torch.uint8).flatten()[: labels.numel()].view(labels.shape)
    new_sum, part_of_sum = torch.empty_like(sum2), sum2.flatten()[:108].view(2, 6, 9)
    calls = [
        lambda: K.pyramid_encode(flat, RAGGED, out=(labels, inputs, shifted)),
        lambda: K.pyramid_encode(flat, RAGGED, out=(labels, beside, total)),
        lambda: K.pyramid_encode(z, RAGGED, out=(labels, beside, flat)),
        lambda: K.pyramid_encode(z, RAGGED, out=(bytes_of_z, inputs, total)),
        lambda: K.pyramid_resample(flat, RAGGED, out=beside),
        lambda: K.pyramid_step(sum2, bits, (1, 1), (2, 3), out=(new_sum, part_of_sum)),
    ]
    for call in calls:
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="apart from"):
                call()
    with pytest.raises(ValueError, match="need no gradient with out"):
        K.pyramid_resample(z.requires_grad_(), RAGGED, out=inputs)


@pytest.mark.parametrize("name", list(forms(torch.float32)))
def test_autograd_notices_what_was_written(name):
    call, expected = forms(torch.float32)[name]
    out = [None if t is None else t.clone() for t in expected]
    versions = [t._version for t in out if t is not None]
    with torch.no_grad():
        call(out=out)
    assert all(t._version > before for t, before in zip([t for t in out if t is not None], versions, strict=True))


def test_operators_on_other_devices_are_the_reference():
    f64 = torch.float64
    z, flat = random_latents(9, f64), [side for scale in RAGGED for side in scale]
    flips = (0.0, torch.full((2, 3, 5), 0.3, dtype=torch.float64), 3, 1, False)
    total, inputs, labels = ops.pyramid_encode(z, flat, *flips)
    torch.testing.assert_close(encoder._reference_encode(z, flat, *flips), (total, inputs, labels))
    torch.testing.assert_close(
        decoder._reference_decode(labels, flat, 9, f64), ops.pyramid_decode(labels, flat, 9, f64)
    )
    kept = decoder._reference_decode(labels, flat, 9, None, 2)
    torch.testing.assert_close(kept, ops.pyramid_decode(labels, flat, 9, None, 2))
    out, results = [torch.empty_like(t) for t in (labels, inputs, total)], (labels, inputs, total)
    encoder._reference_encode_out(z, flat, *out, *flips)
    torch.testing.assert_close(out, list(results))
    encoder._reference_resample_out(z, flat, out[1])
    torch.testing.assert_close(out[1], ops.pyramid_resample(z, flat))
    step = ops.pyramid_step(total[:, 0], labels[:, 0, :1], [1, 1, 2, 3])
    written = [torch.empty_like(t) for t in step]
    decoder._reference_step_out(total[:, 0], labels[:, 0, :1], [1, 1, 2, 3], *written)
    torch.testing.assert_close(written, list(step))


def op_samples():
    z, flat = random_latents(9), [side for scale in RAGGED for side in scale]
    total, inputs, labels = ops.pyramid_encode(z, flat)
    return [
        (ops.pyramid_encode, (z.clone().requires_grad_(), flat, 0.0, torch.rand(2, 3, 5).double(), 3, 1, False)),
        (ops.pyramid_encode_backward, (total, flat)),
        (ops.pyramid_decode, (labels, flat, 9, torch.float16)),
        (ops.pyramid_decode, (labels, flat, 9, None, None, torch.ones(2, 3, dtype=torch.int64))),
        (ops.pyramid_resample, (z.clone().requires_grad_(), flat)),
        (ops.pyramid_resample_backward, (inputs, flat, 5, 7)),
        (ops.pyramid_step, (z[:, 0], labels[:, 0, :1], [1, 1, 2, 3])),
        (ops.pyramid_step, (z[:, 0], labels[:, 0, :1], [1, 1])),
        (ops.pyramid_encode, (z.clone().requires_grad_(), flat)),
        (ops.pyramid_decode, (labels, flat, 9)),
        (ops.pyramid_encode_out, (z, flat, labels.clone(), inputs.clone(), total.clone(), 0.5, None, 3)),
        (ops.pyramid_decode_out, (labels, flat, total.clone(), 2)),
        (ops.pyramid_resample_out, (z, flat, inputs.clone())),
        (ops.pyramid_step_out, (total[:, 0], labels[:, 0, :1], [1, 1], torch.empty(2, 5, 7, 9))),
        (
            ops.pyramid_step_out,
            (total[:, 0], labels[:, 0, :1], [1, 1, 2, 3], torch.empty(2, 5, 7, 9), inputs[:, 0, 1:7].clone()),
        ),
    ]


@pytest.mark.parametrize("op, arguments", op_samples(), ids=lambda value: getattr(value, "__name__", ""))
def test_opcheck(op, arguments):
    torch.library.opcheck(op.default, arguments)


def test_compiles_without_a_graph_break():
    def step(z, p, seed):
        encoded = K.pyramid_encode(z, RAGGED, flip_p=p, seed=seed)
        decoded = K.pyramid_decode(encoded.labels, RAGGED, dim=9, keep=3)
        resampled = K.pyramid_resample(z, RAGGED).mean()
        following = K.pyramid_step(decoded[:, 0], encoded.labels[:, 0, :1], (1, 1), (2, 3)).input
        return encoded.total.square().mean() + resampled, encoded.inputs, following

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, seed in ((2, 1), (3, 2**40)):
        z, p = random_latents(9, batch=batch), torch.rand(5)
        eager_in, compiled_in = z.clone().requires_grad_(), z.clone().requires_grad_()
        expected, out = step(eager_in, p, seed), compiled(compiled_in, p, seed)
        for a, b in zip(expected, out, strict=True):
            assert torch.allclose(a, b)
        expected[0].backward()
        out[0].backward()
        assert torch.allclose(eager_in.grad, compiled_in.grad)


Z, BITS = torch.zeros(2, 3, 5, 7, 9), torch.zeros(2, 3, 58, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: K.pyramid_encode(Z[0], RAGGED),
            ValueError,
            r"expected z of shape \(B, T, H, W, d >= 1\), got \(3, 5, 7, 9\)",
        ),
        (
            lambda: K.pyramid_encode(torch.rand(1, 1, 2, 2, 0), [(1, 1), (2, 2)]),
            ValueError,
            r"expected z of shape \(B, T, H, W, d >= 1\), got \(1, 1, 2, 2, 0\)",
        ),
        (lambda: K.pyramid_encode(Z.int(), RAGGED), TypeError, "pyramid_encode: expected z of float32"),
        (lambda: K.pyramid_encode(Z, RAGGED[:-1]), ValueError, r"expected the last scale to be \(5, 7\), got \(5, 4\)"),
        (lambda: K.pyramid_encode(Z, [(6, 7)]), ValueError, r"expected scales within \(5, 7\)"),
        (lambda: K.pyramid_encode(Z, []), ValueError, r"expected scales as pairs \(h, w\)"),
        (lambda: K.pyramid_encode(Z, RAGGED, flip_p=0.1), ValueError, "expected a seed with flip_p"),
        (lambda: K.pyramid_encode(Z, RAGGED, flip_p=1.5, seed=0), ValueError, r"expected p within \[0, 1\], got 1.5"),
        (
            lambda: K.pyramid_encode(Z, RAGGED, flip_p=torch.tensor([0.5, -1, 0, 0, 0]), seed=0),
            ValueError,
            r"expected p within \[0, 1\], got -1",
        ),
        (lambda: K.pyramid_encode(Z, [(1.7, 1), (5, 7)]), ValueError, r"pairs \(h, w\) of positive integers, got"),
        (lambda: K.pyramid_encode(Z, [(1, 2, 3), (5, 7)]), ValueError, r"pairs \(h, w\) of positive integers, got"),
        (lambda: K.pyramid_encode(Z, [1, 2, 5, 7]), ValueError, r"pairs \(h, w\) of positive integers, got"),
        (lambda: K.pyramid_resample(Z, [(0, 1)]), ValueError, r"pairs \(h, w\) of positive integers, got"),
        (lambda: K.pyramid_step(Z[:, 0], BITS[:, 0, :1], (1.0, 1)), ValueError, r"of positive integers, got"),
        (
            lambda: K.pyramid_decode(BITS, [(1, 58)], dtype=torch.int32),
            TypeError,
            "expected dtype float32, float64, bfloat16 or float16, got torch.int32",
        ),
        (lambda: K.pyramid_decode(BITS.float(), [(1, 58)]), TypeError, "expected bits of torch.uint8"),
        (lambda: K.pyramid_decode(BITS[0], [(1, 58)]), ValueError, r"expected bits of shape \(B, T, 58, bytes\)"),
        (lambda: K.pyramid_decode(BITS, [(1, 58)], dim=0), ValueError, "expected"),
        (lambda: K.pyramid_decode(BITS, [(1, 58)], keep=2), ValueError, r"expected keep within \[0, 1\], got 2"),
        (
            lambda: K.pyramid_decode(BITS, [(1, 58)], keep=torch.tensor([0, 2])),
            ValueError,
            r"expected keep within \[0, 1\], got 2",
        ),
        (
            lambda: K.pyramid_decode(BITS, [(1, 58)], keep=torch.tensor([-1, 0])),
            ValueError,
            r"expected keep within \[0, 1\], got -1",
        ),
        (
            lambda: K.pyramid_decode(BITS, [(1, 58)], keep=torch.tensor([0.5, 1])),
            ValueError,
            r"expected keep as integers",
        ),
        (
            lambda: K.pyramid_decode(BITS, [(1, 58)], keep=torch.tensor([True, False])),
            ValueError,
            r"expected keep as integers \(B,\) or \(B, T\), got \(2,\) torch.bool",
        ),
        (
            lambda: K.pyramid_encode(Z, RAGGED, flip_p=torch.rand(4), seed=0),
            ValueError,
            r"expected flip_p broadcastable to \(2, 3, 5\), got \(4,\)",
        ),
        (lambda: K.pyramid_decode(BITS, RAGGED, dim=9), ValueError, r"expected bits of shape \(B, T, 72, bytes\)"),
        (lambda: K.pyramid_decode(BITS, [(1, 58)], dim=3), ValueError, "pyramid_decode: expected bits of shape"),
        (
            lambda: K.pyramid_decode(BITS, [(1, 58)], keep=torch.ones(3).long()),
            ValueError,
            "expected keep broadcastable",
        ),
        (lambda: K.pyramid_step(Z[:, 0], BITS[:, 0, :2], (1, 1)), ValueError, r"expected bits of shape \(2, 1, 2\)"),
        (lambda: K.pyramid_resample(Z, [(5, 8)]), ValueError, r"pyramid_resample: expected scales within \(5, 7\)"),
    ],
)
def test_errors_name_what_was_expected(call, error, message):
    for grad in (True, False):  # without gradients the kernel checks first
        with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
            call()
