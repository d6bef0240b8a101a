"""One encoder pass, then any way to search: batches, settings and what is refused."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from random_ngrams import make_model

from asr.decoding.arpa import load_ngram
from asr.decoding.hypothesis import align
from asr.decoding.lexicon_graph import LexiconGraph
from asr.decoding.lexicon_search import LexiconSearchConfig, lexicon_search
from asr.decoding.search import (
    MODES,
    DecodingConfig,
    Encoding,
    FusionConfig,
    NotFiniteError,
    Recognition,
    Search,
    encode,
)
from asr.decoding.spell import PhoneSpeller
from asr.decoding.word_scorer import WordNgramScorer
from asr.nn.speller import Speller, SpellerConfig
from asr.pronunciation import Lexicon
from asr.speller_checkpoint import build_speller
from asr.tokenizer import BpeTokenizer

GREEDY = DecodingConfig(mode="greedy")
JOINT = DecodingConfig(mode="joint", beam_size=3)
CONFIGS = {mode: DecodingConfig(mode=mode, beam_size=3) for mode in MODES}
SPELLER_TOKENS = BpeTokenizer.train(["a b ab c", "ab cab"], vocab_size=8)
WAVEFORMS = [tiny.noise(length, seed=length) for length in (3000, 1, 800, 2111)]


def make_encoding(waveforms: list[torch.Tensor] = WAVEFORMS) -> Encoding:
    padded, lengths = tiny.pad(waveforms, value=math.nan)
    return encode(tiny.make_model(), padded, lengths)


def make_search(config: DecodingConfig, *, num_decoder_layers: int = 2) -> Search:
    """With phones and a lexicon where the mode needs them."""
    model = tiny.make_model(num_decoder_layers=num_decoder_layers, phones=tiny.PHONES)
    lexicon = speller = None
    if config.mode == "spell":
        speller = PhoneSpeller(make_speller(), SPELLER_TOKENS, tiny.make_tokenizer())
    if config.mode == "lexicon":
        lexicon = LexiconGraph(make_model(list(tiny.SPOKEN)), Lexicon(tiny.SPOKEN), tiny.PHONES, tiny.make_tokenizer())
    return Search(model, config, lexicon=lexicon, speller=speller)


def make_speller() -> Speller:
    """One that writes words of what the tiny recogniser hears, and not always the same."""
    torch.manual_seed(0)
    sizes = {"width": tiny.WIDTH, "num_heads": 2, "num_layers": 1, "feedforward_width": 32, "num_reader_layers": 1}
    speller = build_speller(SpellerConfig(**sizes), SPELLER_TOKENS, num_phones=len(tiny.PHONES))
    return tiny.randomized(speller)


def run(waveforms: list[torch.Tensor], config: DecodingConfig) -> list[Recognition]:
    return make_search(config)(make_encoding(waveforms))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_batch_of_n_equals_n_batches_of_one(config: DecodingConfig) -> None:
    together = run(WAVEFORMS, config)
    for waveform, found in zip(WAVEFORMS, together, strict=True):
        (alone,) = run([waveform], config)
        assert [each.tokens for each in found.hypotheses] == [each.tokens for each in alone.hypotheses]
        scores = [each.score for each in alone.hypotheses]
        assert [each.score for each in found.hypotheses] == pytest.approx(scores, abs=1e-4)
        torch.testing.assert_close(found.log_probs, alone.log_probs, atol=1e-5, rtol=0)


def test_the_model_of_these_tests_says_something() -> None:
    assert len({found.best.tokens for found in run(WAVEFORMS, GREEDY)}) > 1
    assert any(found.best.tokens for found in run(WAVEFORMS, JOINT))


def test_log_probs_come_without_padding() -> None:
    model = tiny.make_model()
    for waveform, found in zip(WAVEFORMS, run(WAVEFORMS, GREEDY), strict=True):
        assert found.log_probs.shape == (model.num_frames(len(waveform)), 6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_best_hypothesis_comes_first(config: DecodingConfig) -> None:
    for found in run(WAVEFORMS, config):
        assert found.best is found.hypotheses[0]
        assert [each.score for each in found.hypotheses] == sorted(each.score for each in found.hypotheses)[::-1]


def test_settings_of_the_config_reach_the_search() -> None:
    (one,) = run(WAVEFORMS[:1], DecodingConfig(mode="joint", beam_size=1))
    (three,) = run(WAVEFORMS[:1], JOINT)
    (two,) = run(WAVEFORMS[:1], DecodingConfig(mode="joint", beam_size=3, num_best=2))
    (long,) = run(WAVEFORMS[:1], DecodingConfig(mode="joint", beam_size=3, length_bonus=3.0))
    (ctc,) = run(WAVEFORMS[:1], DecodingConfig(mode="joint", beam_size=3, ctc_weight=1.0))
    # A beam of one has a single hypothesis of every length.
    assert len({len(each.tokens) for each in one.hypotheses}) == len(one.hypotheses)
    assert len({len(each.tokens) for each in three.hypotheses}) < len(three.hypotheses) == 10
    assert two.hypotheses == three.hypotheses[:2]
    assert len(long.best.tokens) > len(three.best.tokens)
    assert ctc.best.score == pytest.approx(ctc.best.parts["ctc"])


@pytest.mark.parametrize("mode", ["attention", "joint"])
def test_the_internal_language_model_is_taken_away(mode: str) -> None:
    config = DecodingConfig(mode=mode, beam_size=3, lm=FusionConfig(internal_weight=0.4))
    for found in run(WAVEFORMS, config):
        for each in found.hypotheses:
            weights = {"ctc": 0.3, "attention": 0.7} if mode == "joint" else {"attention": 1.0}
            expected = sum(weight * each.parts[name] for name, weight in weights.items()) - 0.4 * each.parts["internal"]
            assert each.score == pytest.approx(expected)


def test_the_parts_of_a_rescored_hypothesis_are_those_of_joint_search() -> None:
    """The same transcript has the same CTC and attention scores, whichever search came upon it."""
    joint, rescored = (
        run(WAVEFORMS, DecodingConfig(mode=mode, beam_size=30, num_best=30)) for mode in ("joint", "rescore")
    )
    shared = 0
    for one, other in zip(joint, rescored, strict=True):
        parts = {each.tokens: each.parts for each in one.hypotheses}
        for each in other.hypotheses:
            assert each.score == pytest.approx(0.3 * each.parts["ctc"] + 0.7 * each.parts["attention"])
            if each.tokens in parts and len(each.tokens) < 3:
                shared += 1
                assert each.parts["attention"] == pytest.approx(parts[each.tokens]["attention"], abs=1e-4)
    assert shared > 5


LEXICON = DecodingConfig(mode="lexicon", beam_size=20, num_best=20, phone_weight=0.4, lm=FusionConfig(ngram_weight=0.6))


def test_words_by_phones_are_ranked_by_all_that_is_known_of_them() -> None:
    tokenizer = tiny.make_tokenizer()
    said = set()
    for found in run(WAVEFORMS, LEXICON):
        assert len({each.tokens for each in found.hypotheses}) == len(found.hypotheses)
        for each in found.hypotheses:
            parts = each.parts
            expected = 0.4 * parts["phones"] + 0.6 * (0.3 * parts["ctc"] + 0.7 * parts["attention"])
            assert each.score == pytest.approx(expected + 0.6 * parts["ngram"])
            assert len(each.tokens) <= len(found.log_probs)
            said |= set(tokenizer.decode(each.tokens).split())
    assert {"a", "aba", "c"} <= said <= set(tiny.SPOKEN)


def test_the_parts_of_words_by_phones_are_those_of_other_searches() -> None:
    by_phones = run(WAVEFORMS, LEXICON)
    others = run(WAVEFORMS, DecodingConfig(mode="rescore", beam_size=200, num_best=200))
    shared = 0
    for one, other in zip(by_phones, others, strict=True):
        parts = {each.tokens: each.parts for each in other.hypotheses}
        for each in one.hypotheses:
            if each.tokens in parts and len(each.tokens) < 3:
                shared += 1
                assert each.parts["attention"] == pytest.approx(parts[each.tokens]["attention"], abs=1e-4)
                assert each.parts["ctc"] == pytest.approx(parts[each.tokens]["ctc"], abs=1e-3)
    assert shared > 5


def test_32_hypotheses_are_ranked_anew_or_as_many_as_are_wanted() -> None:
    wide = replace(LEXICON, beam_size=500, beam_margin=math.inf, token_margin=math.inf)
    sizes = [len(run(WAVEFORMS[:1], replace(wide, num_best=num_best))[0].hypotheses) for num_best in (3, 40)]
    assert sizes == [32, 40]


def test_phones_with_the_whole_weight_leave_the_others_out() -> None:
    for found in run(WAVEFORMS, replace(LEXICON, phone_weight=1.0, length_bonus=0.3)):
        for each in found.hypotheses:
            expected = each.parts["phones"] + 0.6 * each.parts["ngram"] + 0.3 * len(each.tokens)
            assert each.score == pytest.approx(expected)


def test_where_no_frame_has_a_letter_no_words_are_found() -> None:
    search, encoding = make_search(LEXICON), make_encoding(WAVEFORMS)
    before = search(encoding)
    assert all(each.best.tokens for each in before)
    with torch.inference_mode():
        encoding.log_probs[1] = torch.tensor([0.0, *[-20.0] * (encoding.log_probs.shape[2] - 1)])
    heard, silent, *others = search(encoding)
    assert [each.tokens for each in silent.hypotheses] == [()]
    assert math.isfinite(silent.best.score)
    assert [each.best.tokens for each in (heard, *others)] == [
        before[0].best.tokens,
        *(each.best.tokens for each in before[2:]),
    ]


def test_words_with_more_tokens_than_there_are_frames_are_not_found() -> None:
    """A single frame: a word of one phone has too many letters, and nothing else is heard."""
    search = make_search(LEXICON)
    log_probs = torch.full((1, 1, 4), -50.0)
    log_probs[..., 1] = 0.0
    search.model.phone_log_probs = lambda frames: log_probs  # type: ignore[method-assign,assignment]
    only = LexiconGraph(make_model(["aba"]), Lexicon(tiny.SPOKEN), tiny.PHONES, tiny.make_tokenizer())
    [found] = Search(search.model, LEXICON, lexicon=only)(make_encoding([tiny.noise(1)]))
    assert [each.tokens for each in found.hypotheses] == [()]


@pytest.mark.parametrize(("ngram_weight", "share"), [(0.56, 1.0), (0.42, 0.75), (0.01, 0.5), (2.0, 1.5)])
def test_margins_are_on_the_scale_that_the_weight_of_the_n_gram_model_tells(
    monkeypatch: pytest.MonkeyPatch, ngram_weight: float, share: float
) -> None:
    used: list[LexiconSearchConfig] = []

    def searching(
        log_probs: torch.Tensor, lengths: torch.Tensor, graph: LexiconGraph, config: LexiconSearchConfig, **rest: Any
    ) -> Any:
        used.append(config)
        return lexicon_search(log_probs, lengths, graph, config, **rest)

    monkeypatch.setattr("asr.decoding.search.lexicon_search", searching)
    run(WAVEFORMS, replace(LEXICON, lm=FusionConfig(ngram_weight=ngram_weight), beam_margin=16.0, token_margin=8.0))
    assert used[0].ngram_weight == pytest.approx(ngram_weight / 0.4)
    assert (used[0].beam_margin, used[0].token_margin) == pytest.approx((16 * share, 8 * share))


def test_lexicon_search_without_a_lexicon_says_what_it_needs() -> None:
    message = (
        r"^decoding\.mode is 'lexicon', which needs decoding\.lexicon, the words' pronunciations, and decoding\.lm"
    )
    with pytest.raises(ValueError, match=message):
        Search(tiny.make_model(phones=tiny.PHONES), LEXICON)


@pytest.mark.parametrize("mode", ["greedy", "prefix_beam", "lexicon"])
def test_ctc_alone_needs_no_decoder(mode: str) -> None:
    search = make_search(CONFIGS[mode], num_decoder_layers=0)
    padded, lengths = tiny.pad(WAVEFORMS)
    found = search(encode(search.model, padded, lengths))
    assert len(found) == len(WAVEFORMS) and "attention" not in found[0].best.parts


@pytest.mark.parametrize("mode", ["attention", "joint", "rescore"])
def test_a_mode_that_needs_a_decoder_says_so(mode: str) -> None:
    message = rf"^decoding\.mode is '{mode}', but this model has no attention decoder; use mode greedy, pref"
    with pytest.raises(ValueError, match=message):
        Search(tiny.make_model(num_decoder_layers=0), CONFIGS[mode])


def test_a_model_in_training_mode_is_an_error() -> None:
    padded, lengths = tiny.pad(WAVEFORMS)
    with pytest.raises(ValueError, match=r"^the model is in training mode; call model\.eval\(\) before recognition$"):
        encode(tiny.make_model().train(), padded, lengths)


def test_weights_that_are_no_numbers_are_an_error() -> None:
    model = tiny.make_model()
    with torch.no_grad():
        model.ctc.bias.fill_(math.nan)
    padded, lengths = tiny.pad(WAVEFORMS)
    message = r"^the model's output is not a number \(NaN\); its weights or its input are damaged$"
    with pytest.raises(NotFiniteError, match=message):
        encode(model, padded, lengths)


@pytest.mark.parametrize("mode", ["attention", "joint", "rescore"])
def test_a_decoder_that_answers_with_no_numbers_is_an_error(mode: str) -> None:
    model = tiny.make_model()
    with torch.no_grad():
        model.decoder.output.bias.fill_(math.nan)  # type: ignore[union-attr]
    padded, lengths = tiny.pad(WAVEFORMS)
    with pytest.raises(
        NotFiniteError, match=r"^the scores of the search are not numbers \(NaN\); the weights of the dec"
    ):
        Search(model, CONFIGS[mode])(encode(model, padded, lengths))


def test_a_decoder_that_repeats_itself_without_end_still_gives_hypotheses_that_can_be_aligned() -> None:
    model = tiny.make_model()
    with torch.no_grad():
        model.decoder.output.bias[3] += 50.0  # type: ignore[union-attr]
        model.decoder.output.bias[1] -= 50.0  # type: ignore[union-attr]
    padded, lengths = tiny.pad(WAVEFORMS)
    for found in Search(model, CONFIGS["attention"])(encode(model, padded, lengths)):
        spans = align(found.log_probs, found.best.tokens)
        assert len(spans) == len(found.best.tokens)


RARE_WORD = """\\data\\
ngram 1=4
ngram 2=1

\\1-grams:
-99 <s> -3
-0.3 </s>
-9 <unk>
-6 abab

\\2-grams:
-0.01 <s> abab

\\end\\
"""


def test_a_word_that_is_charged_before_it_ends_is_waited_for(tmp_path: Path) -> None:
    """The model all but asks for a word whose beginning is rare: midway it seems to be lost, and is not."""
    (tmp_path / "lm.arpa").write_text(RARE_WORD)
    tokenizer, model = tiny.make_tokenizer(), tiny.make_model()
    ngram = WordNgramScorer(load_ngram(tmp_path / "lm.arpa"), tokenizer, unknown_penalty=-10.0)
    lm = FusionConfig(ngram=tmp_path / "lm.arpa", ngram_weight=0.6)
    config = DecodingConfig(mode="joint", beam_size=30, ctc_weight=0.98, lm=lm)
    generator = torch.Generator().manual_seed(2)
    log_probs = torch.randn(16, 8, 6, generator=generator).log_softmax(dim=-1)
    frames = torch.randn(16, 8, tiny.WIDTH, generator=generator)
    encoding = Encoding(frames, torch.full((16,), 8), log_probs)
    found = Search(model, config, ngram=ngram)(encoding)
    exact = Search(model, replace(config, end_margin=math.inf), ngram=ngram)(encoding)
    hasty = Search(model, replace(config, end_margin=0.0), ngram=ngram)(encoding)
    texts = [[tokenizer.decode(each.best.tokens) for each in way] for way in (found, exact, hasty)]
    assert texts[0] == texts[1] != texts[2]
    assert "abab" in texts[0]


def test_samples_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(NotFiniteError):
        run([torch.full((900,), math.nan)], GREEDY)


@pytest.mark.parametrize("mode", MODES)
def test_posteriors_that_are_all_blank_give_the_empty_transcript(mode: str) -> None:
    encoding = make_encoding()
    blank = torch.full_like(encoding.log_probs, -math.inf)
    blank[:, :, 0] = 0.0
    found = make_search(CONFIGS[mode])(Encoding(encoding.frames, encoding.lengths, blank))
    assert all(math.isfinite(each.best.score) for each in found)
    if mode not in ("attention", "lexicon", "spell"):  # which do not ask CTC, or that of phones first
        assert all(each.best.tokens == () for each in found)


@pytest.mark.parametrize("mode", MODES)
def test_a_beam_larger_than_the_vocabulary_and_a_single_frame_are_fine(mode: str) -> None:
    for found in run([tiny.noise(1), tiny.noise(80)], DecodingConfig(mode=mode, beam_size=200)):
        assert len(found.log_probs) == 1
        assert len(found.best.tokens) <= 1
        assert len({each.tokens for each in found.hypotheses}) == len(found.hypotheses)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mode": "best"},
            "decoding.mode is 'best'; choose one of greedy, prefix_beam, attention, joint, rescore, lexicon, spell",
        ),
        (
            {"mode": "lexicon", "lm": FusionConfig(ngram_weight=0.0)},
            "decoding.lm.ngram_weight is 0, but mode 'lexicon' finds words by that model; set it above 0",
        ),
        ({"phone_weight": 0.0}, "decoding.phone_weight is 0.0; it must be in (0, 1]"),
        (
            {"mode": "joint", "lexicon": Path("lexicon.txt")},
            "decoding.lexicon is lexicon.txt, which has no place in mode 'joint'; leave it out, or take mode lexicon",
        ),
        ({"beam_size": 0}, "decoding.beam_size is 0; it must be at least 1"),
        ({"num_best": 0}, "decoding.num_best is 0; it must be at least 1"),
        ({"ctc_weight": 0.0}, "decoding.ctc_weight is 0.0; it must be in (0, 1]"),
        ({"ctc_weight": 1.1}, "decoding.ctc_weight is 1.1; it must be in (0, 1]"),
        ({"length_bonus": math.nan}, "decoding.length_bonus is nan; it must be a finite number"),
        ({"hotword_bonus": math.inf}, "decoding.hotword_bonus is inf; it must be a finite number"),
        ({"end_margin": -1.0}, "decoding.end_margin is -1.0; it must be 0 or more"),
        ({"token_margin": 0.0}, "decoding.token_margin is 0.0; it must be above 0"),
        ({"beam_margin": 0.0}, "decoding.beam_margin is 0.0; it must be above 0"),
        ({"prior_weight": -0.1}, "decoding.prior_weight is -0.1; it must be a number of 0 or more"),
        ({"token_margin": math.nan}, "decoding.token_margin is nan; it must be above 0"),
        (
            {"mode": "greedy", "hotwords": Path("names.txt")},
            "decoding.hotwords is names.txt, which has no place in mode 'greedy'; leave it out, or take mode "
            "prefix_beam or attention or joint or rescore or lexicon",
        ),
        (
            {"mode": "prefix_beam", "lm": FusionConfig(neural=Path("lm"))},
            "decoding.lm.neural is lm, which has no place in mode 'prefix_beam'; leave it out, or take mode attention "
            "or joint or rescore or lexicon",
        ),
        (
            {"mode": "rescore", "lm": FusionConfig(internal_weight=0.1)},
            "decoding.lm.internal_weight is 0.1, which has no place in mode 'rescore'; leave it out, or take mode "
            "attention or joint",
        ),
    ],
)
def test_errors_of_the_config(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        DecodingConfig(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ngram_weight": -1.0}, "decoding.lm.ngram_weight is -1.0; it must be a number of 0 or more"),
        ({"neural_weight": math.inf}, "decoding.lm.neural_weight is inf; it must be a number of 0 or more"),
        ({"internal_weight": -0.1}, "decoding.lm.internal_weight is -0.1; it must be a number of 0 or more"),
        ({"unknown_penalty": 1.0}, "decoding.lm.unknown_penalty is 1.0; it must be a number of 0 or less"),
    ],
)
def test_errors_of_language_model_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        FusionConfig(**settings)
    assert str(caught.value) == message
