"""Search with a speller: what it returns is what the model says, whoever else is in the batch."""

import itertools
import math

import pytest
import spelling_data
import tiny
import torch
from torch import Tensor

from asr.decoding.phone_runs import heard_runs
from asr.decoding.spell import PhoneSpeller, spell
from asr.nn.speller import Speller, SpellerConfig
from asr.speller_checkpoint import build_speller
from asr.tokenizer import EOS_ID, BpeTokenizer, CharTokenizer

TEXTS = ["a b ab", "c", "cab a", "ab ab ab c"]
SIZES = {"width": tiny.WIDTH, "num_heads": 2, "num_layers": 1, "feedforward_width": 32, "num_reader_layers": 1}


def make_speller(tokenizer: BpeTokenizer | None = None) -> Speller:
    torch.manual_seed(0)
    speller = build_speller(SpellerConfig(**SIZES), tokenizer or spelling_data.make_tokenizer(), num_phones=3)
    return tiny.randomized(speller)


def make_log_probs(texts: list[str] = TEXTS) -> tuple[Tensor, Tensor]:
    rows = [spelling_data.heard(text, index=row).probabilities.log() for row, text in enumerate(texts)]
    return tiny.pad(rows, value=math.nan)


def test_a_batch_of_n_equals_n_batches_of_one() -> None:
    runs, lengths = heard_runs(*make_log_probs())
    together = spell(make_speller(), runs, lengths, beam_size=4, num_best=3)
    for row, own in enumerate(together):
        (alone,) = spell(
            make_speller(), runs[row : row + 1, : lengths[row]], lengths[row : row + 1], beam_size=4, num_best=3
        )
        assert [each.tokens for each in own] == [each.tokens for each in alone]
        assert [each.score for each in own] == pytest.approx([each.score for each in alone], abs=1e-4)


@torch.no_grad()
def test_a_wide_beam_finds_the_likeliest_of_all_short_texts() -> None:
    speller = make_speller()
    runs, lengths = heard_runs(*make_log_probs(["c"]))
    (found,) = spell(speller, runs, lengths, beam_size=400, num_best=400, end_margin=math.inf)
    best = {each.tokens: each.score for each in found}
    most = 2 * int(lengths)
    for size in range(min(3, most + 1)):
        for tokens in itertools.product(range(2, 8), repeat=size):
            logits = speller(torch.tensor([[EOS_ID, *tokens]]), runs, lengths)[0].log_softmax(dim=1)
            score = float(logits[torch.arange(size + 1), torch.tensor([*tokens, EOS_ID])].sum())
            if tokens in best:
                assert best[tokens] == pytest.approx(score, abs=1e-4)
            else:
                assert score <= min(best.values()) + 1e-4


def test_silence_is_spelt_as_nothing() -> None:
    log_probs, lengths = make_log_probs(["a b"])
    silent = torch.full_like(log_probs, 1e-6)
    silent[:, :, 0] = 1.0
    both = torch.cat([silent.log(), log_probs])
    speller = PhoneSpeller(make_speller(), spelling_data.make_tokenizer(), tiny.make_tokenizer())
    settings = {"beam_size": 2, "length_bonus": 0.0, "end_margin": 20.0, "num_best": 2}
    found = speller(both, lengths.repeat(2), **settings)
    (alone,) = speller(log_probs, lengths, **settings)
    assert [each.tokens for each in found[0]] == [()] and found[0][0].score == 0.0
    assert [each.tokens for each in found[1]] == [each.tokens for each in alone]
    (nothing,) = speller(both[:1], lengths, **settings)
    assert [each.tokens for each in nothing] == [()]


def test_texts_come_in_the_recognisers_tokens_each_once_and_fit_its_frames() -> None:
    tokenizer, letters = spelling_data.make_tokenizer(), tiny.make_tokenizer()
    log_probs, lengths = make_log_probs()
    speller = PhoneSpeller(make_speller(), tokenizer, letters)
    found = speller(log_probs, lengths, beam_size=20, length_bonus=1.0, end_margin=20.0, num_best=20)
    plain = spell(make_speller(), *heard_runs(log_probs, lengths), beam_size=20, length_bonus=1.0, num_best=20)
    for own, spelt, length in zip(found, plain, lengths.tolist(), strict=True):
        texts = [letters.decode(each.tokens) for each in own]
        assert len({each.tokens for each in own}) == len(own) <= len(spelt)
        assert texts[0] == _whole_words(tokenizer.decode(spelt[0].tokens), most=length)
        assert all(len(each.tokens) <= length for each in own)
        assert [each.score for each in own] == sorted((each.score for each in own), reverse=True)


def _whole_words(text: str, *, most: int) -> str:
    """As many words as there is room for; a letter and a space are a token each."""
    return max(
        (each for each in itertools.accumulate(text.split(), lambda a, b: f"{a} {b}") if len(each) <= most), key=len
    )


def test_characters_that_the_recogniser_lacks_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^the speller writes 'c', for which the recogniser has no token; train one on"
    ):
        PhoneSpeller(make_speller(), spelling_data.make_tokenizer(), CharTokenizer.train(["a b"]))
