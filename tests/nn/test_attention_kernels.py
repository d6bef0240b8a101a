"""Attention in training on a GPU: compiled there, and by Triton's interpreter on any machine."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for CUDA")

# B sequences, H heads, T queries, S keys, E' width of queries and keys, E width of the values
SHAPES = [(2, 2, 70, 45, 32, 24), (1, 2, 33, 97, 16, 16), (2, 1, 5, 3, 24, 40), (1, 1, 64, 64, 40, 8)]
MASKS = ["none", "keys", "causal", "nothing seen"]
DROPPED = 0.3


def tensors(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values that require gradients, the heads side by side in memory as projections leave them."""
    batch, heads, num_queries, num_keys, key_width, width = shape
    random = torch.Generator().manual_seed(sum(shape))
    sizes = [(num_queries, key_width), (num_keys, key_width), (num_keys, width)]
    found = [torch.randn(batch, length, heads, size, generator=random) for length, size in sizes]
    return [each.to(device, dtype).transpose(1, 2).requires_grad_() for each in found]


def mask_of(kind: str, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    batch, _, num_queries, num_keys, _, _ = shape
    random = torch.Generator().manual_seed(1)
    mask = {
        "none": None,
        "keys": torch.rand(batch, 1, 1, num_keys, generator=random) < 0.7,
        "causal": torch.ones(num_queries, num_keys, dtype=torch.bool).tril(),
        "nothing seen": torch.rand(batch, 1, num_queries, num_keys, generator=random) < 0.7,
    }[kind]
    if mask is not None and kind == "nothing seen":
        mask[:, :, 1::3] = False
        mask[-1] = False
    return None if mask is None else mask.to(device)


def reference(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, factors: Tensor | float) -> Tensor:
    """Attention by hand, its weights times `factors`."""
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(values.shape[-1])
    seen = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand_as(scores)
    exponentials = torch.where(seen, (scores - scores.amax(dim=-1, keepdim=True).detach()).exp(), 0.0)
    return exponentials / exponentials.sum(dim=-1, keepdim=True).clamp_min(1e-300) * factors @ values


def check_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    bound = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for ours, exact in zip(found, [each.detach() for each in expected], strict=True):
        assert ours.dtype == dtype
        assert torch.isfinite(ours).all()
        assert float((ours.detach().double() - exact).norm()) <= bound * float(exact.norm())


def check(attention, inputs: list[Tensor], mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Compares the context and gradients; returns the context. With dropout, the values must be the identity."""
    context = attention(*inputs, mask, dropout)[0]
    # Of values that are the identity, the context is the weights, and where they are zero they were dropped.
    factors = (context.detach() != 0).double() / (1 - dropout) if dropout else 1.0
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = reference(*exact, mask, factors)
    slope = torch.randn(context.shape, generator=torch.Generator().manual_seed(2)).to(context)
    found = [context, *torch.autograd.grad(context, inputs, slope)]
    check_close(found, [expected, *torch.autograd.grad(expected, exact, slope.double())], context.dtype)
    return context.detach()


def check_rows_that_see_nothing(attention, shape: tuple[int, ...], device: torch.device) -> None:
    inputs, mask = tensors(shape, device, torch.float32), mask_of("nothing seen", shape, device)
    context = attention(*inputs, mask, DROPPED)[0]
    gradients = torch.autograd.grad(context, inputs, torch.ones_like(context))
    assert (context[:, :, 1::3] == 0).all()
    assert (gradients[0][:, :, 1::3] == 0).all()
    assert all((each[-1] == 0).all() for each in (context, *gradients))


def check_dropout(attention, device: torch.device, dtype: torch.dtype) -> None:
    inputs = tensors((2, 2, 70, 40, 56, 40), device, dtype)
    inputs[2] = torch.eye(40, device=device, dtype=dtype).expand(2, 2, 40, 40).contiguous().requires_grad_()
    patterns = [check(attention, inputs, None, DROPPED) == 0 for _ in range(2)]
    for pattern in patterns:
        assert share(pattern) == pytest.approx(DROPPED, abs=0.02)
    # What two patterns have in common if they have nothing to do with each other.
    by_chance = pytest.approx(DROPPED**2 + (1 - DROPPED) ** 2, abs=0.03)
    one = patterns[0]
    assert share(one == patterns[1]) == by_chance
    assert share(one[0] == one[1]) == by_chance
    assert share(one[:, 0] == one[:, 1]) == by_chance
    for distance in (1, 8, 32):
        assert share(one[:, :, distance:] == one[:, :, :-distance]) == by_chance
        assert share(one[..., distance:] == one[..., :-distance]) == pytest.approx(by_chance.expected, abs=0.05)


def share(flags: Tensor) -> float:
    return float(flags.double().mean())


def check_compiled(attention, device: torch.device, backend: str, dtype: torch.dtype) -> None:
    """In one piece, for two lengths; each of two calls draws for itself."""

    def two(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, ...]:
        first = attention(queries, keys, values, mask, dropout)[0]
        second = attention(queries, keys, 2 * values, mask, dropout)[0]
        return first.transpose(1, 2).flatten(2).unflatten(2, (2, -1)).transpose(1, 2), second

    compiled = torch.compile(two, backend=backend, dynamic=True, fullgraph=True)
    for shape in [(2, 2, 37, 45, 40, 24), (3, 2, 20, 33, 40, 24)]:
        inputs, mask = tensors(shape, device, dtype), mask_of("keys", shape, device)
        check(compiled, inputs, mask)
        first, second = compiled(*inputs, mask, DROPPED)
        assert not torch.allclose(2 * first, second, rtol=0.1)


def check_registration() -> None:
    from asr.nn.attention_kernels import attention

    shape = (2, 2, 7, 5, 24, 8)
    inputs, mask = tensors(shape, torch.device("cpu"), torch.float32), mask_of("keys", shape, torch.device("cpu"))
    torch.library.opcheck(attention, (*inputs, mask, 0.0))


def test_the_interpreter_gives_what_pytorch_gives() -> None:
    # In a process of its own: Triton asks for its interpreter when it is imported.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["compared", str(len(SHAPES) * len(MASKS))]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PRECISIONS = [torch.float32, torch.bfloat16]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [*PRECISIONS, torch.float16])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 4, 325, 200, 96, 48), (2, 2, 150, 150, 128, 128)])
def test_a_gpu_gives_what_a_processor_gives(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    from asr.nn.attention_kernels import attention

    cuda = torch.device("cuda")
    check(attention, tensors(shape, cuda, dtype), mask_of(kind, shape, cuda))


def moved_by_one(x: Tensor) -> Tensor:
    """The same numbers, contiguous, from an address on that is no multiple of 16 bytes."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return memory[1:].view(x.shape).copy_(x.detach()).requires_grad_()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_takes_numbers_from_any_address(dtype: torch.dtype) -> None:
    from asr.nn.attention_kernels import attention

    inputs = [moved_by_one(each) for each in tensors((2, 2, 70, 45, 32, 16), torch.device("cuda"), dtype)]
    assert all(each.data_ptr() % 16 for each in inputs)
    check(attention, inputs, None)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_gpu_drops_weights_and_their_gradients_alike(dtype: torch.dtype) -> None:
    from asr.nn.attention_kernels import attention

    check_dropout(attention, torch.device("cuda"), dtype)
    check_rows_that_see_nothing(attention, SHAPES[0], torch.device("cuda"))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_gpu_gives_the_same_compiled(dtype: torch.dtype) -> None:
    from asr.nn.attention_kernels import attention

    check_compiled(attention, torch.device("cuda"), "inductor", dtype)


@pytest.mark.gpu
@needs_gpu
def test_a_captured_graph_draws_anew_in_every_replay() -> None:
    from asr.nn.attention_kernels import attention

    queries, keys, values = tensors((2, 2, 70, 45, 32, 24), torch.device("cuda"), torch.bfloat16)
    attention(queries, keys, values, None, DROPPED)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        context = attention(queries.detach(), keys.detach(), values.detach(), None, DROPPED)[0]
    found = []
    for _ in range(2):
        graph.replay()
        found.append(context.clone())
    assert not torch.equal(*found)


@pytest.mark.gpu
@needs_gpu
def test_attend_takes_the_kernels_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from asr.nn import attention, attention_kernels

    calls = []
    plain = attention_kernels.attention
    monkeypatch.setattr(attention_kernels, "attention", lambda *args: calls.append(args[0].dtype) or plain(*args))
    inputs = tensors(SHAPES[0], torch.device("cuda"), torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        assert attention.attend(*inputs, mask=None, dropout=0.1).dtype == torch.bfloat16
    with torch.no_grad():
        attention.attend(*inputs, mask=None, dropout=0.0)
    attention.attend(*(each.detach() for each in inputs), mask=None, dropout=0.0)
    assert calls == [torch.bfloat16]


def test_rows_that_are_no_multiple_of_16_bytes_are_left_to_pytorch() -> None:
    from asr.nn.attention_kernels import fits

    cpu = torch.device("cpu")
    for key_width, width, bits_32, bits_16 in [(24, 16, True, True), (24, 12, True, False), (26, 16, False, False)]:
        for dtype, expected in [(torch.float32, bits_32), (torch.bfloat16, bits_16), (torch.float64, False)]:
            assert fits(*tensors((1, 2, 5, 4, key_width, width), cpu, dtype)) == expected
    assert fits(*tensors((1, 2, 5, 4, 128, 64), cpu, torch.float16))
    assert not fits(*tensors((1, 2, 5, 4, 136, 64), cpu, torch.float16))
    assert not fits(*tensors((1, 2, 5, 4, 128, 64), cpu, torch.float32))  # rows of more than 256 bytes


def test_what_the_kernels_are_given_begins_at_multiples_of_16_bytes() -> None:
    from asr.nn.attention_kernels import _aligned

    for dtype in PRECISIONS:
        x = torch.randn(2, 3, 8, 8).to(dtype)
        assert _aligned(x) is x
        for other in (moved_by_one(x), x.transpose(2, 3), torch.randn(2, 3, 8, 9).to(dtype)[..., :8]):
            aligned = _aligned(other)
            assert torch.equal(aligned, other)
            assert aligned.is_contiguous()
            assert aligned.data_ptr() % 16 == 0


if __name__ == "__main__":
    from triton_interpreter import let_numbers_of_one_element_be_bounds_of_loops

    from asr.nn.attention_kernels import attention

    let_numbers_of_one_element_be_bounds_of_loops()
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    for each in SHAPES:
        for kind in MASKS:
            check(attention, tensors(each, cpu, torch.float32), mask_of(kind, each, cpu))
    # Of 16 bits; the interpreter does not multiply in bfloat16.
    check(attention, tensors(SHAPES[0], cpu, torch.float16), mask_of("keys", SHAPES[0], cpu))
    check_rows_that_see_nothing(attention, SHAPES[0], cpu)
    check_dropout(attention, cpu, torch.float32)
    check_registration()
    check_compiled(attention, cpu, "aot_eager", torch.float32)
    print("compared", len(SHAPES) * len(MASKS))
