"""What `torch.compile` gets: every block in one piece, once for batches of all sizes, with the same dropout."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from asr.nn.attention import RelativeAttention
from asr.nn.conformer import ConformerBlock, EncoderConfig
from asr.nn.decoder import DecoderBlock, DecoderConfig
from asr.nn.depthwise import DepthwiseConv
from asr.nn.dropout import Dropout
from asr.nn.ebranchformer import EBranchformerBlock
from asr.nn.masks import causal_mask

WIDTH = 16
SIZES = [(3, 20), (5, 13), (2, 33), (4, 20)]  # B, T'


def conformer() -> nn.Module:
    return ConformerBlock(EncoderConfig(width=WIDTH, num_heads=2, feedforward_width=32, attention_dropout=0.1))


def ebranchformer() -> nn.Module:
    return EBranchformerBlock(
        WIDTH,
        num_heads=2,
        feedforward_width=32,
        cgmlp_width=32,
        kernel_size=5,
        merge_kernel_size=5,
        dropout=0.1,
        attention_dropout=0.1,
    )


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def frames(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Frames (B, T', D) and which are valid, (B, T', 1)."""
    return torch.randn(batch, length, WIDTH, requires_grad=True), torch.ones(batch, length, 1, dtype=torch.bool)


def code(length: int) -> Tensor:
    """Of positions, as the encoder gives it to all blocks."""
    return RelativeAttention(WIDTH, num_heads=2).code(torch.zeros(1, length, WIDTH))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [conformer, ebranchformer])
def test_a_block_of_an_encoder_is_compiled_in_one_piece_and_once(make: Callable[[], nn.Module], precision: torch.dtype):
    counter = CompileCounter()
    block = torch.compile(make().train(), backend=counter, dynamic=True, fullgraph=True)
    for batch, length in SIZES:
        x, valid = frames(batch, length)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            block(x, valid, code(length)).sum().backward()
        assert x.grad is not None
    assert counter.frame_count == 1


def test_a_block_of_a_decoder_too():
    counter = CompileCounter()
    config = DecoderConfig(num_layers=1, num_heads=2, feedforward_width=32, dropout=0.1)
    block = torch.compile(DecoderBlock(WIDTH, config).train(), backend=counter, dynamic=True, fullgraph=True)
    for batch, length in SIZES:
        x, (memory, valid) = torch.randn(batch, length // 2, WIDTH, requires_grad=True), frames(batch, length)
        causal = causal_mask(length // 2, x.device)
        block(x, memory, memory_mask=valid[:, None, None, :, 0], causal=causal).sum().backward()
    assert counter.frame_count == 1


@pytest.mark.parametrize("make", [conformer, ebranchformer])
def test_no_convolution_is_left_for_which_the_compiler_would_fix_the_number_of_frames(make: Callable[[], nn.Module]):
    seen: list[str] = []

    def remember(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compile(make().train(), backend=remember, dynamic=True, fullgraph=True)(*frames(2, 20))
    assert any("depthwise_conv" in name for name in seen)
    assert not any("conv1d" in name or "conv2d" in name for name in seen)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_compiled_depthwise_convolution_computes_what_a_plain_one_does(precision: torch.dtype):
    torch.manual_seed(0)
    conv = DepthwiseConv(WIDTH, kernel_size=5)
    compiled = torch.compile(conv, backend="aot_eager", dynamic=True, fullgraph=True)
    for batch, length in SIZES:
        found = []
        for run in (conv, compiled):
            conv.zero_grad()
            x = torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                y = run(x)
            y.float().square().sum().backward()
            assert y.dtype == precision
            found.append([y, x.grad, conv.weight.grad, conv.bias.grad])
        torch.testing.assert_close(found[1], found[0])


def test_every_dropout_of_a_compiled_block_draws_for_itself():
    # The compiler keeps one of two operations with the same arguments, so draws must differ in theirs.
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = Dropout(0.5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.dropout(x), self.dropout(2 * x)

    compiled = torch.compile(Two().train(), backend="aot_eager_decomp_partition", fullgraph=True)
    first, second = compiled(torch.ones(50, 50, requires_grad=True))
    assert 0.4 < float(((first == 0) == (second == 0)).double().mean()) < 0.6


def test_compiled_dropout_drops_what_plain_dropout_drops():
    dropout, x = Dropout(0.3), torch.randn(7, 9)
    torch.manual_seed(3)
    expected = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(torch.compile(dropout, backend="aot_eager", fullgraph=True)(x), expected)
    assert not torch.equal(dropout(x), expected)
