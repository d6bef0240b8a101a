"""Padding never changes a valid frame, whatever stands in it and whatever the batch: module by module, and as a whole.

Every case here compares a padded batch with batches of one without any padding.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from asr.nn.attention import MultiHeadAttention, RelativeAttention
from asr.nn.conformer import ConformerBlock, ConformerEncoder, ConvModule
from asr.nn.decoder import TransformerDecoder
from asr.nn.ebranchformer import EBranchformerBlock, GatingMLP, Merge
from asr.nn.feedforward import FeedForward
from asr.nn.masks import valid_mask
from asr.nn.subsampling import ConvSubsampling

LENGTHS = [23, 1, 2, 9, 16, 31, 4]
NOT_A_NUMBER = float("nan")

# Maps a padded batch (B, T, …) and its lengths (B,) to a padded batch and its lengths.
Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def keys(x: Tensor, lengths: Tensor) -> Tensor:
    return valid_mask(lengths, x.shape[1])[:, None, None]  # (B, 1, 1, T)


def frames(x: Tensor, lengths: Tensor) -> Tensor:
    return valid_mask(lengths, x.shape[1])[:, :, None]  # (B, T, 1)


def subsampling(factor: int, kind: str = "conv") -> Forward:
    return tiny.randomized(ConvSubsampling(tiny.WIDTH, tiny.WIDTH, factor=factor, channels=4, kind=kind))


def feedforward() -> Forward:
    module = tiny.randomized(FeedForward(tiny.WIDTH, inner_width=32, dropout=0.1))
    return lambda x, lengths: (module(x), lengths)


def convolution() -> Forward:
    module = tiny.randomized(ConvModule(tiny.WIDTH, kernel_size=7, dropout=0.1))
    return lambda x, lengths: (module(x, frames(x, lengths)), lengths)


def attention() -> Forward:
    module = tiny.randomized(RelativeAttention(tiny.WIDTH, num_heads=2))
    return lambda x, lengths: (module(x, mask=keys(x, lengths)), lengths)


def attention_weights() -> Forward:
    module = tiny.randomized(RelativeAttention(tiny.WIDTH, num_heads=2))

    def forward(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        weights = module.weights(x, mask=keys(x, lengths))  # (B, H, T, T)
        # What every frame takes from the first frame; a key in the padding must get nothing.
        return weights[..., 0].transpose(1, 2), lengths

    return forward


def conformer_block() -> Forward:
    module = tiny.randomized(ConformerBlock(tiny.make_encoder_config()))
    return lambda x, lengths: (module(x, frames(x, lengths)), lengths)


def gating() -> Forward:
    module = tiny.randomized(GatingMLP(tiny.WIDTH, inner_width=24, kernel_size=7, dropout=0.1))
    return lambda x, lengths: (module(x, frames(x, lengths)), lengths)


def merge() -> Forward:
    module = tiny.randomized(Merge(tiny.WIDTH, kernel_size=7, dropout=0.1))
    return lambda x, lengths: (module(x, x.flip(-1), frames(x, lengths)), lengths)


def ebranchformer_block() -> Forward:
    module = tiny.randomized(
        EBranchformerBlock(
            tiny.WIDTH,
            num_heads=2,
            feedforward_width=32,
            cgmlp_width=24,
            kernel_size=5,
            merge_kernel_size=7,
            dropout=0.1,
            attention_dropout=0.1,
        )
    )
    return lambda x, lengths: (module(x, frames(x, lengths)), lengths)


def encoder(factor: int, **changes: str | int) -> Forward:
    config = replace(tiny.make_encoder_config(subsampling=factor, intermediate_layers=(1,)), **changes)
    module = tiny.randomized(ConformerEncoder(config, num_mels=tiny.WIDTH))

    def forward(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        output = module(x, lengths)
        return torch.cat([output.frames, *output.intermediate], dim=-1), output.lengths

    return forward


def cross_attention() -> Forward:
    module = tiny.randomized(MultiHeadAttention(tiny.WIDTH, num_heads=2))
    queries = torch.randn(1, 5, tiny.WIDTH, generator=torch.Generator().manual_seed(9))

    def forward(memory: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(memory)
        return module(queries.expand(batch, -1, -1), memory, mask=keys(memory, lengths)), torch.full((batch,), 5)

    return forward


def make_decoder() -> TransformerDecoder:
    return tiny.randomized(TransformerDecoder(tiny.make_decoder_config(), width=tiny.WIDTH, vocab_size=6))


def decoder_frames() -> Forward:
    module = make_decoder()
    tokens = torch.tensor([[1, 2, 3, 3]])

    def forward(memory: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(memory)
        return module(tokens.expand(batch, -1), memory, lengths), torch.full((batch,), tokens.shape[1])

    return forward


def decoder_steps() -> Forward:
    module = make_decoder()

    def forward(memory: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        state, outputs = module.start(memory, lengths), []
        for token in (1, 2, 3, 3):
            log_probs, state = module.step(torch.full((len(memory),), token), state)
            outputs.append(log_probs)
        return torch.stack(outputs, dim=1), torch.full((len(memory),), len(outputs))

    return forward


MODULES: dict[str, Callable[[], Forward]] = {
    "subsampling by 4": lambda: subsampling(4),
    "subsampling by 8": lambda: subsampling(8),
    "separable subsampling by 4": lambda: subsampling(4, "separable"),
    "separable subsampling by 8": lambda: subsampling(8, "separable"),
    "feed-forward": feedforward,
    "convolution": convolution,
    "attention": attention,
    "attention weights": attention_weights,
    "conformer block": conformer_block,
    "gating MLP": gating,
    "merge": merge,
    "e-branchformer block": ebranchformer_block,
    "encoder by 4": lambda: encoder(4),
    "encoder by 8": lambda: encoder(8),
    "separable encoder by 4": lambda: encoder(4, subsampling_kind="separable"),
    "separable encoder by 8": lambda: encoder(8, subsampling_kind="separable"),
    "e-branchformer by 4": lambda: encoder(4, block="ebranchformer", cgmlp_width=24, merge_kernel_size=3),
    "cross attention": cross_attention,
    "decoder over frames": decoder_frames,
    "decoder step by step": decoder_steps,
}


def assert_padding_has_no_effect(forward: Forward, sequences: list[Tensor], *, garbage: float) -> None:
    """Compares batches of several sizes and paddings, filled with garbage, with batches of one."""
    alone = [forward(sequence[None], torch.tensor([len(sequence)])) for sequence in sequences]
    longest = max(map(len, sequences))
    for size, extra in [(1, 1), (1, 30), (2, 0), (len(sequences), 0), (len(sequences), 7)]:
        padded, lengths = tiny.pad(sequences[:size], length=longest + extra, value=garbage)
        outputs, output_lengths = forward(padded, lengths)
        for row in range(size):
            expected, expected_lengths = alone[row]
            length = int(expected_lengths[0])
            assert int(output_lengths[row]) == length == expected.shape[1]
            torch.testing.assert_close(outputs[row, :length], expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("garbage", [0.0, 100.0, -1e4])
@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_padding_never_changes_a_valid_frame(name: str, garbage: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randn(length, tiny.WIDTH, generator=generator) for length in LENGTHS]
    assert_padding_has_no_effect(MODULES[name](), sequences, garbage=garbage)


@pytest.mark.parametrize("garbage", [NOT_A_NUMBER, float("inf")])
@pytest.mark.parametrize("name", [name for name in MODULES if "subsampling" in name or "r by" in name])
@torch.no_grad()
def test_the_encoder_takes_features_with_anything_behind_their_end(name: str, garbage: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randn(length, tiny.WIDTH, generator=generator) for length in LENGTHS]
    assert_padding_has_no_effect(MODULES[name](), sequences, garbage=garbage)


@pytest.mark.parametrize("garbage", [0.0, 1e3, NOT_A_NUMBER])
@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("part", ["ctc", "decoder"])
@torch.no_grad()
def test_the_whole_model_from_waveforms_does_not_depend_on_the_batch(part: str, factor: int, garbage: float) -> None:
    model = tiny.make_model(subsampling=factor)
    assert model.decoder is not None
    decoder, tokens = model.decoder, torch.tensor([[1, 3, 2, 4, 4]])

    def forward(waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        encoded = model.encode(waveforms, lengths)
        if part == "ctc":
            return model.ctc_log_probs(encoded.frames), encoded.lengths
        logits = decoder(tokens.expand(len(waveforms), -1), encoded.frames, encoded.lengths)
        return logits, torch.full((len(waveforms),), tokens.shape[1])

    waveforms = [tiny.noise(length, seed=length) for length in (2400, 1, 79, 80, 3333, 640)]
    assert_padding_has_no_effect(forward, waveforms, garbage=garbage)


@torch.no_grad()
def test_frames_beyond_an_utterance_are_zero() -> None:
    model = tiny.make_model()
    waveforms, lengths = tiny.pad([tiny.noise(2000), tiny.noise(500)])
    output = model.encode(waveforms, lengths)
    assert output.frames[1, int(output.lengths[1]) :].abs().max() == 0
    assert output.frames[1, : int(output.lengths[1])].abs().min() > 0


@pytest.mark.parametrize("kind", ["conv", "separable"])
@pytest.mark.parametrize("factor", [4, 8])
@torch.no_grad()
def test_output_lengths_are_the_frames_that_come_out(factor: int, kind: str) -> None:
    module = ConvSubsampling(tiny.NUM_MELS, tiny.WIDTH, factor=factor, channels=2, kind=kind)
    for length in range(1, 41):
        output, lengths = module(torch.zeros(1, length, tiny.NUM_MELS), torch.tensor([length]))
        assert output.shape[1] == int(lengths) == int(module.output_lengths(torch.tensor([length])))
        assert output.shape[1] == -(-length // factor)


@pytest.mark.parametrize("factor", [4, 8])
@torch.no_grad()
def test_num_frames_foretells_the_frames_of_a_waveform(factor: int) -> None:
    model = tiny.make_model(subsampling=factor)
    for num_samples in (1, 79, 80, 81, 319, 320, 321, 640, 2559, 2560):
        output = model.encode(torch.zeros(1, num_samples), torch.tensor([num_samples]))
        assert model.num_frames(num_samples) == output.frames.shape[1] == int(output.lengths)


def test_other_subsampling_factors_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^subsampling factor 3 is not one of \(4, 8\)$"):
        ConvSubsampling(tiny.NUM_MELS, tiny.WIDTH, factor=3, channels=2)


def test_other_kinds_of_subsampling_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^subsampling kind 'pool' is not one of conv, separable$"):
        ConvSubsampling(tiny.NUM_MELS, tiny.WIDTH, factor=4, channels=2, kind="pool")
