"""Blocks: what they compute does not change by computing it twice, and they compile whole."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor, nn

from asr.nn.conformer import ConformerEncoder
from asr.nn.decoder import TransformerDecoder
from asr.nn.lm import LanguageModel, LanguageModelConfig

LENGTHS = torch.tensor([30, 17])
TOKENS = torch.tensor([[1, 2, 3, 3], [1, 4, 2, 2]])
VOCAB_SIZE = 6


def encoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    module = ConformerEncoder(tiny.make_encoder_config(dropout=0.3), num_mels=tiny.NUM_MELS)
    return module, (torch.randn(2, 30, tiny.NUM_MELS), LENGTHS)


def ebranchformer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = replace(
        tiny.make_encoder_config(dropout=0.3),
        block="ebranchformer",
        cgmlp_width=24,
        merge_kernel_size=3,
        subsampling_kind="separable",
    )
    return ConformerEncoder(config, num_mels=tiny.NUM_MELS), (torch.randn(2, 30, tiny.NUM_MELS), LENGTHS)


def decoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = tiny.make_decoder_config(dropout=0.3)
    module = TransformerDecoder(config, width=tiny.WIDTH, vocab_size=VOCAB_SIZE)
    return module, (TOKENS, torch.randn(2, 30, tiny.WIDTH, requires_grad=True), LENGTHS)


def language_model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    config = LanguageModelConfig(num_layers=2, width=tiny.WIDTH, num_heads=2, feedforward_width=32, dropout=0.3)
    return LanguageModel(config, vocab_size=VOCAB_SIZE), (TOKENS,)


Make = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


def loss_and_gradients(module: nn.Module, inputs: tuple[Tensor, ...], *, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(7)  # of dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = module(*inputs)
    loss = (output if isinstance(output, Tensor) else output.frames).float().square().mean()
    own = [tensor for tensor in inputs if tensor.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, [*module.parameters(), *own])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [encoder, ebranchformer, decoder, language_model])
def test_checkpointed_activations_change_neither_loss_nor_gradients(make: Make, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, inputs = make()
    module.train()
    kept = loss_and_gradients(module, inputs, dtype=dtype)
    after = torch.get_rng_state()
    calls: list[nn.Module] = []
    for block in module.layers():
        block.register_forward_pre_hook(lambda block, _: calls.append(block))
    module.checkpoint_activations = True
    recomputed = loss_and_gradients(module, inputs, dtype=dtype)
    assert calls == [*module.layers(), *reversed(module.layers())], "forward, then again from the last block on"
    assert torch.equal(torch.get_rng_state(), after), "what is drawn next is the same too"
    for one, other in zip(kept, recomputed, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", [encoder, ebranchformer, decoder, language_model])
def test_nothing_is_computed_twice_outside_of_training(make: Make) -> None:
    module, inputs = make()
    module.eval()
    module.checkpoint_activations = True
    calls: list[nn.Module] = []
    for block in module.layers():
        block.register_forward_pre_hook(lambda block, _: calls.append(block))
    loss_and_gradients(module, inputs, dtype=torch.float32)
    assert calls == module.layers()


def test_the_blocks_to_compile_are_those_of_encoder_and_decoder() -> None:
    model = tiny.make_model()
    assert model.decoder is not None
    assert model.blocks_to_compile() == [*model.encoder.layers(), *model.decoder.layers()]
    without_decoder = tiny.make_model(num_decoder_layers=0)
    assert without_decoder.blocks_to_compile() == without_decoder.encoder.layers()
    module, _ = language_model()
    assert module.blocks_to_compile() == module.layers()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("make", [encoder, ebranchformer, decoder])
def test_a_block_compiles_whole_for_batches_of_any_size(make: Make) -> None:
    module, inputs = make()
    module.eval()
    expected = loss_and_gradients(module, inputs, dtype=torch.float32)
    # Only traced, so that no C++ compiler is needed; a part that cannot be traced is an error.
    module.layers()[0].compile(backend="eager", dynamic=True, fullgraph=True)
    for one, other in zip(expected, loss_and_gradients(module, inputs, dtype=torch.float32), strict=True):
        torch.testing.assert_close(one, other)
