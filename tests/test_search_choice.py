"""How to search: what the folder proposes, what is asked for instead, and what does not fit together."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from asr.confidence import UNCALIBRATED, Calibration
from asr.decoding.search import FusionConfig
from asr.lm_checkpoint import save_language_model
from asr.nn.lm import LanguageModel, LanguageModelConfig
from asr.search_choice import NO_MODEL, OWN_LEXICON, OWN_NEURAL, OWN_NGRAM, SearchOptions, choose_search
from asr.tokenizer import BpeTokenizer, CharTokenizer
from asr.variants import DefaultSearch, TunedSearch, write_tuned

TUNED = {
    "joint+ngram": TunedSearch(weights={"lm.ngram_weight": 0.7}, calibration=Calibration(bias=0.5)),
    "joint": TunedSearch(weights={"ctc_weight": 0.4}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Proposes joint search with beam 7 and has a language model of its own; `lm` is the folder of a neural one."""
    write_tuned(tmp_path / "decoding.json", TUNED, about={}, default=DefaultSearch(mode="joint", beam_size=7))
    (tmp_path / OWN_NGRAM).touch()
    (tmp_path / "lm").mkdir()
    return tmp_path


def test_without_options_a_folder_decides(folder: Path) -> None:
    config, tuned = choose_search(folder, SearchOptions())
    assert (config.mode, config.beam_size, config.lm.ngram, config.lm.neural) == ("joint", 7, folder / OWN_NGRAM, None)
    assert tuned.weights == {"lm.ngram_weight": 0.7} and tuned.calibration == Calibration(bias=0.5)


def test_a_folder_that_proposes_nothing_is_searched_greedily(tmp_path: Path) -> None:
    config, tuned = choose_search(tmp_path, SearchOptions())
    assert (config.mode, config.beam_size, config.lm.ngram) == ("greedy", 10, None)
    assert tuned.weights == {} and tuned.calibration == UNCALIBRATED


def test_greedy_search_leaves_the_own_language_model_alone(folder: Path) -> None:
    assert choose_search(folder, SearchOptions(mode="greedy"))[0].lm.ngram is None


def test_the_own_language_model_takes_part_in_every_beam_search(folder: Path) -> None:
    for mode in ("prefix_beam", "attention", "joint", "rescore"):
        assert choose_search(folder, SearchOptions(mode=mode))[0].lm.ngram == folder / OWN_NGRAM


def test_the_own_language_model_can_be_replaced_or_left_out(folder: Path) -> None:
    other = Path("other.arpa")
    assert choose_search(folder, SearchOptions(lms=(other,)))[0].lm.ngram == other
    config, tuned = choose_search(folder, SearchOptions(lms=(NO_MODEL,)))
    assert config.lm.ngram is None and tuned.weights == {"ctc_weight": 0.4}


def test_a_neural_model_joins_the_own_one(folder: Path) -> None:
    config, _ = choose_search(folder, SearchOptions(lms=(folder / "lm",), beam_size=3))
    assert (config.mode, config.beam_size) == ("joint", 3)
    assert (config.lm.ngram, config.lm.neural) == (folder / OWN_NGRAM, folder / "lm")


@pytest.mark.parametrize(
    ("default", "options", "mode"),
    [
        ("greedy", SearchOptions(lms=(Path("a.arpa"),)), "prefix_beam"),
        ("greedy", SearchOptions(hotwords=Path("names.txt")), "prefix_beam"),
        ("joint", SearchOptions(hotwords=Path("names.txt")), "joint"),
        ("rescore", SearchOptions(lms=(Path("a.arpa"),)), "rescore"),
        ("joint", SearchOptions(mode="greedy"), "greedy"),
    ],
)
def test_what_is_asked_for_finds_a_search_with_a_place_for_it(
    tmp_path: Path, default: str, options: SearchOptions, mode: str
) -> None:
    write_tuned(tmp_path / "decoding.json", {}, about={}, default=DefaultSearch(mode=default))
    assert choose_search(tmp_path, options)[0].mode == mode


def test_a_speller_takes_the_place_of_any_search(folder: Path) -> None:
    config, tuned = choose_search(folder, SearchOptions(speller=Path("speller"), beam_size=4))
    assert (config.mode, config.speller, config.beam_size) == ("spell", Path("speller"), 4)
    assert (config.lm.ngram, config.lm.neural, tuned.weights) == (None, None, {})


@pytest.mark.parametrize("default", ["greedy", "prefix_beam"])
def test_a_neural_model_brings_joint_search_where_the_default_has_no_place_for_it(tmp_path: Path, default: str) -> None:
    write_tuned(tmp_path / "decoding.json", {}, about={}, default=DefaultSearch(mode=default))
    config, _ = choose_search(tmp_path, SearchOptions(lms=(tmp_path,)))
    assert (config.mode, config.lm.neural) == ("joint", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            SearchOptions(mode="greedy", beam_size=7),
            "--beam-size is 7, but greedy search has no beam; choose another --decoding",
        ),
        (
            SearchOptions(lms=(Path("a.arpa"), Path("b.ngram"))),
            "--lm names a.arpa and b.ngram; give one ngram language model",
        ),
        (
            SearchOptions(lms=(Path("none"), Path("b.ngram"))),
            "--lm names none and b.ngram; give none alone, or leave it out",
        ),
        (SearchOptions(mode="spell"), "--decoding spell writes with a speller; name one with --speller"),
        (
            SearchOptions(mode="joint", speller=Path("s")),
            "decoding.speller is s, which has no place in mode 'joint'; leave it out, or take mode spell",
        ),
        (
            SearchOptions(speller=Path("s"), hotwords=Path("a.txt")),
            "decoding.hotwords is a.txt, which has no place in mode 'spell'",
        ),
        (SearchOptions(mode="loud"), "decoding.mode is 'loud'; choose one of greedy, prefix_beam"),
        (
            SearchOptions(mode="greedy", hotwords=Path("a.txt")),
            "decoding.hotwords is a.txt, which has no place in mode",
        ),
    ],
)
def test_options_that_do_not_fit_together(folder: Path, options: SearchOptions, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        choose_search(folder, options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("default", [{"mode": "loud"}, {"beam_size": 4}, {"mode": "joint", "beam_size": 0}, "joint"])
def test_a_broken_proposal_is_one_line(tmp_path: Path, default: object) -> None:
    (tmp_path / "decoding.json").write_text(json.dumps({"default": default, "searches": {}}))
    with pytest.raises(ValueError, match=r"decoding\.json: not a file of tuned searches \(.*\); write it with recipes"):
        choose_search(tmp_path, SearchOptions())


def test_a_neural_model_of_other_tokens_brings_rescoring(tmp_path: Path, tiny_folder: Path) -> None:
    config = LanguageModelConfig(num_layers=1, width=16, num_heads=2, feedforward_width=32)
    same = CharTokenizer.train(["a b c"])
    for name, tokenizer in (("same", same), ("other", BpeTokenizer.train(["abc ab"], vocab_size=8))):
        weights = LanguageModel(config, vocab_size=tokenizer.vocab_size).state_dict()
        save_language_model(tmp_path / name, weights, config=config, tokenizer=tokenizer, training={})
    modes = {
        name: choose_search(tiny_folder, SearchOptions(lms=(tmp_path / name,)))[0].mode for name in ("same", "other")
    }
    assert modes == {"same": "joint", "other": "rescore"}


@pytest.fixture
def spoken(folder: Path) -> Path:
    """Proposes lexicon search with beam 40 and has pronunciations of its own."""
    tuned = {"lexicon+ngram": TunedSearch(weights={"phone_weight": 0.6, "prior_weight": 0.2})}
    write_tuned(folder / "decoding.json", tuned, about={}, default=DefaultSearch(mode="lexicon", beam_size=40))
    (folder / OWN_LEXICON).touch()
    return folder


def test_lexicon_search_takes_the_pronunciations_and_the_language_model_of_the_folder(spoken: Path) -> None:
    config, tuned = choose_search(spoken, SearchOptions())
    assert (config.mode, config.beam_size) == ("lexicon", 40)
    assert (config.lexicon, config.lm.ngram) == (spoken / OWN_LEXICON, spoken / OWN_NGRAM)
    assert tuned.weights == {"phone_weight": 0.6, "prior_weight": 0.2}
    other, _ = choose_search(spoken, SearchOptions(lms=(spoken / "lm",), beam_size=3))
    assert (other.mode, other.lm.ngram, other.lm.neural) == ("lexicon", spoken / OWN_NGRAM, spoken / "lm")
    asked, _ = choose_search(spoken, SearchOptions(mode="lexicon", lms=(Path("other.arpa"),)))
    assert (asked.lm.ngram, asked.lexicon) == (Path("other.arpa"), spoken / OWN_LEXICON)


def test_the_own_neural_model_takes_part_in_second_passes_alone(spoken: Path) -> None:
    (spoken / OWN_NEURAL).mkdir()
    weights = {"lm.neural_weight": 0.7, "prior_weight": 0.3}
    write_tuned(spoken / "decoding.json", {"lexicon+ngram+neural": TunedSearch(weights=weights)}, about={})
    config, tuned = choose_search(spoken, SearchOptions())
    assert (config.mode, config.lm.neural, tuned.weights) == ("lexicon", spoken / OWN_NEURAL, weights)
    assert choose_search(spoken, SearchOptions(mode="rescore"))[0].lm.neural == spoken / OWN_NEURAL
    for mode in ("greedy", "prefix_beam", "attention", "joint"):
        assert choose_search(spoken, SearchOptions(mode=mode))[0].lm.neural is None
    other, _ = choose_search(spoken, SearchOptions(lms=(spoken / "lm",)))
    assert other.lm.neural == spoken / "lm"
    assert choose_search(spoken, SearchOptions(mode="rescore", lms=(NO_MODEL,)))[0].lm == FusionConfig()


NO_PLACE = [
    SearchOptions(lms=(NO_MODEL,)),
    SearchOptions(lms=(Path("of-other-words.arpa"),)),
    SearchOptions(lms=(Path("of-other-words.arpa"),), hotwords=Path("names.txt")),
]


@pytest.mark.parametrize("options", NO_PLACE)
def test_where_lexicon_search_has_no_place_for_what_is_asked_it_is_joint_search(
    spoken: Path, options: SearchOptions
) -> None:
    config, _ = choose_search(spoken, options)
    assert (config.mode, config.beam_size, config.lexicon) == ("joint", 10, None)


@pytest.mark.parametrize("options", NO_PLACE)
def test_it_is_what_was_tuned_with_the_beam_that_it_was_tuned_with(tmp_path: Path, options: SearchOptions) -> None:
    """Such as a model without a decoder, for which joint search is not."""
    tuned = dict.fromkeys(("lexicon+ngram", "prefix_beam", "prefix_beam+ngram"), TunedSearch())
    default = DefaultSearch(mode="lexicon", beam_size=40)
    write_tuned(tmp_path / "decoding.json", tuned, about={"beam_size": 16}, default=default)
    (tmp_path / OWN_NGRAM).touch()
    config, _ = choose_search(tmp_path, options)
    assert (config.mode, config.beam_size) == ("prefix_beam", 16)


def test_hotwords_take_part_in_lexicon_search(spoken: Path) -> None:
    config, tuned = choose_search(spoken, SearchOptions(hotwords=Path("names.txt")))
    without, same = choose_search(spoken, SearchOptions())
    assert (config, tuned) == (replace(without, hotwords=Path("names.txt")), same)
    assert config.mode == "lexicon"


def test_lexicon_search_without_what_it_needs_is_an_error(spoken: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^--decoding lexicon searches the words of an n-gram model; name one with --lm$"
    ):
        choose_search(spoken, SearchOptions(mode="lexicon", lms=(NO_MODEL,)))
    (spoken / OWN_LEXICON).unlink()
    message = rf"^{spoken} has no {OWN_LEXICON}, which --decoding lexicon needs; choose another --decoding$"
    for mode in (None, "lexicon"):
        with pytest.raises(ValueError, match=message):
            choose_search(spoken, SearchOptions(mode=mode))
