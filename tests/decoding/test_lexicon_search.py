"""Words over phones against two references: one writes out all sentences, one is a plain loop over prefixes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from alignments import transcript_probabilities
from bonuses import count_bonuses
from random_ngrams import make_model
from torch import Tensor

from asr.decoding.hotwords import WordHotwords
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.lexicon_graph import NO_WORD, LexiconGraph
from asr.decoding.lexicon_search import NOTHING, LexiconSearchConfig, lexicon_search
from asr.decoding.spelling import LOG_ZERO
from asr.pronunciation import Lexicon
from asr.tokenizer import CharTokenizer

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
UNIGRAMS = MODEL.score_all(MODEL.empty(1))[0].double()
# A word with the numbers of its phones, once for each pronunciation.
FORMS = [
    (word, tuple(PHONES.index(phone) + 1 for phone in pronunciation))
    for word, own in SPOKEN.items()
    for pronunciation in own
]


def make_graph(expected: dict[str, list[tuple[str, ...]]] | None = None) -> LexiconGraph:
    return LexiconGraph(MODEL, LEXICON, PHONES, TOKENIZER, expected=expected)


def make_log_probs(*shape: int, seed: int, sharpness: float = 1.0) -> Tensor:
    noise = torch.randn(*shape, 1 + len(PHONES), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sharpness * noise).log_softmax(-1)


def search(log_probs: Tensor, lengths: list[int] | None = None, **settings: float) -> list[list[Hypothesis]]:
    config = LexiconSearchConfig(**({"beam_size": 8, "num_best": 10**6} | settings))  # type: ignore[arg-type]
    return lexicon_search(log_probs, torch.tensor(lengths or [log_probs.shape[1]]), make_graph(), config)


def said(hypothesis: Hypothesis) -> tuple[str, ...]:
    return tuple(TOKENIZER.decode(hypothesis.tokens).split())


@dataclass(frozen=True)
class Prefix:
    """Words that have ended, with a pronunciation each, and the phones of one that has begun."""

    words: tuple[str, ...] = ()
    spoken: tuple[int, ...] = ()
    begun: tuple[int, ...] = ()
    forms: tuple[tuple[int, ...], ...] = ()

    @property
    def phones(self) -> tuple[int, ...]:
        return self.spoken + self.begun

    @property
    def last(self) -> int:
        return (0, *self.phones)[-1]

    @property
    def longer(self) -> float:
        """Summed probability of the words that go on so."""
        return sum(
            math.exp(UNIGRAMS[MODEL.ids([word])[0]])
            for word, phones in FORMS
            if len(phones) > len(self.begun) and phones[: len(self.begun)] == self.begun
        )

    def context(self) -> Tensor:
        context = MODEL.start(1)
        for index in MODEL.ids(self.words):
            context = MODEL.extend(context, torch.tensor([index]))
        return context

    def language(self, *, ended: bool = False) -> float:
        """In the n-gram model, with what a begun word is given in advance."""
        context, total = MODEL.start(1), 0.0
        for index in MODEL.ids([*self.words, *(["</s>"] if ended else [])]):
            total += float(MODEL.score(context, torch.tensor([[index]])))
            context = MODEL.extend(context, torch.tensor([index]))
        return total + (math.log(self.longer) if self.begun else 0.0)

    def grown(self, phone: int) -> "Iterator[Prefix]":
        begun = (*self.begun, phone)
        within = Prefix(self.words, self.spoken, begun, self.forms)
        if within.longer:
            yield within
        for word, phones in FORMS:
            if phones == begun:
                yield Prefix((*self.words, word), self.spoken + begun, (), (*self.forms, begun))


def sentences(most: int) -> Iterator[Prefix]:
    """All of at most so many phones."""
    waiting = [Prefix()]
    while waiting:
        each = waiting.pop()
        yield each
        longer = [
            Prefix((*each.words, word), each.spoken + phones, (), (*each.forms, phones)) for word, phones in FORMS
        ]
        waiting += [one for one in longer if len(one.spoken) <= most]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("weight", "bonus"), [(1.0, 0.0), (0.5, 0.4)])
def test_a_wide_search_finds_all_sentences_with_their_scores(seed: int, weight: float, bonus: float) -> None:
    """Also where words meet in the same phone, which needs a blank between; of two pronunciations the better counts."""
    log_probs = make_log_probs(5, seed=seed)
    heard = transcript_probabilities(log_probs)
    expected: dict[tuple[str, ...], tuple[float, float]] = {}
    for each in sentences(5):
        if each.spoken in heard:
            ctc = math.log(heard[each.spoken])
            score = ctc + weight * each.language(ended=True) + bonus * len(each.spoken)
            expected[each.words] = max(expected.get(each.words, (-math.inf, 0.0)), (score, ctc))
    [found] = search(log_probs[None], beam_size=3000, ngram_weight=weight, length_bonus=bonus, most_alike=3000)
    assert len(found) == len(expected) > 80
    for each, words in zip(found, sorted(expected, key=lambda key: -expected[key][0]), strict=True):
        score, ctc = expected[words]
        assert said(each) == words
        assert each.score == pytest.approx(score, abs=1e-6)
        assert each.parts["phones"] == pytest.approx(ctc, abs=1e-6)


Beam = dict[Prefix, tuple[float, float]]


def slow_search(log_probs: list[list[float]], config: LexiconSearchConfig) -> Beam:
    """Frame by frame and prefix by prefix, as Hannun et al. 2014 write it, with what is pruned and recombined."""
    beam: Beam = {Prefix(): (0.0, -math.inf)}
    for frame in log_probs:
        tried = [phone for phone in (1, 2, 3) if frame[phone] > max(frame) - config.token_margin]
        stayed = {each: (add(*own) + frame[0], own[1] + frame[each.last]) for each, own in beam.items()}
        if not tried:
            beam = stayed
            continue
        found = dict(stayed)
        bound = max(total(each, own, config) for each, own in stayed.items()) - config.beam_margin
        for each, own in beam.items():
            for phone in tried:
                ctc = (own[0] if phone == each.last else add(*own)) + frame[phone]
                others = total(each, (0.0, -math.inf), config) + config.length_bonus
                for longer in each.grown(phone):
                    # A word that ends may come above the bound by its context, one that goes on may not.
                    if ctc + others > bound or not longer.begun:
                        blank, token = found.get(longer, (-math.inf, -math.inf))
                        found[longer] = (blank, add(token, ctc))
        bound = max(total(each, own, config) for each, own in found.items()) - config.beam_margin
        beam = {}
        alike: dict[tuple[object, ...], int] = {}
        for each, own in sorted(found.items(), key=lambda item: -total(*item, config)):
            future = (each.begun, each.last, *each.context()[0].tolist())
            alike[future] = alike.get(future, 0) + 1
            if alike[future] <= config.most_alike and len(beam) < config.beam_size and total(each, own, config) > bound:
                beam[each] = own
    return beam


def total(prefix: Prefix, own: tuple[float, float], config: LexiconSearchConfig) -> float:
    return add(*own) + config.ngram_weight * prefix.language() + config.length_bonus * len(prefix.phones)


def add(first: float, second: float) -> float:
    return float(torch.logaddexp(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"beam_size": 4},
        {"beam_size": 30, "most_alike": 1},
        {"beam_size": 30, "most_alike": 2, "length_bonus": 0.5},
        {"beam_size": 100, "beam_margin": 3.0},
        {"beam_size": 12, "token_margin": 1.5, "ngram_weight": 0.3},
    ],
)
def test_a_narrow_search_keeps_what_a_plain_loop_keeps(settings: dict[str, float], seed: int) -> None:
    log_probs = make_log_probs(9, seed=seed, sharpness=2.0)
    config = LexiconSearchConfig(**settings)  # type: ignore[arg-type]
    expected: dict[tuple[str, ...], float] = {}
    kept = slow_search(log_probs.tolist(), config)
    ended = [each for each in kept if not each.begun]
    for each in ended or kept:
        own = kept[each]
        end = each.language(ended=True) - each.language() if not each.begun else LOG_ZERO
        score = total(each, own, config) + config.ngram_weight * end
        expected[each.words] = max(score, expected.get(each.words, -math.inf))
    [found] = search(log_probs[None], **settings)
    assert {said(each): each.score for each in found} == pytest.approx(expected, abs=1e-6)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_prefixes_that_nothing_tells_apart_any_more_make_room_for_others() -> None:
    """Of homophones in the past only so many stay; without that they fill the beam."""
    log_probs = make_log_probs(1, 40, seed=5, sharpness=3.0)
    found = {most: len(search(log_probs, beam_size=60, most_alike=most)[0]) for most in (1, 2, 1000)}
    assert found[1] < found[2] <= found[1000]
    log_probs = make_log_probs(30, 40, seed=5, sharpness=3.0)
    best = {
        most: sum(own[0].score for own in search(log_probs, [40] * 30, beam_size=12, most_alike=most))
        for most in (2, 1000)
    }
    assert best[2] > best[1000] + 1, "with room for others a narrow beam finds better"


def test_a_batch_of_n_equals_n_batches_of_one() -> None:
    log_probs = make_log_probs(3, 9, seed=4, sharpness=2.0)
    lengths = [9, 2, 6]
    log_probs[1, 2:] = math.nan  # whatever stands behind a length
    for row, found in enumerate(search(log_probs, lengths)):
        [alone] = search(log_probs[row : row + 1, : lengths[row]], lengths[row : row + 1])
        assert found == alone


def test_a_begun_word_has_the_mass_of_all_that_begin_so() -> None:
    graph = make_graph()
    node = int(graph.children[0, PHONES.index("t")])
    # Of two pronunciations each counts: words that begin with t.
    masses = [math.exp(UNIGRAMS[MODEL.ids([word])[0]]) * len(SPOKEN[word]) for word in ("to", "two", "too", "tut")]
    assert float(graph.log_longer[node]) == pytest.approx(math.log(sum(masses)), abs=1e-9)
    assert graph.goes_on[node] and not graph.ends[node]
    assert int(graph.children[node, PHONES.index("t")]) == 0, "no word begins with t t"


def test_the_prior_is_how_much_more_or_less_often_a_phone_is_said() -> None:
    """Log-frequencies in words by their probability, less their mean."""
    heard = dict.fromkeys((1, 2, 3), 0.0)
    for word, phones in FORMS:
        for phone in phones:
            heard[phone] += math.exp(UNIGRAMS[MODEL.ids([word])[0]])
    shares = torch.tensor(list(heard.values()), dtype=torch.float64) / sum(heard.values())
    prior = make_graph().log_prior
    assert float((shares * prior).sum()) == pytest.approx(0.0, abs=1e-9)
    assert (prior - prior[0]).tolist() == pytest.approx((shares.log() - shares.log()[0]).tolist(), abs=1e-9)


def test_a_phone_of_no_word_counts_as_the_rarest() -> None:
    prior = LexiconGraph(MODEL, LEXICON, [*PHONES, "x"], TOKENIZER).log_prior
    assert prior[3] == prior[:3].min()


def test_the_prior_is_taken_off_what_is_heard() -> None:
    log_probs = make_log_probs(1, 9, seed=7)
    shifted = log_probs.clone()
    shifted[..., 1:] -= 0.6 * make_graph().log_prior
    assert search(log_probs, prior_weight=0.6) == search(shifted)
    assert search(log_probs, prior_weight=0.6) != search(log_probs)


def test_words_without_a_pronunciation_and_phones_that_nobody_knows_take_no_part() -> None:
    words = {word for each in search(make_log_probs(1, 6, seed=0))[0] for word in said(each)}
    assert words and words <= set(WORDS)
    strange = Lexicon(SPOKEN | {"silent": [("s",)], "at": [("x", "t")]})
    graph = LexiconGraph(MODEL, strange, PHONES, TOKENIZER)
    [without] = lexicon_search(
        make_log_probs(1, 6, seed=0), torch.tensor([6]), graph, LexiconSearchConfig(beam_size=500)
    )
    words = {word for each in without for word in said(each)}
    assert words <= set(WORDS) - {"at"} and "a" in words


def test_a_pronunciation_that_is_given_twice_counts_once() -> None:
    twice = LexiconGraph(MODEL, Lexicon({word: own * 2 for word, own in SPOKEN.items()}), PHONES, TOKENIZER)
    log_probs = make_log_probs(1, 6, seed=0)
    config = LexiconSearchConfig(beam_size=500, num_best=10**6)
    assert lexicon_search(log_probs, torch.tensor([6]), twice, config) == search(log_probs, beam_size=500)


def test_no_more_hypotheses_are_returned_than_are_asked_for() -> None:
    log_probs = make_log_probs(2, 9, seed=3)
    whole = search(log_probs, [9, 9], beam_size=100)
    assert search(log_probs, [9, 9], beam_size=100, num_best=5) == [own[:5] for own in whole]


def test_a_lexicon_of_other_words_is_an_error() -> None:
    message = (
        r"^the lexicon has pronunciations of 1 of the language model's 8 words, in phones that the recogniser knows"
    )
    with pytest.raises(ValueError, match=message):
        LexiconGraph(MODEL, Lexicon({"a": [("a",)], "b": [("t",)]}), PHONES, TOKENIZER)


def test_a_model_of_tokens_is_an_error() -> None:
    tokens = make_model([token.replace(" ", "\u2581") for token in TOKENIZER.tokens[2:]])
    with pytest.raises(ValueError, match=r"^it is a language model of tokens, but lexicon search needs one of words$"):
        LexiconGraph(tokens, LEXICON, PHONES, TOKENIZER)


@pytest.mark.parametrize("weight", [1e-6, 1.0])
def test_what_is_no_sentence_is_never_found_however_little_the_model_weighs(weight: float) -> None:
    """The phones t t t are heard clearly, but no words are spoken so."""
    log_probs = torch.full((1, 5, 4), -30.0)
    for frame, label in enumerate([1, 0, 1, 0, 1]):
        log_probs[0, frame, label] = 0.0
    [found] = search(log_probs, beam_size=50, ngram_weight=weight)
    for each in found:
        clear = [PHONES.index(phone) + 1 for word in said(each) for phone in SPOKEN[word][0]]
        assert each.parts["phones"] < -29 or each.parts["ngram"] < LOG_ZERO / 2, clear


def test_an_utterance_that_ends_within_a_word_keeps_the_words_before_it() -> None:
    """With a beam of one, that is all that there is."""
    log_probs = torch.full((1, 7, 4), -30.0)
    for frame, label in enumerate([3, 1, 0, 3, 1, 0, 1]):  # a t, and the beginning of a t t a
        log_probs[0, frame, label] = 0.0
    [[found]] = search(log_probs, beam_size=1, ngram_weight=1e-3)
    assert found.parts["ngram"] < LOG_ZERO / 2 and found.score > -math.inf
    assert len(said(found)) >= 1


def test_where_nothing_is_possible_nothing_is_found() -> None:
    log_probs = torch.full((1, 3, 4), -math.inf)
    log_probs[0, :, 2] = 0.0  # no word begins with u, and a blank is impossible
    assert search(log_probs) == [[NOTHING]]


def test_log_probabilities_that_are_no_numbers_are_an_error() -> None:
    log_probs = make_log_probs(1, 3, seed=1)
    log_probs[0, 1, 2] = math.nan
    with pytest.raises(ValueError, match=r"^the CTC log-probabilities have NaN in them"):
        search(log_probs)


PHRASES = {"two at": 2.0, "at a": 1.5, "a": -0.7, "tau": 3.0, "tau to": 0.5, "too": 0.25}
EXPECTED = {"tau": [("t", "a", "u")], **{word: SPOKEN[word] for word in ("two", "at", "a", "to", "too")}}


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_every_sentence_gets_the_bonuses_of_its_phrases(weight: float) -> None:
    """Whatever was given in advance within words and phrases is settled; all else is as without."""
    graph, log_probs = make_graph(EXPECTED), make_log_probs(1, 6, seed=4)
    config = LexiconSearchConfig(beam_size=9000, num_best=10**6, most_alike=9000, hotword_weight=weight)
    hotwords = WordHotwords(PHRASES, TOKENIZER, graph)
    [plain] = lexicon_search(log_probs, torch.tensor([6]), graph, config)
    [found] = lexicon_search(log_probs, torch.tensor([6]), graph, config, hotwords=hotwords)
    others = {each.tokens: each for each in plain}
    assert len(found) == len(plain) > 200
    assert sum("tau" in said(each) for each in found) > 10
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    for each in found:
        bonus = count_bonuses(PHRASES, " ".join(said(each)))
        other = others.pop(each.tokens)
        assert each.parts["hotwords"] == pytest.approx(bonus, abs=1e-5)
        assert each.score == pytest.approx(other.score + weight * bonus, abs=1e-5)
        assert {**other.parts, "hotwords": bonus} == pytest.approx(each.parts, abs=1e-5)


def test_single_words_need_no_state_of_their_own() -> None:
    graph = make_graph(EXPECTED)
    assert WordHotwords(dict.fromkeys(["two", "at", "a", "tau"], 2.0), TOKENIZER, graph).pending.tolist() == [0.0]
    assert len(WordHotwords({"two at a": 3.0, "two": 1.0}, TOKENIZER, graph).pending) == 3


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_a_hotword_is_found_that_would_be_dropped_before_it_ends(seed: int) -> None:
    graph = make_graph({"atta": SPOKEN["atta"]})
    log_probs = make_log_probs(1, 7, seed=seed)
    hotwords = WordHotwords({"atta": 9.0}, TOKENIZER, graph)
    config = LexiconSearchConfig(beam_size=4, beam_margin=8.0)
    [plain] = lexicon_search(log_probs, torch.tensor([7]), graph, config)
    [found] = lexicon_search(log_probs, torch.tensor([7]), graph, config, hotwords=hotwords)
    assert not any("atta" in said(each) for each in plain)
    assert "atta" in said(found[0])


def test_a_word_that_the_model_lacks_is_as_probable_as_its_rarest() -> None:
    graph = make_graph({"tau": [("t", "a", "u")]})
    [found] = lexicon_search(
        make_log_probs(1, 4, seed=6), torch.tensor([4]), graph, LexiconSearchConfig(beam_size=3000, num_best=10**6)
    )
    spoken = [MODEL.ids([word])[0] for word in WORDS]
    above = float(UNIGRAMS[spoken].min() - UNIGRAMS[MODEL.unk_id])
    parts = {said(each): each.parts["ngram"] for each in found}
    for words in (["tau"], ["a", "tau"], ["tau", "a"]):  # <unk> in its context, and as much more as the rarest has
        total = MODEL.sentence_log_probs([words])[0]  # in which the word counts as <unk>
        assert parts[tuple(words)] == pytest.approx(float(total) + above, abs=1e-5)
    assert graph.spell([graph.ids["tau"]]) == tuple(TOKENIZER.encode("tau"))


def test_a_hotword_is_among_those_that_sound_alike_however_many_there_are() -> None:
    words = ["one", "won", "wan", "uon", "huon"]
    lexicon = Lexicon({word: [("a",)] for word in words})
    tokenizer = CharTokenizer.train(words)
    graph = LexiconGraph(make_model(words), lexicon, PHONES, tokenizer, expected={"unon": [("a",)]})
    ending = graph.words[graph.words[:, 0] != NO_WORD]
    assert ending[0, 0] == graph.ids["unon"]
    assert ending.shape == (1, 4)
    all_of_them = {word: [("a",)] for word in (*words, "unon")}
    graph = LexiconGraph(make_model(words), lexicon, PHONES, tokenizer, expected=all_of_them)
    assert set(graph.words[graph.words[:, 0] != NO_WORD][0].tolist()) >= {graph.ids[word] for word in all_of_them}


def test_what_is_to_be_avoided_need_not_be_possible() -> None:
    hotwords = WordHotwords({"silent tut": -2.0, "lent": -1.0, "tut": 1.0}, TOKENIZER, make_graph())
    states, earned = hotwords.advance(torch.tensor([0]), torch.tensor([make_graph().ids["tut"]]))
    assert (states.tolist(), earned.tolist()) == ([0], [1.0])
    graph, log_probs, config = make_graph(), make_log_probs(1, 5, seed=1), LexiconSearchConfig(beam_size=5)
    [found] = lexicon_search(
        log_probs, torch.tensor([5]), graph, config, hotwords=WordHotwords({"lent": -1.0}, TOKENIZER, graph)
    )
    [plain] = lexicon_search(log_probs, torch.tensor([5]), graph, config)
    assert found == [replace(each, parts={**each.parts, "hotwords": 0.0}) for each in plain]


def test_an_utterance_without_words_has_the_parts_of_the_others() -> None:
    graph = make_graph(EXPECTED)
    hotwords = WordHotwords(PHRASES, TOKENIZER, graph)
    config = LexiconSearchConfig(beam_size=1)
    log_probs = torch.tensor([[[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]]]).log_softmax(-1)
    [found] = lexicon_search(log_probs, torch.tensor([2]), graph, config, hotwords=hotwords, max_tokens=[1])
    assert found == [replace(NOTHING, parts={**NOTHING.parts, "hotwords": 0.0})]


def test_no_more_is_given_within_a_word_than_leaves_others_in_the_beam() -> None:
    graph = make_graph(EXPECTED)
    hotwords = WordHotwords({"two at": 200.0, "a": 100.0}, TOKENIZER, graph)
    assert 4.0 <= float(hotwords.given.max()) <= 8.0
    assert hotwords.most <= 8.0
    assert float(hotwords.given[graph.ends & ~graph.goes_on].max()) == 0, "a word that has ended is not to come"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_what_a_processor_finds() -> None:
    log_probs = make_log_probs(3, 9, seed=4, sharpness=2.0)
    graph = make_graph(EXPECTED)
    on_gpu = LexiconGraph(make_model([*WORDS, "silent"]).cuda(), LEXICON, PHONES, TOKENIZER, expected=EXPECTED)
    config = LexiconSearchConfig(beam_size=8)
    found, expected = (
        lexicon_search(
            log_probs.to(device),
            torch.tensor([9, 2, 6], device=device),
            each,
            config,
            hotwords=WordHotwords(PHRASES, TOKENIZER, each),
        )
        for each, device in ((on_gpu, "cuda"), (graph, "cpu"))
    )
    for one, other in zip(found, expected, strict=True):
        assert [each.tokens for each in one] == [each.tokens for each in other]
        assert [each.score for each in one] == pytest.approx([each.score for each in other], abs=1e-4)
