"""The speller: padding changes nothing, the future is hidden, and it may start from a language model."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from torch import Tensor

from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.nn.speller import Speller, SpellerConfig

CONF = Path(__file__).parents[2] / "conf"
NUM_FEATURES, VOCAB_SIZE = 6, 7
SIZES = {"width": tiny.WIDTH, "num_heads": 2, "num_layers": 2, "feedforward_width": 32}


def make_config(**changes: Any) -> SpellerConfig:
    own = {"num_reader_layers": 2, "reader_feedforward_width": 32, "kernel_size": 5, "dropout": 0.0}
    return SpellerConfig(**(SIZES | own | changes))


def make_speller() -> Speller:
    torch.manual_seed(0)
    return tiny.randomized(Speller(make_config(), num_features=NUM_FEATURES, vocab_size=VOCAB_SIZE))


def make_runs(length: int, *, seed: int = 0) -> Tensor:
    return torch.rand(length, NUM_FEATURES, generator=torch.Generator().manual_seed(seed))


TOKENS = torch.tensor([[1, 2, 3, 4], [1, 6, 6, 2], [1, 5, 2, 2]])


@torch.no_grad()
def test_padding_never_changes_what_is_valid() -> None:
    speller = make_speller()
    rows = [make_runs(length, seed=length) for length in (7, 4, 1)]
    padded, lengths = tiny.pad(rows)
    longer, _ = tiny.pad(rows, length=12)
    frames, frame_lengths = speller.read(padded, lengths)
    more_frames, _ = speller.read(longer, lengths)
    assert frame_lengths.tolist() == [4, 2, 1]
    logits, more_logits = speller(TOKENS, padded, lengths), speller(TOKENS, longer, lengths)
    torch.testing.assert_close(logits, more_logits, atol=1e-5, rtol=0)
    for place, row in enumerate(rows):
        size = int(frame_lengths[place])
        alone, _ = speller.read(row[None], lengths[place, None])
        torch.testing.assert_close(frames[place, :size], alone[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(more_frames[place, :size], alone[0], atol=1e-5, rtol=0)
        assert not more_frames[place, size:].any()


@torch.no_grad()
def test_no_run_is_read_as_one_of_zeros() -> None:
    speller = make_speller()
    runs = torch.zeros(1, 1, NUM_FEATURES)
    none, lengths = speller.read(runs, torch.tensor([0]))
    one, _ = speller.read(runs, torch.tensor([1]))
    assert torch.equal(none, one) and lengths.tolist() == [1]
    assert none.isfinite().all()


@torch.no_grad()
def test_the_future_is_hidden_and_what_was_heard_is_not() -> None:
    speller = make_speller()
    runs, lengths = make_runs(6)[None], torch.tensor([6])
    logits = speller(TOKENS[:1], runs, lengths)
    changed = TOKENS[:1].clone()
    changed[0, 2] = 6
    assert torch.equal(speller(changed, runs, lengths)[:, :2], logits[:, :2])
    assert not speller(TOKENS[:1], make_runs(6, seed=1)[None], lengths).allclose(logits)


@torch.no_grad()
def test_from_a_language_model_it_first_says_what_that_says() -> None:
    config = LanguageModelConfig(**SIZES, dropout=0.0)
    lm = tiny.randomized(LanguageModel(config, vocab_size=VOCAB_SIZE), seed=3)
    speller = make_speller()
    runs, lengths = make_runs(6)[None].expand(3, -1, -1), torch.tensor([6, 4, 1])
    assert not speller(TOKENS, runs, lengths).allclose(lm(TOKENS), atol=1e-3)
    speller.start_from(lm)
    torch.testing.assert_close(speller(TOKENS, runs, lengths), lm(TOKENS), atol=1e-5, rtol=0)
    speller.decoder.embedding.weight.zero_()  # a copy, not the language model's own
    assert lm.embedding.weight.any()


def test_a_language_model_of_other_sizes_is_refused() -> None:
    speller = make_speller()
    other = LanguageModel(LanguageModelConfig(**(SIZES | {"num_layers": 1})), vocab_size=VOCAB_SIZE)
    with pytest.raises(ValueError, match="1 blocks, but the speller's decoder has 2"):
        speller.start_from(other)
    with pytest.raises(ValueError, match="size mismatch"):
        speller.start_from(LanguageModel(LanguageModelConfig(**SIZES), vocab_size=VOCAB_SIZE + 1))


def test_the_configs_have_the_sizes_that_they_name() -> None:
    for name, pieces, size in (("pieces_13m", 4000, 13e6), ("pieces_3m", 1000, 3e6)):
        config = SpellerConfig(**yaml.safe_load((CONF / "speller" / f"{name}.yaml").read_text(encoding="utf-8")))
        speller = Speller(config, num_features=58, vocab_size=pieces)
        assert speller.num_parameters() == pytest.approx(size, rel=0.1)
    with (CONF / "lm" / "pieces_6m.yaml").open(encoding="utf-8") as stream:
        lm = yaml.safe_load(stream)
    config = SpellerConfig(**yaml.safe_load((CONF / "speller" / "pieces_13m.yaml").read_text(encoding="utf-8")))
    assert all(getattr(config, key) == lm[key] for key in SIZES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "speller.width is 0; it must be at least 1"),
        ({"width": 15, "num_heads": 3}, "speller.width is 15; it must be even"),
        ({"num_heads": 3}, "speller.width 16 is not a multiple of speller.num_heads 3"),
        ({"kernel_size": 4}, "speller.kernel_size is 4; it must be odd"),
        ({"num_layers": 0}, "speller.num_layers is 0; it must be at least 1"),
        ({"feedforward_width": 0}, "speller.feedforward_width is 0; it must be at least 1"),
        ({"dropout": 1.0}, "speller.dropout is 1.0; it must be in [0, 1)"),
    ],
)
def test_sizes_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_config(**settings)
    assert str(caught.value).startswith(message)
