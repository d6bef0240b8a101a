"""N-gram scorers against a reference that knows texts only, and no tree, token or batch."""

import functools
import itertools
import math
import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_ngrams import make_model
from torch import Tensor

from asr.decoding.beam import beam_search
from asr.decoding.ngram import NgramModel
from asr.decoding.prefix_beam import prefix_beam_search
from asr.decoding.scorers import Scorer, Weighted
from asr.decoding.spelling import fits_tokens
from asr.decoding.word_scorer import TokenNgramScorer, WordNgramScorer
from asr.tokenizer import BLANK_ID, EOS_ID, BpeTokenizer, CharTokenizer, Tokenizer

TEXTS = ["the cat sat on the mat", "the dogs and the dog hate that hat", "a dog's then on and on"]
SPELLINGS = sorted({word for text in TEXTS for word in text.split()} - {"hate"})
TOKENIZERS = {"char": CharTokenizer.train(TEXTS), "bpe": BpeTokenizer.train(TEXTS, vocab_size=34)}
PENALTY = -2.5
EXACT = {"abs": 1e-9, "rel": 0}

each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
each_lookahead = pytest.mark.parametrize("lookahead", [True, False], ids=["lookahead", "plain"])


def set_unigrams(model: NgramModel, log_probs: dict[str, float]) -> NgramModel:
    """Sets the probabilities of some words without context."""
    for word, log_prob in log_probs.items():
        model.levels[0].log_probs[model.ids([word])] = log_prob
    return model


MODEL = make_model([word.upper() for word in SPELLINGS])
SCORERS = {
    (name, lookahead): WordNgramScorer(MODEL, tokenizer, unknown_penalty=PENALTY, lookahead=lookahead)
    for name, tokenizer in TOKENIZERS.items()
    for lookahead in (True, False)
}


def scorer_of(tokenizer: Tokenizer, *, lookahead: bool = True) -> WordNgramScorer:
    name = next(name for name, other in TOKENIZERS.items() if other is tokenizer)
    return SCORERS[name, lookahead]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What a token adds to the text."""
    return "" if token in (BLANK_ID, EOS_ID) else tokenizer.tokens[token].replace("\u2581", " ")


# The reference


@functools.cache
def unigram(word: str) -> float:
    """log p(word) without context."""
    return float(MODEL.score(MODEL.empty(1), torch.tensor([MODEL.ids([word])])))


@functools.cache
def after(words: tuple[str, ...]) -> tuple[Tensor, float]:
    """The context behind words in upper case or tags, and their log-probability, unknown ones with the penalty."""
    if not words:
        return MODEL.start(1), 0.0
    context, total = after(words[:-1])
    (index,) = MODEL.ids(words[-1:])
    total += float(MODEL.score(context, torch.tensor([[index]]))) + PENALTY * (index == MODEL.unk_id)
    return MODEL.extend(context, torch.tensor([index])), total


def words_log_prob(words: Sequence[str]) -> float:
    """From the beginning of a sentence."""
    return after(tuple(words))[1]


def text_log_prob(text: str, *, lookahead: bool, ended: bool = False) -> float:
    """What a text must have been given in all, the last word begun unless a space or the end follows."""
    words = [word if word in SPELLINGS else "<unk>" for word in text.split()]
    words = [word if word == "<unk>" else word.upper() for word in words]
    if ended:
        return words_log_prob([*words, "</s>"])
    if not words or text.endswith(" "):
        return words_log_prob(words)
    if not lookahead:
        return words_log_prob(words[:-1])
    begun = text.split()[-1]
    masses = [math.exp(unigram(word.upper())) for word in SPELLINGS if word.startswith(begun)]
    if not masses:
        return words_log_prob([*words[:-1], "<unk>"])
    return words_log_prob(words[:-1]) + math.log(sum(masses))


def walk(scorer: Scorer, tokens: Sequence[int]) -> Iterator[Tensor]:
    """What the scorer has given before each token and behind the last, plus its scores of all next: (V,) each."""
    state, total = scorer.start(1, 1), 0.0
    for token in [*tokens, BLANK_ID]:
        scores, state = scorer.score(state)
        yield total + scores[0]
        total += float(scores[0, token])
        state = scorer.advance(state, torch.tensor([0]), torch.tensor([token]))


def segmentations(tokenizer: Tokenizer, text: str) -> Iterator[list[int]]:
    """All token sequences with this text."""
    if not text:
        yield []
    for token in range(2, tokenizer.vocab_size):
        own = token_text(tokenizer, token)
        if text.startswith(own):
            for rest in segmentations(tokenizer, text[len(own) :]):
                yield [token, *rest]


# Words


@each_lookahead
@each_tokenizer
@settings(deadline=None, max_examples=40)  # the first example fills the caches of the reference
@given(data=st.data())
def test_every_score_of_random_tokens_is_what_the_reference_gives_the_text(
    tokenizer: Tokenizer, lookahead: bool, data: st.DataObject
) -> None:
    if data.draw(st.booleans()):
        tokens = data.draw(st.lists(st.integers(2, tokenizer.vocab_size - 1), max_size=6))
    else:
        words = data.draw(st.lists(st.sampled_from([*SPELLINGS, "hate", "thatcat"]), max_size=4))
        tokens = tokenizer.encode(" ".join(words))
    scores = list(walk(scorer_of(tokenizer, lookahead=lookahead), tokens))
    place = data.draw(st.integers(0, len(tokens)))
    text = "".join(token_text(tokenizer, token) for token in tokens[:place])
    for token in range(2, tokenizer.vocab_size):
        expected = text_log_prob(text + token_text(tokenizer, token), lookahead=lookahead)
        assert float(scores[place][token]) == pytest.approx(expected, **EXACT)
    assert float(scores[place][EOS_ID]) == pytest.approx(text_log_prob(text, lookahead=lookahead, ended=True), **EXACT)


@each_lookahead
@each_tokenizer
@pytest.mark.parametrize("text", ["the cat sat", "then hate that", "dog's dogs", "g"])
def test_a_sentence_gets_its_log_probability_however_it_is_cut(
    tokenizer: Tokenizer, lookahead: bool, text: str
) -> None:
    scorer = scorer_of(tokenizer, lookahead=lookahead)
    words = text.split()
    expected = float(MODEL.sentence_log_probs([[word.upper() for word in words]]))
    expected += PENALTY * sum(word not in SPELLINGS for word in words)
    leading = " " if isinstance(tokenizer, BpeTokenizer) else ""
    cuts = list(itertools.islice(segmentations(tokenizer, leading + text), 12))
    assert tokenizer.encode(text) in cuts or len(cuts) == 12
    for tokens in [tokenizer.encode(text), *cuts]:
        *_, last = walk(scorer, tokens)
        assert float(last[EOS_ID]) == pytest.approx(expected, **EXACT)


def test_the_pieces_above_cut_words_in_many_ways() -> None:
    """Else the tests of segmentations would say nothing."""
    assert len(list(segmentations(TOKENIZERS["bpe"], " the cat"))) > 3
    assert len(list(segmentations(TOKENIZERS["char"], "the cat"))) == 1


def test_the_empty_sentence_costs_its_end_alone() -> None:
    for scorer in SCORERS.values():
        (scores,) = walk(scorer, [])
        assert float(scores[EOS_ID]) == pytest.approx(words_log_prob(["</s>"]), **EXACT)


@each_lookahead
@each_tokenizer
def test_spaces_that_end_no_word_cost_nothing(tokenizer: Tokenizer, lookahead: bool) -> None:
    scorer = scorer_of(tokenizer, lookahead=lookahead)
    space = next(token for token in range(tokenizer.vocab_size) if token_text(tokenizer, token) == " ")
    plain = tokenizer.encode("the cat")
    at_start, *_ = walk(scorer, [space])
    assert float(at_start[space]) == 0.0
    for tokens in ([space, space, *plain], [*tokenizer.encode("the"), space, space, *tokenizer.encode("cat"), space]):
        *_, expected = walk(scorer, plain)
        *_, found = walk(scorer, tokens)
        assert float(found[EOS_ID]) == pytest.approx(float(expected[EOS_ID]), **EXACT)


@each_tokenizer
def test_look_ahead_spreads_the_probability_of_all_words_over_their_beginnings(tokenizer: Tokenizer) -> None:
    """The letters that may begin a word share what the unigrams give to all words, and no more."""
    state = scorer_of(tokenizer).start(1, 1)
    scores, _ = scorer_of(tokenizer).score(state)
    letters = [t for t in range(2, tokenizer.vocab_size) if len(token_text(tokenizer, t)) == 1]
    begins = [t for t in letters if any(word.startswith(token_text(tokenizer, t)) for word in SPELLINGS)]
    given_in_all = float(scores[0, begins].exp().sum())
    assert given_in_all == pytest.approx(sum(math.exp(unigram(word.upper())) for word in SPELLINGS))
    assert given_in_all < 1


@each_lookahead
@each_tokenizer
def test_rows_that_stay_or_change_places_score_as_alone(tokenizer: Tokenizer, lookahead: bool) -> None:
    scorer = scorer_of(tokenizer, lookahead=lookahead)
    generator = random.Random(0)
    rows = [[generator.randrange(2, tokenizer.vocab_size) for _ in range(6)] for _ in range(3)]
    rows += [tokenizer.encode("the dogs and")[:6], tokenizer.encode("on the mat")[:6], []]
    done = [0] * len(rows)
    order = list(range(len(rows)))
    state = scorer.start(2, 3)
    alone = [list(walk(scorer, row)) for row in rows]
    totals = torch.zeros(len(rows), dtype=torch.float64)
    for _ in range(15):
        scores, state = scorer.score(state)
        for place, row in enumerate(order):
            torch.testing.assert_close(totals[place] + scores[place, 1:], alone[row][done[row]][1:], atol=1e-9, rtol=0)
        shuffled = generator.sample(range(len(rows)), len(rows))
        order = [order[place] for place in shuffled]
        grows = [done[row] < len(rows[row]) and generator.random() < 0.6 for row in order]
        tokens = torch.tensor(
            [rows[row][done[row]] if grow else BLANK_ID for row, grow in zip(order, grows, strict=True)]
        )
        added = torch.where(tokens == BLANK_ID, 0.0, scores[shuffled, tokens])
        totals = totals[shuffled] + added
        state = scorer.advance(state, torch.tensor(shuffled), tokens)
        for row, grow in zip(order, grows, strict=True):
            done[row] += grow
    assert done == [len(row) for row in rows]


def test_a_state_can_be_used_twice() -> None:
    scorer = scorer_of(TOKENIZERS["char"])
    state = scorer.start(1, 2)
    first, scored = scorer.score(state)
    scorer.advance(scored, torch.tensor([0, 1]), torch.tensor([2, 3]))
    again, _ = scorer.score(scored)
    assert torch.equal(first, again)


@each_lookahead
def test_beam_search_finds_the_text_that_the_model_likes_best(lookahead: bool) -> None:
    model = make_model(["ab", "a", "b", "ba", "bb"], order=2, num_ngrams=30, seed=1)
    set_unigrams(model, {"</s>": -6.0})
    tokenizer = CharTokenizer([" ", "a", "b"])
    scorer = WordNgramScorer(model, tokenizer, unknown_penalty=-1.0, lookahead=lookahead)
    lengths = torch.tensor([5, 2])
    found = beam_search([Weighted("lm", 1.0, scorer)], lengths, beam_size=400, num_best=400)
    for hypotheses, length in zip(found, lengths.tolist(), strict=True):
        assert len(hypotheses) == sum(3**n for n in range(length + 1))
        texts = [tokenizer.decode(hypothesis.tokens).split() for hypothesis in hypotheses]
        in_model = model.sentence_log_probs(texts).tolist()
        for hypothesis, words, expected in zip(hypotheses, texts, in_model, strict=True):
            expected -= model.ids(words).count(model.unk_id)  # the penalty
            assert hypothesis.score == pytest.approx(expected, abs=1e-5)
            assert hypothesis.parts == {"lm": pytest.approx(expected, abs=1e-5)}


@each_lookahead
@each_tokenizer
def test_prefix_beam_search_whose_rows_stay_gives_each_text_what_the_model_does(
    tokenizer: Tokenizer, lookahead: bool
) -> None:
    logits = torch.randn(2, 8, tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    scorers = [Weighted("lm", 0.5, scorer_of(tokenizer, lookahead=lookahead))]
    found = prefix_beam_search(logits.log_softmax(dim=-1), torch.tensor([8, 5]), beam_size=20, scorers=scorers)
    assert len({hypothesis.tokens for hypotheses in found for hypothesis in hypotheses}) > 20
    for hypothesis in itertools.chain(*found):
        text = "".join(token_text(tokenizer, token) for token in hypothesis.tokens)
        assert hypothesis.parts["lm"] == pytest.approx(text_log_prob(text, lookahead=lookahead, ended=True), abs=1e-6)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_any_order_will_do(order: int) -> None:
    model = make_model(SPELLINGS, order=order)
    scorer = WordNgramScorer(model, TOKENIZERS["bpe"], unknown_penalty=0.0)
    *_, last = walk(scorer, TOKENIZERS["bpe"].encode("the cat hate"))
    assert float(last[EOS_ID]) == pytest.approx(float(model.sentence_log_probs([["the", "cat", "<unk>"]])), **EXACT)


def total(model: NgramModel, tokenizer: Tokenizer, text: str) -> float:
    """What a text of one word and its end get with a penalty of 100."""
    *_, last = walk(WordNgramScorer(model, tokenizer, unknown_penalty=-100.0), tokenizer.encode(text))
    return float(last[EOS_ID])


@pytest.mark.parametrize("word", ["Don\u2019t", "DON'T", "don't", "D.o.n't", "don`t"])
def test_words_are_normalised_where_they_must_be(word: str) -> None:
    model = make_model([word, "other"])
    tokenizer = CharTokenizer.train(["don't other words"])
    assert total(model, tokenizer, "don't") == pytest.approx(float(model.sentence_log_probs([[word]])), **EXACT)


def test_words_are_left_as_they_are_where_the_tokenizer_spells_them() -> None:
    model = make_model(["Don\u2019t", "don't"])
    tokenizer = CharTokenizer.train(["Don\u2019t don't"])
    for word in model.words[3:]:
        assert total(model, tokenizer, word) == pytest.approx(float(model.sentence_log_probs([[word]])), **EXACT)


@pytest.mark.parametrize("likely", ["CAT", "cat", "Cat"])
def test_of_words_with_one_spelling_the_most_probable_counts(likely: str) -> None:
    model = set_unigrams(make_model(["CAT", "cat", "Cat"]), {"CAT": -3.0, "cat": -3.0, "Cat": -3.0, likely: -1.0})
    tokenizer = CharTokenizer.train(["cat"])
    assert total(model, tokenizer, "cat") == pytest.approx(float(model.sentence_log_probs([[likely]])), **EXACT)


@pytest.mark.parametrize(("word", "text"), [("<UNK>", "unk"), ("well-known", "wellknown"), ("\u2026", "")])
def test_what_is_no_word_is_never_spelled(word: str, text: str) -> None:
    model = make_model(["well", "known", "unknown", word])
    tokenizer = CharTokenizer.train(["well known unk"])
    expected = float(model.sentence_log_probs([["<unk>"] if text else []])) - 100 * bool(text)
    assert total(model, tokenizer, text) == pytest.approx(expected, **EXACT)


def test_impossible_words_cost_much_but_never_make_a_score_that_is_no_number() -> None:
    nothing = dict.fromkeys(["<unk>", "cat", "dog"], -math.inf)
    model = set_unigrams(make_model(["cat", "dog", "do"], order=1), nothing)
    tokenizer = CharTokenizer.train(["cat dog x"])
    for text in ("cat", "do", "dog", "x cat"):
        scorer = WordNgramScorer(model, tokenizer, unknown_penalty=-1.0)
        for scores in walk(scorer, tokenizer.encode(text)):
            assert scores.isfinite().all()
        assert (float(scores[EOS_ID]) < -600) == (text != "do")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_on_the_gpu_are_those_on_the_cpu() -> None:
    tokenizer = TOKENIZERS["bpe"]
    on_gpu = WordNgramScorer(make_model([word.upper() for word in SPELLINGS]).cuda(), tokenizer, unknown_penalty=-1.0)
    on_cpu = WordNgramScorer(make_model([word.upper() for word in SPELLINGS]), tokenizer, unknown_penalty=-1.0)
    gpu, cpu = on_gpu.start(2, 1), on_cpu.start(2, 1)
    for token in tokenizer.encode("the dogs hate that"):
        (gpu_scores, gpu), (cpu_scores, cpu) = on_gpu.score(gpu), on_cpu.score(cpu)
        torch.testing.assert_close(gpu_scores.cpu(), cpu_scores)
        rows, tokens = torch.tensor([1, 0]), torch.tensor([token, BLANK_ID])
        gpu, cpu = on_gpu.advance(gpu, rows.cuda(), tokens.cuda()), on_cpu.advance(cpu, rows, tokens)


# Tokens


def make_token_model(tokenizer: Tokenizer) -> NgramModel:
    return make_model([token.replace(" ", "\u2581") for token in tokenizer.tokens[2:]], num_ngrams=400)


@each_tokenizer
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_token_scores_add_up_to_the_log_probability_of_the_sequence(tokenizer: Tokenizer, data: st.DataObject) -> None:
    model = make_token_model(tokenizer)
    tokens = data.draw(st.lists(st.integers(2, tokenizer.vocab_size - 1), max_size=8))
    written = [tokenizer.tokens[token].replace(" ", "\u2581") for token in tokens]
    *_, last = walk(TokenNgramScorer(model, tokenizer), tokens)
    assert last.shape == (tokenizer.vocab_size,)
    assert float(last[EOS_ID]) == pytest.approx(float(model.sentence_log_probs([written])), abs=1e-4)


@each_tokenizer
def test_token_rows_stay_and_change_places(tokenizer: Tokenizer) -> None:
    scorer = TokenNgramScorer(make_token_model(tokenizer), tokenizer)
    state = scorer.advance(scorer.start(2, 1), torch.tensor([0, 1]), torch.tensor([2, 3]))
    scores, state = scorer.score(state)
    swapped, _ = scorer.score(scorer.advance(state, torch.tensor([1, 0]), torch.tensor([BLANK_ID, BLANK_ID])))
    assert torch.equal(swapped[:, 1:], scores.flip(0)[:, 1:])
    one_stays, _ = scorer.score(scorer.advance(state, torch.tensor([0, 0]), torch.tensor([BLANK_ID, 4])))
    *_, grown = walk(scorer, [2, 4])
    assert torch.equal(one_stays[0, 1:], scores[0, 1:])
    assert float((grown - one_stays[1])[1:].std()) < 1e-5  # but for what the first tokens had


@each_tokenizer
def test_models_of_tokens_are_told_from_models_of_words(tokenizer: Tokenizer) -> None:
    assert fits_tokens(make_token_model(tokenizer), tokenizer)
    assert not fits_tokens(MODEL, tokenizer)
    others = next(other for other in TOKENIZERS.values() if other is not tokenizer)
    assert not fits_tokens(make_token_model(others), tokenizer)
    assert not fits_tokens(make_model([*tokenizer.tokens[2:], "\u2581", "word"]), tokenizer)


# Errors


def test_a_model_that_lacks_tokens_is_refused() -> None:
    tokenizer = TOKENIZERS["char"]
    model = make_model([token for token in tokenizer.tokens[2:] if token not in "aeio "])
    with pytest.raises(ValueError, match=r"lacks 4 of the tokenizer's 13 tokens: ▁, a, e, o; train it on text that"):
        TokenNgramScorer(model, tokenizer)
    with pytest.raises(ValueError, match=r"lacks 13 of .* tokens: ▁, .*, …; train"):
        TokenNgramScorer(MODEL, tokenizer)


@pytest.mark.parametrize("penalty", [1.0, -math.inf, math.nan])
def test_a_penalty_out_of_range_is_refused(penalty: float) -> None:
    with pytest.raises(ValueError, match=rf"unknown_penalty is {penalty}; it must be a finite number that is at most"):
        WordNgramScorer(MODEL, TOKENIZERS["char"], unknown_penalty=penalty)


def test_a_model_of_another_language_is_refused() -> None:
    model = make_model(["cat", "собака", "кот", "мат"])
    message = (
        "does not fit the tokenizer, whose characters spell 1 of its 4 words, not 'собака' for one; train it on text"
    )
    with pytest.raises(ValueError, match=message):
        WordNgramScorer(model, TOKENIZERS["char"], unknown_penalty=0.0)
    WordNgramScorer(make_model(["cat", "dog", "кот", "мат"]), TOKENIZERS["char"], unknown_penalty=0.0)  # half is enough


def test_a_model_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="whose characters spell 0 of its 0 words; train it"):
        WordNgramScorer(make_model([]), TOKENIZERS["char"], unknown_penalty=0.0)


def test_a_model_of_tokens_is_refused_as_one_of_words() -> None:
    with pytest.raises(
        ValueError, match=r"has the word '▁.*', so it is one of tokens, but not of just this tokenizer's"
    ):
        WordNgramScorer(make_token_model(TOKENIZERS["bpe"]), TOKENIZERS["char"], unknown_penalty=0.0)


def test_a_token_of_two_words_is_refused() -> None:
    tokenizer = CharTokenizer.train(["a"])
    tokenizer.texts[-1] = " a b"
    with pytest.raises(ValueError, match="token ' a b' spans more than one word"):
        WordNgramScorer(MODEL, tokenizer, unknown_penalty=0.0)
