"""out= and in-place forms of rope and norms: the functional result, written where it was asked and nowhere else."""

from __future__ import annotations

import pytest
import torch

import videoar_kernels as vk

DTYPES = [torch.float32, torch.bfloat16]


def forms(dtype):
    """Name -> (function of x and out=, its x)."""
    rows, heads = torch.randn(2, 24, 37).to(dtype), torch.randn(2, 3, 24, 12).to(dtype)
    scale, weight, positions = torch.randn(2, 3, 37), torch.randn(37), torch.randint(0, 20, (24, 3))
    return {
        "swiglu": (lambda x, out=None: vk.swiglu(x, rows, out=out), rows.clone()),
        "gated_residual": (lambda x, out=None: vk.gated_residual(x, rows, scale, out=out), rows.clone()),
        "adaln_norm": (lambda x, out=None: vk.adaln_norm(x, scale, scale[:, :1], weight=weight, out=out), rows.clone()),
        "rope_3d": (lambda x, out=None: vk.rope_3d(x, positions, out=out), heads.clone()),
        "qk_norm_rope": (
            lambda x, out=None: vk.qk_norm_rope(
                x, heads, None, None, positions, out=None if out is None else (out, torch.empty_like(heads))
            )[0],
            heads.clone(),
        ),
    }


@pytest.mark.parametrize("name", list(forms(torch.float32)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_takes_the_functional_result(isa, name, dtype):
    function, x = forms(dtype)[name]
    expected = function(x)
    buffer = torch.full((*x.shape[:-2], 2 * x.shape[-2], x.shape[-1] + 3), 7.0, dtype=dtype)
    before = buffer.clone()
    out = buffer[..., ::2, 1:-2]  # strided rows, misaligned
    with torch.no_grad():
        assert function(x, out=out) is out
        assert torch.equal(out, expected)
        buffer[..., ::2, 1:-2] = before[..., ::2, 1:-2]
        assert torch.equal(buffer, before)
        assert torch.equal(function(x, out=x), expected)
        assert torch.equal(x, expected)


@pytest.mark.parametrize("name", list(forms(torch.float32)))
def test_out_that_cannot_be_written_is_refused(name):
    function, x = forms(torch.float32)[name]
    flat = torch.zeros(2 * x.numel())
    shifted = flat[1 : 1 + x.numel()].view(x.shape)
    wrong = {
        "expected": (x.new_empty(*x.shape[:-1], 5), x.double(), x[..., :1].expand(x.shape), x.mT.contiguous().mT),
        "apart from": (shifted,),
    }
    for message, outs in wrong.items():
        for out in outs:
            source = flat[: x.numel()].view(x.shape) if message == "apart from" else x
            error = ValueError if out.dtype == x.dtype else TypeError
            for grad in (True, False):
                with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
                    function(source, out=out)
    with pytest.raises(ValueError, match="need no gradient"):
        function(x.clone().requires_grad_(), out=torch.empty_like(x))


@pytest.mark.parametrize("grad", [True, False])
def test_the_memory_of_an_input_in_another_order_is_no_place_for_a_result(grad):
    square = torch.randn(6, 6, 16)
    modulated = torch.randn(6, 6, 16)
    with torch.set_grad_enabled(grad):
        for call in (
            lambda: vk.swiglu(square.transpose(0, 1), modulated, out=square),
            lambda: vk.adaln_norm(square.transpose(0, 1), modulated, out=square),
            lambda: vk.gated_residual(modulated, square, modulated, out=square.transpose(0, 1)),
            lambda: vk.adaln_norm(modulated, square, out=square),
        ):
            before = square.clone()
            with pytest.raises(ValueError, match="expected out apart from"):
                call()
            assert torch.equal(square, before)


def test_views_that_lie_between_one_another_are_apart():
    packed = torch.randn(2, 24, 2, 37)
    x, out = packed.unbind(2)
    expected, kept = vk.adaln_norm(x), x.clone()
    with torch.no_grad():
        vk.adaln_norm(x, out=out)
    assert torch.equal(out, expected) and torch.equal(x, kept)


def test_queries_and_keys_of_a_packed_projection_in_place():
    packed, positions = torch.randn(2, 24, 3, 4, 12), torch.randint(0, 20, (24, 3))
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    expected, values = vk.qk_norm_rope(q, k, None, None, positions), v.clone()
    with torch.no_grad():
        vk.qk_norm_rope(q, k, None, None, positions, out=(q, k))
    assert torch.equal(q, expected[0]) and torch.equal(k, expected[1]) and torch.equal(v, values)
    for out in ((k, q), (q, q)):
        with torch.no_grad(), pytest.raises(ValueError, match="apart from"):
            vk.qk_norm_rope(q, k, None, None, positions, out=out)


@pytest.mark.parametrize("offset", [0, 1, 24])
def test_streamed_outputs_at_any_alignment(isa, offset):
    length = 24000  # 37 MB: more than half of a large cache
    x = torch.randn(1, length, 768).bfloat16()
    positions = torch.randint(0, 20, (length, 3))
    out = torch.zeros(x.numel() + 2 * offset, dtype=x.dtype)
    middle = out[offset : offset + x.numel()]
    heads = x.view(1, 6, length, 128)
    with torch.no_grad():
        vk.adaln_norm(x, out=middle.view(x.shape))
        assert torch.equal(middle.view(x.shape)[:, -300:], vk.adaln_norm(x[:, -300:]))
        vk.rope_3d(heads, positions, out=middle.view(heads.shape))
        assert torch.equal(middle.view(heads.shape)[:, :, -50:], vk.rope_3d(heads[:, :, -50:], positions[-50:]))
        vk.swiglu(x, x, out=middle.view(x.shape))
        assert torch.equal(middle.view(x.shape)[:, :300], vk.swiglu(x[:, :300], x[:, :300]))
    assert not out[:offset].any() and not out[offset + x.numel() :].any()


def test_a_tensor_elsewhere_is_refused_at_inference():
    x = torch.randn(1, 2, 4, 8)
    elsewhere = torch.empty(1, 2, 4, 8, device="meta")
    with torch.no_grad():
        for call in (
            lambda: vk.swiglu(x, elsewhere),
            lambda: vk.range_attention(x, elsewhere, x),
            lambda: vk.range_attention(x, x, x, out=elsewhere),
            lambda: vk.qk_norm_rope(x, elsewhere, None, None, torch.zeros(4, 3)),
        ):
            with pytest.raises((TypeError, ValueError, RuntimeError), match=r"expected .* on "):
                call()


def test_autograd_notices_what_was_written_in_place():
    x, w = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8, requires_grad=True)
    for write in (
        lambda: vk.rope_3d_(x, torch.ones(4, 3)),
        lambda: vk.swiglu(x, x, out=x),
        lambda: vk.range_attention(x.clone(), x.clone(), x.clone(), out=x),
    ):
        product = (w * x).sum()
        with torch.no_grad():
            write()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


def test_attention_notices_an_append_between_forward_and_backward():
    cache = vk.KVCache(1, 1, 2, 8, 16)
    block = torch.randn(1, 2, 4, 16)
    for layer, ks in ((0, block), ([0], [block])):
        cache.append(layer, ks, ks)
        view = cache.view(0)
        q = torch.randn(1, 2, 4, 16, requires_grad=True)
        out = vk.range_attention(q, view.k, view.v, view.mask(4)).sum()
        cache.append(layer, ks, ks)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()
