"""The attention decoder: one step at a time equals all at once, the future is hidden, and models have their sizes."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from torch import Tensor

from asr.checkpoint import ModelConfig, build_model
from asr.features import FeatureConfig
from asr.nn.conformer import EncoderConfig
from asr.nn.decoder import DecoderConfig, DecoderState, TransformerDecoder
from asr.tokenizer import EOS_ID, CharTokenizer

CONF = Path(__file__).parents[2] / "conf"
VOCAB_SIZE = 7
B, U, T = 3, 6, 9
FRAME_LENGTHS = torch.tensor([9, 4, 1])


def make_decoder() -> TransformerDecoder:
    torch.manual_seed(0)
    return tiny.randomized(TransformerDecoder(tiny.make_decoder_config(), width=tiny.WIDTH, vocab_size=VOCAB_SIZE))


def make_frames() -> Tensor:
    return torch.randn(B, T, tiny.WIDTH, generator=torch.Generator().manual_seed(1))


def make_tokens() -> Tensor:
    tokens = torch.randint(2, VOCAB_SIZE, (B, U), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = EOS_ID
    return tokens


def run_steps(decoder: TransformerDecoder, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
    """Reads tokens (B, U) one at a time; log-probabilities (B, U, V)."""
    outputs = []
    for column in tokens.unbind(dim=1):
        log_probs, state = decoder.step(column, state)
        outputs.append(log_probs)
    return torch.stack(outputs, dim=1), state


# Teacher forcing and search


@torch.no_grad()
def test_step_by_step_equals_teacher_forcing() -> None:
    decoder, frames, tokens = make_decoder(), make_frames(), make_tokens()
    expected = decoder(tokens, frames, FRAME_LENGTHS).log_softmax(dim=-1)
    log_probs, state = run_steps(decoder, tokens, decoder.start(frames, FRAME_LENGTHS))
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)
    assert state.position == U
    torch.testing.assert_close(log_probs.exp().sum(dim=-1), torch.ones(B, U))


@torch.no_grad()
def test_a_step_leaves_the_state_that_it_was_given_as_it_was() -> None:
    decoder, tokens = make_decoder(), make_tokens()
    _, state = run_steps(decoder, tokens[:, :3], decoder.start(make_frames(), FRAME_LENGTHS))
    first, _ = decoder.step(tokens[:, 3], state)
    decoder.step(tokens[:, 4], state)
    again, _ = decoder.step(tokens[:, 3], state)
    assert torch.equal(first, again)


@pytest.mark.parametrize("position", range(1, U))
@torch.no_grad()
def test_later_tokens_do_not_matter(position: int) -> None:
    decoder, frames, tokens = make_decoder(), make_frames(), make_tokens()
    expected = decoder(tokens, frames, FRAME_LENGTHS)
    changed = tokens.clone()
    changed[:, position:] = 2 + (changed[:, position:] - 1) % (VOCAB_SIZE - 2)
    logits = decoder(changed, frames, FRAME_LENGTHS)
    torch.testing.assert_close(logits[:, :position], expected[:, :position], atol=1e-6, rtol=0)
    assert (logits[:, position:] - expected[:, position:]).abs().amax(dim=-1).min() > 1e-4
    shorter = decoder(tokens[:, :position], frames, FRAME_LENGTHS)
    torch.testing.assert_close(shorter, expected[:, :position], atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_selected_state_goes_on_as_the_chosen_sequences() -> None:
    decoder, frames, tokens = make_decoder(), make_frames(), make_tokens()
    chosen = torch.tensor([2, 0, 0, 1])
    _, state = run_steps(decoder, tokens[:, :3], decoder.start(frames, FRAME_LENGTHS))
    log_probs, _ = run_steps(decoder, tokens[chosen, 3:], state.select(chosen))
    expected = decoder(tokens[chosen], frames[chosen], FRAME_LENGTHS[chosen]).log_softmax(dim=-1)
    torch.testing.assert_close(log_probs, expected[:, 3:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_state_can_be_selected_before_the_first_step() -> None:
    decoder, frames, tokens = make_decoder(), make_frames(), make_tokens()
    state = decoder.start(frames[:1], FRAME_LENGTHS[:1]).select(torch.tensor([0, 0]))
    log_probs, _ = run_steps(decoder, tokens[:2], state)
    expected = decoder(tokens[:2], frames[:1].expand(2, -1, -1), FRAME_LENGTHS[:1].expand(2)).log_softmax(dim=-1)
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_order_of_tokens_matters() -> None:
    decoder, frames = make_decoder(), make_frames()
    orders = torch.tensor([[EOS_ID, 2, 3, 4], [EOS_ID, 3, 2, 4]])
    logits = decoder(orders, frames[:1].expand(2, -1, -1), FRAME_LENGTHS[:1].expand(2))
    assert (logits[0, -1] - logits[1, -1]).abs().max() > 1e-4


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": -1}, "decoder.num_layers is -1; it must be 0 (CTC alone) or more"),
        ({"num_heads": 0}, "decoder.num_heads is 0; it must be at least 1"),
        ({"feedforward_width": 0}, "decoder.feedforward_width is 0; it must be at least 1"),
        ({"dropout": 1.0}, "decoder.dropout is 1.0; it must be in [0, 1)"),
    ],
)
def test_errors_of_the_decoder_config(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        DecoderConfig(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 0}, "encoder.num_layers is 0; it must be at least 1"),
        ({"subsampling_channels": 0}, "encoder.subsampling_channels is 0; it must be at least 1"),
        ({"width": 10}, "encoder.width 10 is not a multiple of encoder.num_heads 4"),
        ({"kernel_size": 8}, "encoder.kernel_size is 8; it must be odd, so that frames stay in place"),
        ({"subsampling": 6}, "encoder.subsampling is 6; choose one of (4, 8)"),
        ({"dropout": -0.1}, "encoder.dropout is -0.1; it must be in [0, 1)"),
        ({"attention_dropout": 1.0}, "encoder.attention_dropout is 1.0; it must be in [0, 1)"),
        ({"intermediate_layers": [0, 4, 8]}, "encoder.intermediate_layers has [0, 8]; choose from 1 to 7"),
    ],
)
def test_errors_of_the_encoder_config(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        EncoderConfig(**settings)
    assert str(caught.value) == message


# Sizes


def read_conf(group: str, name: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return settings


def sizes(kind: str) -> list[int]:
    return sorted(int(path.stem.removeprefix(f"{kind}_")[:-1]) for path in CONF.glob(f"encoder/{kind}_*m.yaml"))


def test_there_is_a_model_of_every_size() -> None:
    assert sizes("conformer") == [1, 5, 10, 30, 115]
    assert sizes("ebranchformer") == [1, 5, 10, 30]


@pytest.mark.parametrize(
    ("kind", "millions"), [(kind, size) for kind in ("conformer", "ebranchformer") for size in sizes(kind)]
)
def test_a_model_has_about_the_size_that_its_name_says(kind: str, millions: int) -> None:
    config = ModelConfig(
        features=FeatureConfig(**read_conf("features", "logmel80")),
        encoder=EncoderConfig(**read_conf("encoder", f"{kind}_{millions}m")),
        decoder=DecoderConfig(**read_conf("decoder", f"transformer_{millions}m")),
    )
    tokenizer = CharTokenizer([chr(ord("a") + n) for n in range(26)] + ["'", " "])
    with torch.device("meta"):
        model = build_model(config, tokenizer)
    # Names are whole millions.
    assert model.num_parameters() == pytest.approx(millions * 1e6, rel=0.25, abs=0.5e6)
    assert model.decoder is not None and len(model.decoder.layers()) == config.decoder.num_layers


def test_decoder_none_builds_a_model_with_ctc_alone() -> None:
    config = ModelConfig(decoder=DecoderConfig(**read_conf("decoder", "none")))
    with torch.device("meta"):
        assert build_model(config, tiny.make_tokenizer()).decoder is None
