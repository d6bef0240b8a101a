"""The language model: one step at a time equals all at once, the future is hidden, and models have their sizes."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from asr.nn.lm import LanguageModel, LanguageModelConfig, LanguageModelState

CONF = Path(__file__).parents[2] / "conf"
VOCAB_SIZE = 7
B, U = 3, 6


def make_lm(*, dropout: float = 0.0) -> LanguageModel:
    torch.manual_seed(0)
    config = LanguageModelConfig(num_layers=2, width=tiny.WIDTH, num_heads=2, feedforward_width=32, dropout=dropout)
    return tiny.randomized(LanguageModel(config, vocab_size=VOCAB_SIZE))


def make_tokens() -> Tensor:
    tokens = torch.randint(2, VOCAB_SIZE, (B, U), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = 1
    return tokens


def run_steps(lm: LanguageModel, tokens: Tensor, state: LanguageModelState) -> tuple[Tensor, LanguageModelState]:
    """Reads tokens (B, U) one at a time; log-probabilities (B, U, V)."""
    outputs = []
    for column in tokens.unbind(dim=1):
        log_probs, state = lm.step(column, state)
        outputs.append(log_probs)
    return torch.stack(outputs, dim=1), state


@torch.no_grad()
def test_step_by_step_equals_all_at_once() -> None:
    lm, tokens = make_lm(), make_tokens()
    log_probs, state = run_steps(lm, tokens, LanguageModelState())
    torch.testing.assert_close(log_probs, lm(tokens).log_softmax(dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(log_probs.exp().sum(dim=-1), torch.ones(B, U))
    assert state.position == U


@torch.no_grad()
def test_a_step_leaves_the_state_that_it_was_given_as_it_was() -> None:
    lm, tokens = make_lm(), make_tokens()
    _, state = run_steps(lm, tokens[:, :3], LanguageModelState())
    first, _ = lm.step(tokens[:, 3], state)
    lm.step(tokens[:, 4], state)
    again, _ = lm.step(tokens[:, 3], state)
    assert torch.equal(first, again)


@torch.no_grad()
def test_a_selected_state_goes_on_as_the_chosen_sequences() -> None:
    lm, tokens = make_lm(), make_tokens()
    chosen = torch.tensor([2, 0, 0, 1])
    _, state = run_steps(lm, tokens[:, :3], LanguageModelState())
    log_probs, _ = run_steps(lm, tokens[chosen, 3:], state.select(chosen))
    torch.testing.assert_close(log_probs, lm(tokens[chosen]).log_softmax(dim=-1)[:, 3:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", range(1, U))
@torch.no_grad()
def test_later_tokens_do_not_matter_so_padding_does_not(position: int) -> None:
    lm, tokens = make_lm(), make_tokens()
    expected = lm(tokens)
    changed = tokens.clone()
    changed[:, position:] = 2 + (changed[:, position:] - 1) % (VOCAB_SIZE - 2)
    logits = lm(changed)
    torch.testing.assert_close(logits[:, :position], expected[:, :position], atol=1e-5, rtol=0)
    assert (logits[:, position:] - expected[:, position:]).abs().amax(dim=-1).min() > 1e-4
    torch.testing.assert_close(lm(tokens[:, :position]), expected[:, :position], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_batch_is_its_sequences_one_by_one() -> None:
    lm, tokens = make_lm(), make_tokens()
    alone = torch.cat([lm(tokens[row : row + 1]) for row in range(B)])
    torch.testing.assert_close(lm(tokens), alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_order_of_tokens_matters() -> None:
    logits = make_lm()(torch.tensor([[1, 2, 3, 4], [1, 3, 2, 4]]))
    assert (logits[0, -1] - logits[1, -1]).abs().max() > 1e-4


def test_one_matrix_is_embedding_and_output() -> None:
    lm = make_lm()
    assert [name for name, each in lm.named_parameters() if VOCAB_SIZE in each.shape] == [
        "output_bias",
        "embedding.weight",
    ]
    F.cross_entropy(lm(make_tokens()[:, :1])[:, 0], torch.tensor([3, 3, 3])).backward()
    # Token 4 was not read; its row learns from the output alone.
    assert lm.embedding.weight.grad is not None
    assert lm.embedding.weight.grad[4].abs().max() > 0


def test_dropout_is_for_training_alone() -> None:
    lm, tokens = make_lm(dropout=0.5), make_tokens()
    assert torch.equal(lm(tokens), lm(tokens))
    lm.train()
    assert not torch.equal(lm(tokens), lm(tokens))


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 0}, "lm.num_layers is 0; it must be at least 1"),
        ({"width": 0}, "lm.width is 0; it must be at least 1"),
        ({"num_heads": -2}, "lm.num_heads is -2; it must be at least 1"),
        ({"feedforward_width": 0}, "lm.feedforward_width is 0; it must be at least 1"),
        ({"width": 9, "num_heads": 3}, "lm.width is 9; it must be even, as sines and cosines come in pairs"),
        ({"width": 10}, "lm.width 10 is not a multiple of lm.num_heads 4"),
        ({"dropout": 1.0}, "lm.dropout is 1.0; it must be in [0, 1)"),
    ],
)
def test_errors_of_the_config(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        LanguageModelConfig(**settings)
    assert str(caught.value) == message


def sizes() -> list[int]:
    return sorted(int(path.stem.removeprefix("transformer_")[:-1]) for path in CONF.glob("lm/transformer_*.yaml"))


def test_there_is_a_language_model_of_every_size() -> None:
    assert sizes() == [1, 5, 20]


@pytest.mark.parametrize(
    ("name", "millions", "vocab_size"),
    [*((f"transformer_{millions}m", millions, 500) for millions in sizes()), ("pieces_6m", 6, 4000)],
)
def test_a_language_model_has_about_the_size_that_its_name_says(name: str, millions: int, vocab_size: int) -> None:
    settings = yaml.safe_load((CONF / "lm" / f"{name}.yaml").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = LanguageModel(LanguageModelConfig(**settings), vocab_size=vocab_size)
    assert model.num_parameters() == pytest.approx(millions * 1e6, rel=0.1)
