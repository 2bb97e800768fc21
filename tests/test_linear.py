"""Our linear layer: torch's values, gradients and errors, whichever library multiplies."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from scratchformers import linear as ours
from scratchformers.linear import Linear, linear

OF_JIT = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture
def products(monkeypatch):
    """What oneDNN was asked to multiply, by shape; it is asked wherever it can be."""
    seen, real = [], ours._product
    monkeypatch.setattr(ours, "ONEDNN", True)
    monkeypatch.setattr(ours, "_product", lambda x, w, b: (seen.append((*x.shape, len(w))), real(x, w, b))[1])
    return seen


def drawn(*shape, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), **kwargs)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, b.abs().max().item()))


SHAPES = [((8, 40, 64), 128), ((4, 2, 512), 512), ((300, 96), 128), ((2, 3, 50, 96), 256), ((1, 512), 4096)]


@pytest.mark.parametrize(("shape", "out"), SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_torchs(products, shape, out, biased):
    x, weight = drawn(*shape).requires_grad_(), drawn(out, shape[-1]).requires_grad_()
    bias = drawn(out).requires_grad_() if biased else None
    parts = [x, weight, *([bias] if biased else [])]
    y, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    close(y, expected)
    upstream = drawn(*expected.shape)
    for got, wanted in zip(torch.autograd.grad(y, parts, upstream), torch.autograd.grad(expected, parts, upstream)):
        assert got.shape == wanted.shape
        assert got.stride() == wanted.stride()
        close(got, wanted)
    rows = x.numel() // shape[-1]
    assert products == [(*shape, out), (*shape[:-1], out, shape[-1]), (out, rows, shape[-1])]


def test_a_gradient_that_is_one_number_for_all(products):
    """As `sum` gives it: a tensor without a stride."""
    x, weight, bias = drawn(64, 200, requires_grad=True), drawn(300, 200, requires_grad=True), drawn(300)
    got = torch.autograd.grad(linear(x, weight, bias).sum(), (x, weight))
    for a, b in zip(got, torch.autograd.grad(F.linear(x, weight, bias).sum(), (x, weight))):
        close(a, b)
    assert len(products) == 3


@pytest.mark.parametrize("learns", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_learns_is_computed(products, learns):
    parts = [part.requires_grad_(yes) for part, yes in zip((drawn(64, 200), drawn(300, 200), drawn(300)), learns)]
    linear(*parts).square().sum().backward()
    assert [part.grad is not None for part in parts] == list(learns)
    assert len(products) == (1 if learns[2] else 2)


def test_only_what_gradients_need_is_kept(products):
    """As torch does: of a frozen weight's layer the input may be changed, and its memory be freed."""
    x, weight, bias = drawn(64, 200, requires_grad=True), drawn(300, 200), drawn(300)
    given = x * 1.0
    y = linear(given, weight, bias)
    given.zero_()
    close(torch.autograd.grad(y.sum(), x)[0], weight.sum(0).expand(64, 200))
    weight.requires_grad_()
    given = drawn(64, 200)
    y = linear(given, weight, bias)
    weight.data.zero_()
    close(torch.autograd.grad(y.sum(), weight)[0], given.sum(0).expand(300, 200))
    assert len(products) == 4


class Counted(torch.Tensor):
    """A tensor that multiplies in its own way, as quantised ones do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return "its own" if func is F.linear else super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.unhooked
def test_a_tensor_of_another_kind_is_its_own(products):
    x, weight = drawn(64, 200), drawn(300, 200)
    assert linear(x, weight.as_subclass(Counted)) == linear(x.as_subclass(Counted), weight) == "its own"
    assert not products


@OF_JIT
def test_derivatives_forward_are_torchs(products):
    """What is frozen has them too."""
    x, weight, bias = drawn(64, 200), drawn(300, 200), drawn(300)
    parts = x, weight, bias
    for i, part in enumerate(parts):
        of = [lambda each, f=f: f(*parts[:i], each, *parts[i + 1 :]) for f in (linear, F.linear)]  # noqa: B023
        for got, wanted in zip(*(jvp(f, (part,), (torch.ones_like(part),)) for f in of)):
            close(got, wanted)
    assert not products


def test_many_at_once(products):
    x, weights = drawn(3, 64, 200), drawn(3, 300, 200)
    close(vmap(linear)(x, weights), torch.einsum("nbi,noi->nbo", x, weights))


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        (drawn(64, 200), drawn(300, 200), drawn(600)[::2]),  # oneDNN would read the first 300
        (drawn(64, 200), drawn(300, 200), drawn(1)),
        (drawn(20, 200), drawn(3000, 200), drawn(20, 1)),
        (drawn(1000), drawn(1200, 1000), None),
        (drawn(2000, 1000), drawn(1000), None),
    ],
)
def test_shapes_that_torch_takes_are_torchs(products, x, weight, bias):
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert not products


@OF_JIT
@pytest.mark.unhooked
def test_traced_it_is_torchs(products):
    layer, x = Linear(200, 300), drawn(64, 200)
    assert "aten::linear" in str(torch.jit.trace(layer, x, check_trace=False).graph)
    assert not products


def test_gradients_have_gradients(products):
    x, weight = drawn(64, 200, requires_grad=True), drawn(300, 200, requires_grad=True)

    def penalty(f):
        (first,) = torch.autograd.grad(f(x, weight).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    close(penalty(linear), penalty(F.linear))


@pytest.mark.parametrize(
    "see", [lambda x: x.mT, lambda x: x.flip(0), lambda x: x[:, ::2], lambda x: x.expand(3, -1, -1)]
)
def test_views_are_read_as_they_are(products, see):
    x = see(drawn(200, 200))
    weight = drawn(150, x.shape[-1])
    close(linear(x, weight), F.linear(x, weight))
    close(linear(x, drawn(x.shape[-1], 150).t()), F.linear(x, drawn(x.shape[-1], 150).t()))
    assert len(products) == 2


def test_rows_out_of_longer_ones_are_read_as_they_are(products):
    x, weight = drawn(8, 3, 512)[:, -1:], drawn(512, 512)
    close(linear(x, weight), F.linear(x, weight))
    assert products


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (drawn(64, 200), drawn(300, 500)[:, 100:300]),  # parts of a matrix
        (drawn(64, 200), drawn(200, 500)[:, 100:400].t()),
        (drawn(4, 16), drawn(8, 16)),  # small
        (drawn(0, 2000), drawn(2000, 2000)),
        (drawn(64, 0), drawn(300, 0)),
        (drawn(64, 200).double(), drawn(300, 200).double()),
        (drawn(64, 200).bfloat16(), drawn(300, 200).bfloat16()),
        (drawn(64, 200, device="cpu").to("meta"), drawn(300, 200).to("meta")),
    ],
)
def test_all_else_is_torchs(products, x, weight):
    y = linear(x, weight)
    assert (y.dtype, y.device, y.shape) == (x.dtype, x.device, (len(x), len(weight)))
    assert y.is_meta or torch.equal(y, F.linear(x, weight))
    assert not products


def test_autocast_is_torchs(products):
    x, weight = drawn(64, 200), drawn(300, 200)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert not products


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        (drawn(64, 200), drawn(300, 201), None),
        (drawn(64, 200), drawn(300, 200), drawn(299)),
        (drawn(64, 200).double(), drawn(300, 200), None),
    ],
)
def test_errors_are_errors(products, x, weight, bias):
    with pytest.raises(RuntimeError):
        linear(x, weight, bias)


def test_functional_gradients(products):
    layer, x = Linear(200, 300), drawn(64, 200)
    weights = dict(layer.named_parameters())
    got = grad(lambda w: functional_call(layer, w, (x,)).square().sum())(weights)
    layer(x).square().sum().backward()
    close(got["weight"], layer.weight.grad)
    assert products


@pytest.mark.unhooked
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_compiled_it_is_the_same(products, biased, frozen):
    """What is multiplied, and what is kept and computed for gradients."""
    layer = nn.Sequential(Linear(200, 300, bias=biased), nn.GELU(), Linear(300, 100, bias=biased))
    layer[0].requires_grad_(not frozen)
    inputs = [drawn(64, 200).requires_grad_() for _ in range(2)]
    expected = layer(inputs[0])
    expected.square().sum().backward()
    grads = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad(set_to_none=True)
    seen = [*products]
    products.clear()
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(inputs[1])
    y.square().sum().backward()
    assert sorted(products) == sorted(seen), "as many products, of the same shapes"
    close(y, expected)
    close(inputs[1].grad, inputs[0].grad)
    for parameter, wanted in zip(layer.parameters(), grads):
        assert (parameter.grad is None) == (wanted is None)
        if wanted is not None:
            close(parameter.grad, wanted)


@pytest.mark.unhooked
def test_compiled_what_does_not_suit_is_torchs(products):
    layer = Linear(20, 30)
    close(torch.compile(layer, backend="aot_eager", fullgraph=True)(drawn(4, 20)), layer(drawn(4, 20)))
    wide, x = Linear(200, 300), drawn(64, 200)
    with torch.autocast("cpu", torch.bfloat16):
        torch.compile(wide, backend="aot_eager", fullgraph=True)(x)
    assert not products


@pytest.mark.unhooked
def test_compiled_transforms_are_torchs(products):
    x, weights = drawn(3, 64, 200), drawn(3, 300, 200)
    got = torch.compile(vmap(linear), backend="aot_eager", fullgraph=True)(x, weights)
    close(got, torch.einsum("nbi,noi->nbo", x, weights))
    slope = grad(lambda weight: linear(x[0], weight).square().sum())
    got = torch.compile(slope, backend="aot_eager", fullgraph=True)(weights[0])
    assert not products
    close(got, slope(weights[0]))


@pytest.mark.unhooked
@pytest.mark.parametrize("bias", [None, drawn(300).requires_grad_()])
def test_the_operator_is_as_torch_asks(products, bias):
    x, weight = drawn(2, 64, 200).requires_grad_(), drawn(300, 200).requires_grad_()
    torch.library.opcheck(ours.compiled, (x, weight, bias))
    assert products


@pytest.mark.unhooked
@pytest.mark.parametrize("strict", [True, False])
def test_exported_it_is_torchs(products, strict):
    layer, x = Linear(200, 300), drawn(64, 200)
    code = torch.export.export(layer, (x,), strict=strict).graph_module.code
    assert "aten.linear" in code
    assert "scratchformers" not in code
    assert not products


@pytest.mark.parametrize(
    ("wish", "processor", "capability", "chosen"),
    [
        (None, "vendor_id : AuthenticAMD", "AVX512", True),
        (None, "vendor_id : AuthenticAMD", "AVX2", False),
        (None, "vendor_id : GenuineIntel", "AVX512", False),
        ("1", "vendor_id : GenuineIntel", "AVX2", True),
        ("0", "vendor_id : AuthenticAMD", "AVX512", False),
    ],
)
def test_who_gets_it(monkeypatch, tmp_path, wish, processor, capability, chosen):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{processor}\n")
    monkeypatch.setattr(ours, "DESCRIBED", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.delenv(ours.CHOICE, raising=False)
    if wish:
        monkeypatch.setenv(ours.CHOICE, wish)
    assert ours._chosen() is chosen
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not ours._chosen()


def test_where_linux_does_not_describe_it(monkeypatch, tmp_path):
    monkeypatch.setattr(ours, "DESCRIBED", tmp_path / "missing")
    for name, amd in [("AMD64 Family 26 Model 2 Stepping 1, AuthenticAMD", True), ("arm", False)]:
        monkeypatch.setattr(ours.platform, "processor", lambda name=name: name)
        assert ours._amd() is amd


def test_it_is_torchs_layer():
    """The same parameters by the same draws, so that states and seeds go from one to the other."""
    torch.manual_seed(0)
    mine = Linear(20, 30)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), nn.Linear(20, 30).parameters()))
    assert isinstance(mine, nn.Linear)
