"""packed_linear against float64: every row count of a register block, odd sizes, weights of both dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import videoar_kernels as vk
from tests.closeness import assert_close
from videoar_kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WEIGHTS = [torch.bfloat16, torch.float32]
# (K, N): one block of inputs, several, odd; panels whole and partial, alone and in groups.
SIZES = [(48, 16), (1, 1), (33, 70), (700, 33), (1537, 150), (0, 5), (8, 0)]


def layer(inputs: int, outputs: int, weight_dtype: torch.dtype):
    weight = torch.randn(outputs, inputs).to(weight_dtype)
    return weight, vk.pack_linear_weight(weight)


@pytest.mark.parametrize("weight_dtype", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_the_product_is_exact_up_to_one_rounding(isa, inputs, outputs, dtype, weight_dtype):
    weight, packed = layer(inputs, outputs, weight_dtype)
    bias = torch.randn(outputs)
    for rows in (0, 1, 2, 3, 4, 5, 6, 7, 13, 200):
        x = torch.randn(rows, inputs).to(dtype)
        exact = linear(x.double(), weight.double(), bias.double())
        low = linear(x.float(), weight.float(), bias).to(dtype)
        for given in (None, bias):
            e, l = (exact, low) if given is not None else (exact - bias, (low.double() - bias.double()).to(dtype))
            assert_close(vk.packed_linear(x, packed, outputs, given), e, l)
            assert_close(reference.linear.packed_linear(x, packed, given, outputs), e, l)


@pytest.mark.parametrize("weight_dtype", WEIGHTS)
def test_a_row_has_the_same_bits_in_any_batch_and_for_any_threads(isa, weight_dtype):
    _, packed = layer(1100, 200, weight_dtype)
    x, threads, results = torch.randn(220, 1100).bfloat16(), torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(vk.packed_linear(x, packed, 200))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])
    for begin, end in ((0, 1), (3, 5), (10, 13), (50, 66), (191, 220)):
        assert torch.equal(vk.packed_linear(x[begin:end], packed, 200), results[0][begin:end])


def test_the_layout_is_the_reference_s_on_every_instruction_set(isa):
    for weight_dtype in WEIGHTS:
        for inputs, outputs in SIZES:
            weight, packed = layer(inputs, outputs, weight_dtype)
            assert torch.equal(packed, reference.linear.pack_linear_weight(weight))
            assert torch.equal(vk.unpack_linear_weight(packed, outputs, inputs), weight)
            assert torch.equal(vk.pack_linear_weight(weight.T.contiguous().T), packed)


def test_what_fills_up_never_reaches_the_result(isa):
    """NaN beside x in memory, and infinite inputs, stay where they are."""
    _, packed = layer(33, 20, torch.bfloat16)
    wide = torch.full((4, 64), torch.nan)
    wide[:, :33] = torch.randn(4, 33)
    assert torch.equal(vk.packed_linear(wide[:, :33], packed, 20), vk.packed_linear(wide[:, :33].clone(), packed, 20))
    x = torch.randn(7, 33)
    x[3, 32] = torch.inf
    out = vk.packed_linear(x, packed, 20)
    assert torch.isfinite(out[[0, 1, 2, 4, 5, 6]]).all() and not torch.isfinite(out[3]).any()


def test_views_and_any_leading_shape():
    weight, packed = layer(24, 20, torch.float32)
    base = torch.randn(2, 10, 3, 24)
    for x in (base, base[:, 2:9, 1], base[0, 0, 0], torch.randn(24, 6).T, base[:1].expand(3, -1, -1, -1)):
        out = vk.packed_linear(x, packed, 20)
        assert out.shape == (*x.shape[:-1], 20)
        assert torch.equal(out, vk.packed_linear(x.contiguous(), packed, 20))
        assert_close(out, linear(x.double(), weight.double()), linear(x, weight))


@torch.no_grad()
def test_out_is_written_and_nothing_beside_it():
    _, packed = layer(40, 20, torch.bfloat16)
    x, bias = torch.randn(2, 5, 40), torch.randn(20)
    expected = vk.packed_linear(x, packed, 20, bias)
    out = torch.empty(2, 5, 20)
    assert vk.packed_linear(x, packed, 20, bias, out=out) is out and torch.equal(out, expected)
    wide = torch.zeros(2, 5, 30)
    vk.packed_linear(x, packed, 20, bias, out=wide[..., 4:24])
    assert torch.equal(wide[..., 4:24], expected)
    assert wide[..., :4].abs().sum() == 0 and wide[..., 24:].abs().sum() == 0


def test_out_that_cannot_be_written_is_refused():
    _, packed = layer(40, 40, torch.bfloat16)
    x = torch.randn(5, 40)
    bias = torch.zeros(220)
    wrong = [
        (torch.empty(5, 41), r"out of shape \(5, 40\)"),
        (torch.empty(5, 40).double(), r"out of torch\.float32, got torch\.float64"),
        (torch.empty(5, 40, device="meta"), "out on cpu, got one on meta"),
        (torch.empty(40, 5).T, "contiguous rows at one distance"),
        (torch.empty(1, 40).expand(5, 40), "contiguous rows at one distance"),
        (torch.empty(999).as_strided((5, 40), (20, 1)), "contiguous rows at one distance"),
        (torch.empty(2, 3, 5, 40)[:, :2].transpose(1, 2), "contiguous rows at one distance"),
        (x, "apart from x"),
        (packed.view(-1).view(torch.float32)[4:204].view(5, 40), "apart from packed"),
        (bias[20:220].view(5, 40), "apart from bias"),
    ]
    for out, message in wrong:
        rows = x if out.ndim == 2 else torch.randn(*out.shape[:-1], 40)
        error = ValueError if out.dtype == torch.float32 else TypeError
        with torch.no_grad(), pytest.raises(error, match=f"packed_linear: expected .*{message}"):
            vk.packed_linear(rows, packed, 40, bias[:40], out=out)
    for given, out in (
        (x.clone().requires_grad_(), torch.empty(5, 40)),
        (x, torch.empty(5, 40, requires_grad=True)),
        (x, torch.empty(5, 40, requires_grad=True).exp()),
    ):
        with pytest.raises(ValueError, match="no gradient"):
            vk.packed_linear(given, packed, 40, out=out)


@pytest.mark.parametrize(("shape", "outputs"), [((2, 5), 20), ((), 20), ((0,), 20), ((3, 0), 20), ((2, 5), 0), ((), 0)])
@pytest.mark.parametrize("weight_dtype", WEIGHTS)
def test_gradients_of_input_and_bias(weight_dtype, shape, outputs):
    weight, packed = layer(33, outputs, weight_dtype)
    x, bias, grad_out = torch.randn(*shape, 33), torch.randn(outputs), torch.randn(*shape, outputs)

    def gradients(function, *inputs):
        inputs = [t.clone().requires_grad_() for t in inputs]
        return torch.autograd.grad(function(*inputs), inputs, grad_out.to(inputs[0].dtype))

    results = gradients(lambda x, b: vk.packed_linear(x, packed, outputs, b), x, bias)
    exact = gradients(lambda x, b: linear(x, weight.double(), b), x.double(), bias.double())
    low = gradients(lambda x, b: linear(x, weight.float(), b), x, bias)
    for result, e, l in zip(results, exact, low, strict=True):
        assert_close(result, e, l)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weight_dtype", WEIGHTS)
def test_packed_linear_stands_in_for_nn_linear(weight_dtype, bias, tmp_path):
    linear_layer = nn.Linear(48, 36, bias=bias)
    packed = vk.PackedLinear.from_linear(linear_layer, weight_dtype)
    assert (packed.in_features, packed.out_features) == (48, 36) and packed.packed.dtype == weight_dtype
    x = torch.randn(2, 3, 48)
    rounded = linear_layer.weight.to(weight_dtype).double()
    exact = linear(x.double(), rounded, linear_layer.bias.double() if bias else None)
    with torch.no_grad():
        assert_close(packed(x), exact, linear(x, rounded.float(), linear_layer.bias))
        torch.save(packed.state_dict(), tmp_path / "packed.pt")
        other = vk.PackedLinear(48, 36, bias, dtype=weight_dtype)
        other.load_state_dict(torch.load(tmp_path / "packed.pt"))
        assert torch.equal(other(x), packed(x))
    assert "dtype=" in repr(packed) and not list(packed.parameters())


def test_a_packed_weight_of_another_dtype_is_told():
    """module.bfloat16() converts the numbers of a float32 packing, not its layout."""
    packed = vk.PackedLinear(48, 36, dtype=torch.float32).bfloat16()
    with torch.no_grad(), pytest.raises(ValueError, match=r"expected packed \(3, 24, 16, 2\)"):
        packed(torch.randn(2, 48))


@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_pass_opcheck(dtype):
    ops = torch.ops.videoar_kernels
    for weight_dtype in WEIGHTS:
        weight, packed = layer(33, 20, weight_dtype)
        x, bias = torch.randn(3, 33).to(dtype), torch.randn(20)
        torch.library.opcheck(ops.pack_linear_weight, (weight,))
        torch.library.opcheck(ops.packed_linear, (x, packed, bias, 20))
        torch.library.opcheck(ops.packed_linear, (x.clone().requires_grad_(), packed, None, 20))
        torch.library.opcheck(ops.packed_linear_out, (x, packed, bias, 20, torch.empty(3, 20, dtype=dtype)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    module = vk.PackedLinear.from_linear(nn.Linear(24, 20), torch.bfloat16)
    compiled = torch.compile(lambda x: module(x * 2) + 1, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with torch.no_grad():
        for rows in (2, 5):
            x = torch.randn(rows, 24)
            torch.testing.assert_close(compiled(x), module(x * 2) + 1)


@pytest.mark.parametrize("grad", [False, True])
def test_errors_name_what_was_expected(grad):
    weight, packed = layer(24, 20, torch.bfloat16)
    x = torch.randn(2, 24)
    cases = [
        (TypeError, "expected x of one of", lambda: vk.packed_linear(x.double(), packed, 20)),
        (TypeError, "expected packed of", lambda: vk.packed_linear(x, packed.half(), 20)),
        (TypeError, "expected bias of float32", lambda: vk.packed_linear(x, packed, 20, torch.zeros(20).long())),
        (
            TypeError,
            "expected bias of float32, .*, got torch.float8_e4m3fn",
            lambda: vk.packed_linear(x, packed, 20, torch.zeros(20).to(torch.float8_e4m3fn)),
        ),
        (ValueError, r"expected x \(\.\.\., in_features\)", lambda: vk.packed_linear(x[0, 0], packed, 20)),
        (ValueError, r"expected packed \(2, 11, 16, 2\)", lambda: vk.packed_linear(x[:, :22], packed, 20)),
        (ValueError, r"expected packed \(3, 12, 16, 2\)", lambda: vk.packed_linear(x, packed, 40)),
        (
            ValueError,
            "contiguous",
            lambda: vk.packed_linear(x, packed.transpose(0, 1).contiguous().transpose(0, 1), 20),
        ),
        (ValueError, "at least 0, got -1 outputs and 24 inputs", lambda: vk.packed_linear(x, packed, -1)),
        (ValueError, r"expected bias \(20,\)", lambda: vk.packed_linear(x, packed, 20, torch.zeros(21))),
        (ValueError, "pack_linear_weight: expected weight", lambda: vk.pack_linear_weight(weight[0])),
        (TypeError, "pack_linear_weight: expected weight of", lambda: vk.pack_linear_weight(weight.double())),
        (ValueError, r"expected packed \(2, 13, 16, 2\) for 26", lambda: vk.unpack_linear_weight(packed, 20, 26)),
        (ValueError, r"expected packed \(3, 12, 16, 2\) for 24", lambda: vk.unpack_linear_weight(packed, 33, 24)),
        (ValueError, r"expected packed \(2, 12, 16, 2\)", lambda: vk.unpack_linear_weight(packed[0], 20, 24)),
        (ValueError, "unpack_linear_weight: expected sizes", lambda: vk.unpack_linear_weight(packed, -1, 24)),
        (TypeError, "unpack_linear_weight: expected packed", lambda: vk.unpack_linear_weight(packed.half(), 20, 24)),
        (ValueError, "PackedLinear: expected sizes of at least 0, got 3 outputs", lambda: vk.PackedLinear(-1, 3)),
        (ValueError, "PackedLinear: expected sizes of at least 0, got -3 outputs", lambda: vk.PackedLinear(1, -3)),
        (TypeError, "PackedLinear: expected dtype", lambda: vk.PackedLinear(2, 2, dtype=torch.float16)),
    ]
    with torch.set_grad_enabled(grad):
        for error, message, call in cases:
            with pytest.raises(error, match=message):
                call()
