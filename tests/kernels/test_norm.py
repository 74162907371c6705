"""adaln_norm and gated_residual against independent definitions in float64; with swiglu where all three agree."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import layer_norm, rms_norm

import videoar_kernels as vk
from tests.closeness import assert_close
from tests.gradients import double, outputs_and_gradients, random
from videoar_kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# (B, L, C), the shapes of scale and shift: per token, per frame, broadcast, of one vector, nested, not nested.
SHAPES = [
    ((2, 12, 37), (2, 12, 37), (2, 3, 37)),
    ((2, 260, 24), (2, 2, 24), (2, 130, 24)),
    ((1, 200, 16), (16,), (1, 1, 16)),
    ((3, 30, 7), (1, 6, 7), None),
    ((2, 24, 64), None, (64,)),
    ((2, 24, 33), (2, 4, 33), (2, 6, 33)),
    ((2, 9, 130), None, None),
    ((1, 1, 1), (1, 1, 1), (1,)),
]


def spread(modulation, x):
    """The modulation of every token, by an index per token."""
    if modulation.ndim == 1:
        return modulation.expand(x.shape)
    frame = torch.arange(x.shape[1]) * modulation.shape[1] // max(x.shape[1], 1)
    return modulation[:, frame].expand(x.shape)


def normed(x, scale, shift, weight, eps=1e-6, kind="rms"):
    y = (layer_norm if kind == "layer" else rms_norm)(x, x.shape[-1:], eps=eps)
    y = y if weight is None else y * weight.to(x.dtype)
    y = y if scale is None else y * (1 + spread(scale, x).to(x.dtype))
    return y if shift is None else y + spread(shift, x).to(x.dtype)


def with_rounding(low, exact):
    """Eager's result, moved away from the exact one by a rounding: it may hit a sum of few terms by luck."""
    slack = torch.finfo(low.dtype).eps * (1 + low.detach().abs())
    return torch.where(low >= exact, low + slack, low - slack)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "scale", "shift"), SHAPES)
def test_adaln_norm_and_its_gradients(isa, shape, scale, shift, dtype, kind):
    if kind == "layer" and shape[-1] == 1:
        pytest.skip("the layer norm of one element is its shift")
    x = 2 * random(shape, dtype) + 1
    inputs = [x, random(scale, dtype), random(shift, dtype), torch.randn(shape[-1])]
    grad_out = random(shape, dtype)

    def by(function):
        return lambda x, scale, shift, weight: function(x, scale, shift, weight=weight, eps=1e-4, kind=kind)

    def definition(*inputs):
        return normed(*inputs, eps=1e-4, kind=kind)

    exact = outputs_and_gradients(definition, double(inputs), grad_out)
    low = outputs_and_gradients(definition, inputs, grad_out)
    for function in (vk.adaln_norm, reference.norm.adaln_norm):
        results = outputs_and_gradients(by(function), inputs, grad_out)
        for result, e, l in zip(results, exact, low, strict=True):
            assert_close(result, e, with_rounding(l, e))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "gate"), [(s, m) for s, m, _ in SHAPES if m is not None])
def test_gated_residual_and_its_gradients(isa, shape, gate, dtype):
    inputs = [random(shape, dtype), random(shape, dtype), random(gate, dtype)]
    grad_out = random(shape, dtype)

    def definition(x, y, gate):
        return x + spread(gate, x) * y

    exact = outputs_and_gradients(definition, double(inputs), grad_out)
    low = outputs_and_gradients(definition, inputs, grad_out)
    for function in (vk.gated_residual, reference.norm.gated_residual):
        for result, e, l in zip(outputs_and_gradients(function, inputs, grad_out), exact, low, strict=True):
            assert_close(result, e, with_rounding(l, e))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_takes_float32_modulation_and_rounds_once(dtype):
    x, scale, shift = torch.randn(2, 12, 64).to(dtype), torch.randn(2, 3, 64), torch.randn(64)
    exact = normed(x.double(), scale.double(), shift.double(), None)
    assert_close(vk.adaln_norm(x, scale, shift), exact, exact.to(dtype), factor=1.0)
    mixed = vk.adaln_norm(x, scale.to(dtype), shift)
    assert_close(mixed, normed(x.double(), scale.to(dtype).double(), shift.double(), None), exact.to(dtype))
    exact = x.double() + spread(scale, x).double() * x.double()
    assert_close(vk.gated_residual(x, x, scale), exact, exact.to(dtype), factor=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 257, 1536])
def test_layer_norm_of_constant_rows_is_its_shift(isa, width, dtype):
    values = torch.tensor([0.0, 0.1, -1000.1, 1e5 / 3]).to(dtype)
    x, shift = values[:, None].expand(-1, width)[None], torch.randn(width).to(dtype)
    assert torch.equal(vk.adaln_norm(x, kind="layer"), torch.zeros_like(x))
    assert torch.equal(vk.adaln_norm(x, None, shift, kind="layer"), shift.expand_as(x))


# A spread that is small beside the offset, and rows whose first elements are far from the others.
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("offset", [10, 1000, 1e5])
def test_layer_norm_of_data_far_from_zero(isa, offset, outliers):
    x, grad_out = torch.randn(2, 5, 257) + offset, torch.randn(2, 5, 257)
    if outliers:
        x[:, :, :40] *= 30
    exact, low = (
        outputs_and_gradients(lambda x: normed(x, None, None, None, kind="layer"), [t], grad_out)
        for t in (x.double(), x)
    )
    results = outputs_and_gradients(lambda x: vk.adaln_norm(x, kind="layer"), [x], grad_out)
    for result, e, l in zip(results, exact, low, strict=True):
        assert_close(result, e, l)


def test_gradcheck():
    x, weight = torch.randn(2, 6, 5).double(), torch.randn(5).double()
    for kind in ("rms", "layer"):
        for scale_shape, shift_shape in (((2, 3, 5), (2, 1, 5)), ((5,), (2, 6, 5)), ((1, 2, 5), (5,))):
            tensors = [x, torch.randn(scale_shape).double(), torch.randn(shift_shape).double(), weight]
            inputs = [t.clone().requires_grad_() for t in tensors]
            torch.autograd.gradcheck(lambda x, s, t, w, k=kind: vk.adaln_norm(x, s, t, weight=w, kind=k), inputs)
    inputs = [torch.randn(s).double().requires_grad_() for s in ((2, 6, 5), (2, 6, 5), (2, 2, 5))]
    torch.autograd.gradcheck(vk.gated_residual, inputs)
    torch.autograd.gradcheck(vk.swiglu, inputs[:2])


def test_only_what_is_given_gets_a_gradient():
    x = torch.randn(2, 4, 8, requires_grad=True)
    shift = torch.randn(8, requires_grad=True)
    vk.adaln_norm(x, None, shift).sum().backward()
    assert x.grad.shape == x.shape
    torch.testing.assert_close(shift.grad, torch.full((8,), 8.0))


def test_views_and_expanded_inputs_and_gradients():
    base = torch.randn(2, 40, 3, 16)
    x, y = base[:, 5:29, 1], base[:, ::2, 2][:, :12].repeat_interleave(2, 1)[..., :16]  # token stride 48
    columns = torch.randn(2, 16, 24).transpose(1, 2)  # last dimension not contiguous
    repeated = torch.randn(1, 24, 16).expand(2, -1, -1)
    chunks = torch.randn(2, 4, 6 * 16).chunk(6, -1)  # modulation as Wan slices it
    for view in (x, y, columns, repeated):
        dense = view.contiguous()
        expected = vk.adaln_norm(dense, chunks[0].contiguous(), chunks[1].contiguous())
        assert torch.equal(vk.adaln_norm(view, chunks[0], chunks[1]), expected)
        assert torch.equal(vk.gated_residual(view, x, chunks[2]), vk.gated_residual(dense, x, chunks[2]))
        assert torch.equal(vk.swiglu(view, x), vk.swiglu(dense, x.contiguous()))
        leaf = dense.clone().requires_grad_()
        for function in (vk.adaln_norm, lambda t: vk.gated_residual(t, t, chunks[0]), lambda t: vk.swiglu(t, t)):
            out = function(leaf)
            (summed,) = torch.autograd.grad(out.sum(), leaf, retain_graph=True)  # gradient of stride 0
            (full,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
            assert torch.equal(summed, full)


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)])
def test_empty_sizes(shape):
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(8, requires_grad=True)
    scale = torch.randn(shape[0], 1, 8, requires_grad=True)
    out = vk.gated_residual(vk.adaln_norm(x, scale, scale, weight=weight), x, scale)
    out.sum().backward()
    assert out.shape == shape and x.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros(8)) and torch.equal(scale.grad, torch.zeros_like(scale))


def test_gradients_do_not_depend_on_threads():
    x, weight = torch.randn(2, 900, 32), torch.randn(32)
    for frames in (1, 9, 900):
        scale, results, threads = torch.randn(2, frames, 32), [], torch.get_num_threads()
        try:
            for n in (1, 2, 1):
                torch.set_num_threads(n)
                results.append(
                    outputs_and_gradients(
                        lambda x, s, w: vk.gated_residual(x, vk.adaln_norm(x, s, s, weight=w), s),
                        (x, scale, weight),
                        x,
                    )
                )
        finally:
            torch.set_num_threads(threads)
        for first, *others in zip(*results, strict=True):
            assert all(torch.equal(first, other) for other in others)


def test_operators_pass_opcheck():
    for grad in (False, True):
        x, y = (torch.randn(2, 6, 8, requires_grad=grad) for _ in range(2))
        scale, weight = torch.randn(2, 3, 8, requires_grad=grad), torch.randn(8, requires_grad=grad)
        torch.library.opcheck(torch.ops.videoar_kernels.adaln_norm, (x, scale, None, weight, 1e-6, True))
        torch.library.opcheck(torch.ops.videoar_kernels.adaln_norm, (x, None, scale, None, 1e-6, False))
        torch.library.opcheck(torch.ops.videoar_kernels.gated_residual, (x, y, scale))
        torch.library.opcheck(torch.ops.videoar_kernels.swiglu, (x, y))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    def model(x, scale, weight):
        y = vk.adaln_norm(x * 2, scale, scale[:, :1], weight=weight, kind="layer")
        return vk.gated_residual(x, vk.swiglu(y, x), scale)

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for frames in (2, 3):
        inputs = [torch.randn(2, 4 * frames, 8), torch.randn(2, frames, 8), torch.randn(8)]
        grad_out = torch.randn(2, 4 * frames, 8)
        results = [outputs_and_gradients(f, inputs, grad_out) for f in (compiled, model)]
        torch.testing.assert_close(*results)


def test_errors_name_what_was_expected():
    x = torch.randn(2, 6, 8)
    cases = [
        (ValueError, r"adaln_norm: expected x \(batch, length, width\), got \(6, 8\)", lambda: vk.adaln_norm(x[0])),
        (ValueError, "expected kind", lambda: vk.adaln_norm(x, kind="batch")),
        (TypeError, "adaln_norm: expected one of", lambda: vk.adaln_norm(x.int())),
        (ValueError, r"expected scale \(8,\) or \(2, frames, 8\)", lambda: vk.adaln_norm(x, torch.ones(2, 4, 8))),
        (ValueError, "expected shift", lambda: vk.adaln_norm(x, None, torch.ones(3, 1, 8))),
        (ValueError, r"expected weight \(8,\)", lambda: vk.adaln_norm(x, weight=torch.ones(7))),
        (TypeError, "expected weight of one of", lambda: vk.adaln_norm(x, weight=torch.ones(8, dtype=torch.int32))),
        (ValueError, "expected a finite eps >= 0, got -1e-06", lambda: vk.adaln_norm(x, eps=-1e-6)),
        (ValueError, "expected a finite eps >= 0, got nan", lambda: vk.adaln_norm(x, eps=float("nan"))),
        (ValueError, "expected a finite eps >= 0, got inf", lambda: vk.adaln_norm(x, eps=float("inf"), out=x)),
        (ValueError, "gated_residual: expected y like x", lambda: vk.gated_residual(x, x[:1], x)),
        (ValueError, "gated_residual: expected gate", lambda: vk.gated_residual(x, x, torch.ones(5))),
        (ValueError, "swiglu: expected up like gate", lambda: vk.swiglu(x, x.double())),
        (ValueError, "swiglu: expected gate .* one dimension at least", lambda: vk.swiglu(x[0, 0, 0], x[0, 0, 0])),
    ]
    for error, message, call in cases:
        for grad in (True, False):  # by Python's checks, and by those of C++
            with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
                call()
    with pytest.raises(RuntimeError, match="eps is negative or not finite"):
        torch.ops.videoar_kernels.adaln_norm(x, None, None, None, -1.0, False)
