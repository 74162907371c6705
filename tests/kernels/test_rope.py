"""rope_3d, qk_norm_rope and positions against an independent rotation by complex numbers in float64."""

from __future__ import annotations

import pytest
import torch

import videoar_kernels as vk
from tests.closeness import assert_close
from videoar_kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
HEADS = [(64, None), (10, (2, 4, 4)), (128, (44, 42, 42)), (6, None), (34, (34, 0, 0))]


def rotated(x, positions, dims=None, theta=10000.0, interleaved=True):
    """Independent definition: every pair is a complex number, multiplied by exp(i angle)."""
    x, positions = x.double(), positions.double()
    head_dim = x.shape[-1]
    if dims is None:
        side = 2 * (head_dim // 6)
        dims = (head_dim - 2 * side, side, side)
    axis_of_pair = [axis for axis, dim in enumerate(dims) for _ in range(dim // 2)]
    rate = [theta ** (-2 * j / dim) for dim in dims for j in range(dim // 2)]
    angle = positions[..., axis_of_pair] * torch.tensor(rate, dtype=torch.float64)
    angle = angle if angle.ndim == 2 else angle.unsqueeze(1)
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle))
    return (turned if interleaved else turned.transpose(-1, -2)).flatten(-2)


def normed(x, weight, eps=1e-6, full_width=False):
    x = x.double()
    if not full_width:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight.double(), eps)
    rows = torch.nn.functional.rms_norm(x.transpose(1, 2).flatten(2), weight.shape, weight.double(), eps)
    return rows.unflatten(2, x.shape[1::2]).transpose(1, 2)


def eager(x, positions, **options):
    """The same in eager PyTorch at x's precision."""
    head_dim, dims = x.shape[-1], options.get("dims")
    dims = reference.rope.default_dims(head_dim) if dims is None else dims
    angles = reference.rope.rope_angles(positions, dims, options.get("theta", 10000.0))
    angles = angles if angles.ndim == 2 else angles[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    if options.get("interleaved", True):
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def positions_for(batch, length, shared, dtype=torch.int64):
    shape = (length, 3) if shared else (batch, length, 3)
    return (torch.randint(0, 50, shape)).to(dtype) + (0.25 if dtype.is_floating_point else 0)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "dims"), HEADS)
def test_rope_is_a_rotation_of_pairs(isa, head_dim, dims, dtype, interleaved):
    x = torch.randn(2, 3, 37, head_dim, dtype=dtype)
    for shared in (True, False):
        positions = positions_for(2, 37, shared)
        options = {"dims": dims, "interleaved": interleaved, "theta": 500.0}
        exact, low = rotated(x, positions, **options), eager(x, positions, **options)
        assert_close(vk.rope_3d(x, positions, **options), exact, low)
        assert_close(reference.rope.rope_3d(x, positions, **options), exact, low)


@pytest.mark.parametrize("full_width", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "dims"), HEADS[:3])
def test_qk_norm_rope_norms_then_rotates(isa, head_dim, dims, dtype, full_width):
    q, k = torch.randn(2, 4, 21, head_dim, dtype=dtype), 3 * torch.randn(2, 2, 21, head_dim, dtype=dtype)
    weights = [torch.randn(x.shape[1] * head_dim if full_width else head_dim) for x in (q, k)]
    positions = positions_for(2, 21, True) // 8  # small: the angle's own rounding stays below float64's
    for interleaved in (True, False):
        options = {"dims": dims, "interleaved": interleaved}
        exact = [
            rotated(normed(x, w, 1e-5, full_width), positions, **options) for x, w in zip((q, k), weights, strict=True)
        ]
        for module in (vk, reference.rope):
            out = module.qk_norm_rope(q, k, *weights, positions, eps=1e-5, full_width=full_width, **options)
            for result, x, e in zip(out, (q, k), exact, strict=True):
                assert_close(result, e, e.to(x.dtype))


@pytest.mark.parametrize("full_width", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_match_float64(isa, dtype, full_width):
    def gradients(q, k, q_weight, k_weight, rotate_both):
        inputs = [t.detach().clone().requires_grad_() for t in (q, k, q_weight, k_weight)]
        outs = rotate_both(*inputs)
        return torch.autograd.grad(outs, inputs, [g.to(o.dtype) for g, o in zip(grad_outs, outs, strict=True)])

    q, k = torch.randn(2, 3, 70, 34, dtype=dtype), torch.randn(2, 2, 70, 34, dtype=dtype)
    weights = [torch.randn(x.shape[1] * 34 if full_width else 34) for x in (q, k)]
    grad_outs = [torch.randn_like(q), torch.randn_like(k)]
    positions = positions_for(2, 70, False, torch.float64)

    def ours(*t):
        return vk.qk_norm_rope(*t, positions, full_width=full_width)

    def exactly(q, k, qw, kw):
        return tuple(rotated(normed(x, w, full_width=full_width), positions) for x, w in ((q, qw), (k, kw)))

    def low(q, k, qw, kw):
        def one(x, w):
            mean = x.square().mean((1, 3) if full_width else -1, keepdim=True)
            w = w.to(x.dtype).view(-1, 1, 34)
            return eager(x * torch.rsqrt(mean + 1e-6) * w, positions)

        return one(q, qw), one(k, kw)

    exact = gradients(*(t.double() for t in (q, k, *weights)), exactly)
    for mine, e, low_grad in zip(gradients(q, k, *weights, ours), exact, gradients(q, k, *weights, low), strict=True):
        assert_close(mine, e, low_grad)


def test_gradcheck():
    q, k = torch.randn(2, 2, 5, 10).double(), torch.randn(2, 1, 5, 10).double()
    positions = positions_for(2, 5, True)
    for interleaved in (True, False):
        inputs = [q.clone().requires_grad_()]
        options = {"dims": (2, 4, 4), "interleaved": interleaved}
        torch.autograd.gradcheck(lambda x, o=options: vk.rope_3d(x, positions, **o), inputs)
        for full_width in (False, True):
            weights = [torch.randn(x.shape[1] * 10 if full_width else 10).double() for x in (q, k)]
            inputs = [t.clone().requires_grad_() for t in (q, k, *weights)]
            torch.autograd.gradcheck(
                lambda *t, o=options, f=full_width: vk.qk_norm_rope(*t, positions, full_width=f, **o), inputs
            )


def test_second_order_gradient_of_the_rotation():
    x = torch.randn(1, 2, 3, 6).double().requires_grad_()
    positions = positions_for(1, 3, True)
    torch.autograd.gradgradcheck(lambda x: vk.rope_3d(x, positions), [x])


def test_scores_depend_on_position_differences_only():
    q, k = torch.randn(1, 1, 1, 128), torch.randn(1, 1, 1, 128)
    a, b, shift = torch.tensor([[3, 7, 2]]), torch.tensor([[1, 20, 9]]), torch.tensor([[100, 31, 64]])
    for interleaved in (True, False):

        def score(a, b, interleaved=interleaved):
            turned = [vk.rope_3d(x, p, interleaved=interleaved) for x, p in ((q, a), (k, b))]
            return (turned[0] * turned[1]).sum()

        torch.testing.assert_close(score(a, b), score(a + shift, b + shift), atol=2e-4, rtol=0)
        # Control: another difference gives another score.
        assert (score(a, b) - score(a + shift, b)).abs() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_and_expanded_inputs(dtype):
    positions = positions_for(2, 19, True)
    packed = torch.randn(2, 19, 3, 4, 32, dtype=dtype)
    blhd = packed[:, :, 1].transpose(1, 2)  # (B, H, L, D), a slice of a packed projection
    expanded = torch.randn(2, 1, 19, 32, dtype=dtype).expand(-1, 4, -1, -1)
    columns = torch.randn(2, 4, 32, 19, dtype=dtype).transpose(-1, -2)
    weight = torch.randn(32)
    for x in (blhd, expanded, columns, blhd[:, :, ::2]):
        p = positions[: x.shape[2]]
        assert torch.equal(vk.rope_3d(x, p), vk.rope_3d(x.contiguous(), p))
        dense = vk.qk_norm_rope(x.contiguous(), x.contiguous(), weight, weight, p)
        assert torch.equal(vk.qk_norm_rope(x, x, weight, weight, p)[0], dense[0])
        for options in ({"interleaved": False}, {"full_width": True}):
            wide = torch.randn(4 * 32) if "full_width" in options else weight
            dense = vk.qk_norm_rope(x.contiguous(), x.contiguous(), wide, wide, p, **options)
            assert torch.equal(vk.qk_norm_rope(x, x, wide, wide, p, **options)[0], dense[0])
    assert vk.rope_3d(blhd, positions).is_contiguous()


@pytest.mark.parametrize("interleaved", [True, False])
def test_outputs_that_outgrow_the_cache_hold_the_same(interleaved):
    length = 67_003
    positions = positions_for(1, length, True)
    for packed in (torch.randn(1, length, 3, 2, 64).bfloat16(), torch.randn(1, length, 2, 2, 34)):
        x, weight = packed[:, :, 1].transpose(1, 2), torch.randn(packed.shape[-1])
        for out in (torch.empty_like(packed)[:, :, 0].transpose(1, 2), torch.empty_like(x).contiguous()):
            vk.rope_3d(x, positions, interleaved=interleaved, out=out)
            for part in (slice(0, 90), slice(length - 90, length)):
                assert torch.equal(out[:, :, part], vk.rope_3d(x[:, :, part], positions[part], interleaved=interleaved))
            vk.qk_norm_rope(
                x, x[:, :1], weight, None, positions, interleaved=interleaved, out=(out, torch.empty_like(x[:, :1]))
            )
            few = vk.qk_norm_rope(x[:, :, -90:], x[:, :1, -90:], weight, None, positions[-90:], interleaved=interleaved)
            assert torch.equal(out[:, :, -90:], few[0])


def test_gradients_of_views_and_expanded_gradients():
    positions, weight = positions_for(2, 19, True), torch.randn(8)
    x = torch.randn(2, 19, 4, 8).double().transpose(1, 2).requires_grad_()
    for function in (vk.rope_3d, lambda x, p: vk.qk_norm_rope(x, x[:, :2], weight, weight, p)[1]):
        (summed,) = torch.autograd.grad(function(x, positions).sum(), x)  # gradient of stride 0
        out = function(x, positions)
        (dense,) = torch.autograd.grad(out, x, torch.ones_like(out))
        torch.testing.assert_close(summed, dense)


@pytest.mark.parametrize("interleaved", [True, False])
def test_in_place_writes_only_its_own_elements(isa, interleaved):
    positions = positions_for(2, 21, False)
    for dtype in DTYPES:
        buffer = torch.randn(2, 40, 3, 16, dtype=dtype)
        before, view = buffer.clone(), buffer[:, 5:26, :, 2:12].transpose(1, 2)
        expected = vk.rope_3d(view, positions, dims=(2, 4, 4), interleaved=interleaved)
        out = vk.rope_3d_(view, positions, dims=(2, 4, 4), interleaved=interleaved)
        assert out is view
        assert torch.equal(view, expected)
        buffer[:, 5:26, :, 2:12] = before[:, 5:26, :, 2:12]
        assert torch.equal(buffer, before)


@pytest.mark.parametrize("full_width", [False, True])
@pytest.mark.parametrize("shape", [(0, 2, 5, 12), (2, 0, 5, 12), (2, 3, 0, 12), (1, 1, 1, 2)])
def test_empty_and_smallest_sizes(shape, full_width):
    x = torch.randn(shape).requires_grad_()
    positions = torch.zeros(shape[2], 3)
    out = vk.rope_3d(x, positions)
    torch.testing.assert_close(out, x)
    q_weight = torch.ones(shape[1] * shape[3] if full_width else shape[3], requires_grad=True)
    k = torch.randn(shape[0], 1, *shape[2:], requires_grad=True)
    a, b = vk.qk_norm_rope(x, k, q_weight, None, positions, full_width=full_width)
    b, a = vk.qk_norm_rope(b, a, None, q_weight, positions, full_width=full_width)
    (out.sum() + a.sum() + b.sum()).backward()
    for t in (x, k, q_weight):
        assert t.grad.shape == t.shape and torch.isfinite(t.grad).all()


def test_weight_gradients_do_not_depend_on_threads():
    x, positions = torch.randn(2, 3, 500, 64), positions_for(2, 500, True)
    weight = torch.randn(64, requires_grad=True)
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 1):
            torch.set_num_threads(n)
            q, k = vk.qk_norm_rope(x, x, weight, weight, positions)
            results.append(torch.autograd.grad((q.square() * k).sum(), weight)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_position_types_agree_and_far_positions_stay_accurate():
    x, positions = torch.randn(1, 2, 11, 64), torch.randint(0, 100000, (11, 3))
    exact = rotated(x, positions)
    for dtype in (torch.int64, torch.int32, torch.float32, torch.float64):
        assert_close(vk.rope_3d(x, positions.to(dtype)), exact)
    assert_close(vk.rope_3d(x, -positions), rotated(x, -positions))
    assert_close(vk.rope_3d(x, 3000 * positions), rotated(x, 3000 * positions))
    many = torch.rand(3000, 3) * 100  # every coordinate is another one
    x = torch.randn(1, 1, 3000, 12)
    assert_close(vk.rope_3d(x, many), rotated(x, many))
