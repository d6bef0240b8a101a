"""The linear layer by either library: outputs and gradients are those of PyTorch's."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from asr.nn import linear as module
from asr.nn.linear import Linear, linear, product

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Takes oneDNN whatever the processor and the sizes; the list says for how many products."""
    monkeypatch.setattr(module, "_HAS_FAST_ONEDNN", True)
    monkeypatch.setattr(module, "_MIN_PRODUCTS", 1)
    calls: list[str] = []
    apply = module._OneDnnLinear.apply
    monkeypatch.setattr(module._OneDnnLinear, "apply", lambda *arguments: calls.append("one") or apply(*arguments))
    return calls


def gradients(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> list[Tensor]:
    """Of a sum with fixed random weights."""
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    wanted = [each for each in (x, weight, bias) if each is not None and each.requires_grad]
    return list(torch.autograd.grad((out * factors).sum(), wanted))


@needs_onednn
@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (2, 3, 1, 12), (1, 12)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_by_onednn_it_equals_pytorchs(onednn: list[str], shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(9, 12, requires_grad=True)
    bias = torch.randn(9, requires_grad=True) if has_bias else None
    ours, theirs = linear(x, weight, bias), F.linear(x, weight, bias)
    assert onednn == ["one"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for own, other in zip(gradients(x, weight, bias, ours), gradients(x, weight, bias, theirs), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_views_that_are_not_contiguous_are_taken(onednn: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 5, 2).permute(2, 1, 0).requires_grad_()
    weight = torch.randn(12, 9).t().requires_grad_()
    ours, theirs = linear(x, weight), F.linear(x, weight)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for own, other in zip(gradients(x, weight, None, ours), gradients(x, weight, None, theirs), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    assert onednn


@needs_onednn
@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(onednn: list[str], wanted: str) -> None:
    arguments = {"x": torch.randn(4, 12), "weight": torch.randn(9, 12), "bias": torch.randn(9)}
    arguments[wanted].requires_grad_()
    linear(**arguments).sum().backward()
    assert [name for name, each in arguments.items() if each.grad is not None] == [wanted]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_pytorch(onednn: list[str], dtype: torch.dtype) -> None:
    x, layer = torch.randn(4, 12, dtype=dtype), Linear(12, 9).to(dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not onednn


def test_so_are_autocast_vectors_nothing_and_small_products(onednn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(12, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(4, 12)).dtype == torch.bfloat16
    layer(torch.randn(12))
    assert layer(torch.randn(0, 12)).shape == (0, 9)
    monkeypatch.setattr(module, "_MIN_PRODUCTS", 4 * 12 * 9 + 1)
    layer(torch.randn(4, 12))
    assert not onednn
    layer(torch.randn(5, 12))
    assert onednn == ["one"]


@needs_onednn
@pytest.mark.parametrize("is_fast", [True, False])
def test_a_product_of_matrices_is_that_of_pytorch(monkeypatch: pytest.MonkeyPatch, is_fast: bool) -> None:
    monkeypatch.setattr(module, "_HAS_FAST_ONEDNN", is_fast)
    a, b = torch.randn(6, 5).t(), torch.randn(7, 6)
    torch.testing.assert_close(product(a, b), a @ b.t(), atol=1e-5, rtol=1e-5)
    assert product(a.double(), b.double()).dtype == torch.float64


@needs_onednn
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler for torch.compile")
def test_it_is_compiled_to_code_in_one_piece_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HAS_FAST_ONEDNN", True)
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = Linear(12, 9)
    inductor = CompileCounterWithBackend("inductor")
    compiled = torch.compile(nn.Sequential(layer, nn.SiLU()), backend=inductor, dynamic=True, fullgraph=True)
    for size in (3, 5, 8):
        x = torch.randn(size, 4, 12, requires_grad=True)
        ours, theirs = compiled(x), F.silu(F.linear(x, layer.weight, layer.bias))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        for own, other in zip(
            gradients(x, layer.weight, layer.bias, ours), gradients(x, layer.weight, layer.bias, theirs), strict=True
        ):
            torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    assert inductor.frame_count == 1
    torch._dynamo.reset()


@needs_onednn
def test_a_gradient_of_a_gradient_is_refused(onednn: list[str]) -> None:
    x, weight = torch.randn(4, 12, requires_grad=True), torch.randn(9, 12, requires_grad=True)
    (slope,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
