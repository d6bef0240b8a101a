"""Words over phones against a reference that writes out all sentences, with every pronunciation of every word."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from alignments import transcript_probabilities
from random_ngrams import make_model
from torch import Tensor

from asr.decoding.hypothesis import Hypothesis
from asr.decoding.lexicon_scorer import LexiconScorer
from asr.decoding.prefix_beam import prefix_beam_search
from asr.decoding.scorers import Weighted
from asr.decoding.spelling import LOG_ZERO
from asr.pronunciation import Lexicon
from asr.tokenizer import BLANK_ID, EOS_ID, CharTokenizer

PHONES = ["t", "u", "a"]
SPOKEN = {
    "to": [("t", "u"), ("t", "a")],  # two pronunciations
    "two": [("t", "u")],  # sounds like the first of these
    "too": [("t", "u")],
    "at": [("a", "t")],
    "a": [("a",)],
    "tut": [("t", "u", "t")],  # goes on where another word ends
    "atta": [("a", "t", "t", "a")],  # a phone twice
}
WORDS = list(SPOKEN)
TOKENIZER = CharTokenizer.train(["to two too at a tut atta silent"])
MODEL = make_model([*WORDS, "silent"])
LEXICON = Lexicon(SPOKEN)
EXACT = {"abs": 1e-9, "rel": 0}


def make_scorer() -> LexiconScorer:
    return LexiconScorer(MODEL, LEXICON, PHONES, TOKENIZER)


@dataclass(frozen=True)
class Sentence:
    """Words with a pronunciation each."""

    words: tuple[str, ...]
    phones: tuple[int, ...]

    def log_prob(self, *, ended: bool = True) -> float:
        """In the n-gram model."""
        context, total = MODEL.start(1), 0.0
        for index in MODEL.ids([*self.words, *(["</s>"] if ended else [])]):
            total += float(MODEL.score(context, torch.tensor([[index]])))
            context = MODEL.extend(context, torch.tensor([index]))
        return total


def sentences(most: int) -> Iterator[Sentence]:
    """All of at most so many phones."""
    spoken = [(word, tuple(PHONES.index(phone) + 1 for phone in own)) for word, each in SPOKEN.items() for own in each]
    waiting = [Sentence((), ())]
    while waiting:
        each = waiting.pop()
        yield each
        longer = [Sentence((*each.words, word), each.phones + phones) for word, phones in spoken]
        waiting += [one for one in longer if len(one.phones) <= most]


def tokens_of(scorer: LexiconScorer, sentence: Sequence[tuple[str, tuple[str, ...]]]) -> list[int]:
    """The scorer's tokens of words with pronunciations, found by what it reads in them."""
    tokens: list[int] = []
    for word, pronunciation in sentence:
        said = scorer.spell(tokens)
        inner = [forms_of(scorer, phone)[0] for phone in pronunciation[:-1]]
        wanted = tuple(TOKENIZER.encode(f"{TOKENIZER.decode(said)} {word}"))
        last = [
            form for form in forms_of(scorer, pronunciation[-1])[1:] if scorer.spell([*tokens, *inner, form]) == wanted
        ]
        assert len(last) == 1, "a word has one form of its last phone"
        tokens += [*inner, *last]
    return tokens


def forms_of(scorer: LexiconScorer, phone: str) -> list[int]:
    """All tokens that are heard as a phone; the first stands within words."""
    return (scorer.labels == PHONES.index(phone) + 1).nonzero()[:, 0].tolist()


def given(scorer: LexiconScorer, tokens: Sequence[int]) -> tuple[float, Tensor]:
    """What a row with these tokens has been given, and the scores of what may follow, (V',)."""
    state, total = scorer.start(1, 1), 0.0
    for token in tokens:
        scores, state = scorer.score(state)
        total += float(scores[0, token])
        state = scorer.advance(state, torch.tensor([0]), torch.tensor([token]))
    return total, scorer.score(state)[0][0]


def test_every_phone_has_a_form_within_words_and_one_for_every_word_that_sounds_alike() -> None:
    scorer = make_scorer()
    assert [len(forms_of(scorer, phone)) for phone in PHONES] == [4, 4, 4]  # to, two and too
    assert scorer.labels[[BLANK_ID, EOS_ID]].tolist() == [BLANK_ID, BLANK_ID]


@pytest.mark.parametrize("words", [[], ["a"], ["too"], ["two", "at", "tut"], ["to", "to", "atta", "a"]])
def test_whole_words_have_been_given_just_what_the_model_says(words: list[str]) -> None:
    scorer = make_scorer()
    for chosen in itertools.product(*(SPOKEN[word] for word in words)):
        sentence = list(zip(words, chosen, strict=True))
        tokens = tokens_of(scorer, sentence)
        assert TOKENIZER.decode(scorer.spell(tokens)) == " ".join(words)
        total, following = given(scorer, tokens)
        expected = Sentence(tuple(words), ())
        assert total == pytest.approx(expected.log_prob(ended=False), **EXACT)
        assert total + float(following[EOS_ID]) == pytest.approx(expected.log_prob(), **EXACT)


def test_a_begun_word_has_been_given_the_mass_of_all_that_begin_so() -> None:
    scorer = make_scorer()
    unigrams = MODEL.score_all(MODEL.empty(1))[0].double().exp()
    before = tokens_of(scorer, [("at", ("a", "t"))])
    total, _ = given(scorer, before)
    begun, following = given(scorer, [*before, forms_of(scorer, "t")[0]])
    # Of two pronunciations each counts: words that begin with t.
    masses = [float(unigrams[MODEL.ids([word])[0]]) * len(SPOKEN[word]) for word in ("to", "two", "too", "tut")]
    assert begun - total == pytest.approx(math.log(sum(masses)), **EXACT)
    assert float(following[EOS_ID]) == LOG_ZERO, "a sentence ends within a word only where nothing else is found"
    assert all(float(following[form]) == -math.inf for form in forms_of(scorer, "t"))  # no word begins with t t


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("weight", "bonus"), [(1.0, 0.0), (0.5, 0.4)])
def test_a_wide_search_finds_all_sentences_with_their_scores(seed: int, weight: float, bonus: float) -> None:
    """Also where words meet in the same phone, which needs a blank between."""
    log_probs = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(1)
    heard = transcript_probabilities(log_probs)
    expected: dict[tuple[tuple[str, ...], tuple[int, ...]], tuple[float, float]] = {}
    for each in sentences(5):
        if each.phones in heard:
            score = math.log(heard[each.phones]) + weight * each.log_prob() + bonus * len(each.phones)
            expected[each.words, each.phones] = (score, math.log(heard[each.phones]))
    scorer = make_scorer()
    [found] = prefix_beam_search(
        log_probs[None],
        torch.tensor([5]),
        beam_size=3000,
        scorers=[Weighted("ngram", weight, scorer)],
        length_bonus=bonus,
        labels=scorer.labels,
    )
    whole = [each for each in found if each.parts["ngram"] > LOG_ZERO / 2]
    assert found[: len(whole)] == whole and len(whole) == len(expected) > 100
    for each, (words, phones) in zip(whole, sorted(expected, key=lambda key: -expected[key][0]), strict=True):
        score, ctc = expected[words, phones]
        assert each.score == pytest.approx(score, abs=1e-6)
        assert each.parts["ctc"] == pytest.approx(ctc, abs=1e-6)
        assert TOKENIZER.decode(scorer.spell(each.tokens)) == " ".join(words)


def search(scorer: LexiconScorer, log_probs: Tensor, lengths: list[int]) -> list[list[Hypothesis]]:
    return prefix_beam_search(
        log_probs, torch.tensor(lengths), beam_size=8, scorers=[Weighted("ngram", 0.7, scorer)], labels=scorer.labels
    )


def test_a_batch_of_n_equals_n_batches_of_one() -> None:
    log_probs = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(4)).mul(2).log_softmax(2)
    lengths = [9, 2, 6]
    scorer = make_scorer()
    for row, found in enumerate(search(scorer, log_probs, lengths)):
        [alone] = search(scorer, log_probs[row : row + 1, : lengths[row]], lengths[row : row + 1])
        assert [each.tokens for each in found] == [each.tokens for each in alone]
        assert [each.score for each in found] == pytest.approx([each.score for each in alone])


def test_words_without_a_pronunciation_and_phones_that_nobody_knows_take_no_part() -> None:
    scorer = make_scorer()
    log_probs = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    said = {
        word
        for each in search(scorer, log_probs, [6])[0]
        for word in TOKENIZER.decode(scorer.spell(each.tokens)).split()
    }
    assert said and said <= set(WORDS)
    strange = Lexicon(SPOKEN | {"silent": [("s",)], "at": [("x", "t")]})
    without = LexiconScorer(MODEL, strange, PHONES, TOKENIZER)
    assert len(without.score(without.start(1, 1))[0][0]) == len(scorer.score(scorer.start(1, 1))[0][0])


def test_what_is_no_whole_word_says_nothing() -> None:
    scorer = make_scorer()
    inner, *endings = forms_of(scorer, "t")
    assert scorer.spell([inner]) == ()
    assert scorer.spell([endings[0]]) == ()  # no word is spoken so
    assert scorer.spell([forms_of(scorer, "a")[-1]]) == ()  # the third of a single word


def test_a_lexicon_of_other_words_is_an_error() -> None:
    message = (
        r"^the lexicon has pronunciations of 1 of the language model's 8 words, in phones that the recogniser knows"
    )
    with pytest.raises(ValueError, match=message):
        LexiconScorer(MODEL, Lexicon({"a": [("a",)], "b": [("t",)]}), PHONES, TOKENIZER)


def test_only_what_is_looked_at_need_be_scored() -> None:
    scorer = make_scorer()
    state = scorer.start(2, 2)
    rows, tokens = torch.arange(4), torch.tensor([forms_of(scorer, "t")[0], 0, forms_of(scorer, "a")[0], 0])
    state = scorer.advance(scorer.score(state)[1], rows, tokens)
    whole, _ = scorer.score(state)
    wanted = torch.tensor(
        [[*forms_of(scorer, "u"), *forms_of(scorer, "u")], [*forms_of(scorer, "t"), *forms_of(scorer, "a")]]
    )
    part, _ = scorer.score(state, wanted)
    for row in range(4):
        own = [EOS_ID, *wanted[row // 2].tolist()]
        assert torch.equal(part[row, own], whole[row, own])
    none, _ = scorer.score(state, wanted[:, :0])
    assert torch.equal(none[:, EOS_ID], whole[:, EOS_ID])


@pytest.mark.parametrize("weight", [1e-6, 1.0])
def test_what_is_no_sentence_is_never_found_however_little_the_model_weighs(weight: float) -> None:
    """The phones t t t are heard clearly, but no words are spoken so."""
    scorer = make_scorer()
    log_probs = torch.full((1, 5, 4), -30.0)
    for frame, label in enumerate([1, 0, 1, 0, 1]):
        log_probs[0, frame, label] = 0.0
    settings = {"beam_size": 50, "labels": scorer.labels}
    [found] = prefix_beam_search(log_probs, torch.tensor([5]), scorers=[Weighted("ngram", weight, scorer)], **settings)
    last_forms = {form for phone in PHONES for form in forms_of(scorer, phone)[1:]}
    for each in found:
        said = TOKENIZER.decode(scorer.spell(each.tokens)).split()
        assert len(said) == sum(token in last_forms for token in each.tokens)


def test_an_utterance_that_ends_within_a_word_keeps_the_words_before_it() -> None:
    """With a beam of one, that is all that there is."""
    scorer = make_scorer()
    log_probs = torch.full((1, 7, 4), -30.0)
    for frame, label in enumerate([3, 1, 0, 3, 1, 0, 1]):  # a t, and the beginning of a t t a
        log_probs[0, frame, label] = 0.0
    [[found]] = prefix_beam_search(
        log_probs, torch.tensor([7]), beam_size=1, scorers=[Weighted("ngram", 1e-3, scorer)], labels=scorer.labels
    )
    assert found.parts["ngram"] < LOG_ZERO / 2 and found.score > -math.inf
    assert len(TOKENIZER.decode(scorer.spell(found.tokens)).split()) >= 1


def test_a_model_of_tokens_is_an_error() -> None:
    tokens = make_model([token.replace(" ", "\u2581") for token in TOKENIZER.tokens[2:]])
    with pytest.raises(ValueError, match=r"^it is a language model of tokens, but lexicon search needs one of words$"):
        LexiconScorer(tokens, LEXICON, PHONES, TOKENIZER)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_what_a_processor_finds() -> None:
    log_probs = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(4)).mul(2).log_softmax(2)
    on_gpu = LexiconScorer(make_model([*WORDS, "silent"]).cuda(), LEXICON, PHONES, TOKENIZER)
    expected = search(make_scorer(), log_probs, [9, 2, 6])
    found = prefix_beam_search(
        log_probs.cuda(),
        torch.tensor([9, 2, 6], device="cuda"),
        beam_size=8,
        scorers=[Weighted("ngram", 0.7, on_gpu)],
        labels=on_gpu.labels,
    )
    for one, other in zip(found, expected, strict=True):
        assert [on_gpu.spell(each.tokens) for each in one] == [make_scorer().spell(each.tokens) for each in other]
        assert [each.score for each in one] == pytest.approx([each.score for each in other], abs=1e-4)
