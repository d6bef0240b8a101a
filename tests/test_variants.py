"""Ways to search by name, and the file of what was tuned for each."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from asr.confidence import UNCALIBRATED, Calibration
from asr.decoding.search import DecodingConfig, FusionConfig
from asr.variants import (
    DefaultSearch,
    TunedSearch,
    read_default,
    read_tuned,
    variant_name,
    variants,
    with_weights,
    write_tuned,
)

LM = FusionConfig(ngram=Path("a.arpa"), neural=Path("lm"))


def test_variants_are_all_modes_with_all_models_that_have_a_place() -> None:
    modes, lms = ["greedy", "prefix_beam", "joint"], ["none", "ngram", "neural", "ngram+neural"]
    found = variants(DecodingConfig(mode="joint", lm=LM), modes=modes, lms=lms)
    assert list(found) == [
        "greedy",
        "prefix_beam",
        "prefix_beam+ngram",
        "joint",
        "joint+ngram",
        "joint+neural",
        "joint+ngram+neural",
    ]
    for name, config in found.items():
        assert variant_name(config) == name
        assert config.mode == name.split("+")[0]
        assert (config.lm.ngram is not None) == ("ngram" in name)
        assert (config.lm.neural is not None) == ("neural" in name)


def test_settings_without_a_place_in_a_variant_are_left_out_of_it() -> None:
    base = DecodingConfig(mode="joint", hotwords=Path("names.txt"), lm=FusionConfig(internal_weight=0.2))
    found = variants(base, modes=["greedy", "joint", "rescore"], lms=["none"])
    assert [config.lm.internal_weight for config in found.values()] == [0.0, 0.2, 0.0]
    assert [config.hotwords for config in found.values()] == [None, Path("names.txt"), Path("names.txt")]


def test_what_is_for_lexicon_search_has_its_place_in_that_alone() -> None:
    base = DecodingConfig(
        mode="lexicon",
        lexicon=Path("lexicon.txt"),
        prior_weight=0.5,
        hotwords=Path("names.txt"),
        hotword_language="de",
        lm=FusionConfig(ngram=Path("words.arpa")),
    )
    joint, lexicon = variants(base, modes=["joint", "lexicon"], lms=["ngram"]).values()
    assert lexicon == base
    assert (joint.lexicon, joint.prior_weight, joint.hotword_language) == (None, 0.0, None)
    assert joint.hotwords == Path("names.txt")


@pytest.mark.parametrize(
    ("lms", "message"),
    [
        (["gram"], "lms has 'gram'; choose from none, ngram, neural, ngram+neural"),
        (["ngram"], "lms has 'ngram', but decoding.lm.ngram names no model; set it"),
    ],
)
def test_errors_of_variants(lms: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        variants(DecodingConfig(mode="joint"), modes=["joint"], lms=lms)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("modes", "lms", "message"),
    [
        ([], ["none"], "modes is [] and lms is ['none']; name at least one of each"),
        (["joint", "greedy"], ["ngram"], "modes has 'greedy', which has no place for any of lms=['ngram']; add none"),
    ],
)
def test_a_mode_without_any_variant_is_an_error(modes: list[str], lms: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        variants(DecodingConfig(mode="joint", lm=LM), modes=modes, lms=lms)
    assert str(caught.value).startswith(message)


def test_what_was_tuned_survives_a_file_and_other_variants_stay(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "decoding.json"
    first = TunedSearch(
        weights={"ctc_weight": 0.4, "lm.ngram_weight": 0.7},
        calibration=Calibration(bias=0.5, agreement_weight=1.0),
        development={"wer": 0.1},
    )
    write_tuned(path, {"joint+ngram": first}, about={"manifest": Path("dev.jsonl")})
    write_tuned(path, {"joint": TunedSearch()}, about={})
    found = read_tuned(path)
    assert found["joint"].calibration == UNCALIBRATED
    assert found["joint+ngram"] == replace(first, development={"wer": 0.1, "manifest": "dev.jsonl"})
    config = with_weights(DecodingConfig(mode="joint", lm=LM), found["joint+ngram"].weights)
    assert config.ctc_weight == 0.4
    assert config.lm == FusionConfig(ngram=Path("a.arpa"), neural=Path("lm"), ngram_weight=0.7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing", "not a file of tuned searches (Expecting value"),
        ("[]", "not a file of tuned searches ("),
        ('{"searches": {"joint": {"weights": {}}}}', "not a file of tuned searches ('calibration'); write it with"),
        ('{"searches": {"joint": {"weights": {"ctc_weight": "many"}}}}', "not a file of tuned searches (could not"),
        ('{"searches": {"joint": {"weights": {"mood": 1}}}}', "not a file of tuned searches (unknown weight 'mood')"),
    ],
)
def test_errors_of_a_file_of_tuned_searches(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "decoding.json"
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_tuned(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_missing_file_says_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file; recipes/tune_decoding\.py writes it$"):
        read_tuned(tmp_path / "decoding.json")


def test_a_default_search_stays_when_others_are_tuned(tmp_path: Path) -> None:
    path = tmp_path / "decoding.json"
    assert read_default(path) is None
    write_tuned(path, {"joint": TunedSearch(weights={"ctc_weight": 0.4})}, about={})
    assert read_default(path) is None
    write_tuned(path, {}, about={}, default=DefaultSearch(mode="joint", beam_size=6))
    write_tuned(path, {"greedy": TunedSearch()}, about={})
    assert read_default(path) == DefaultSearch(mode="joint", beam_size=6)
    assert read_tuned(path)["joint"].weights == {"ctc_weight": 0.4} and "greedy" in read_tuned(path)


def test_a_default_search_must_be_one_that_there_is() -> None:
    with pytest.raises(ValueError, match=r"^decoding\.mode is 'loud'; choose one of greedy"):
        DefaultSearch(mode="loud")
    with pytest.raises(ValueError, match=r"^the default search is 'spell', but a speller lies outside"):
        DefaultSearch(mode="spell")
    with pytest.raises(ValueError, match=r"^decoding\.beam_size is 0; it must be at least 1$"):
        DefaultSearch(mode="joint", beam_size=0)


def test_lexicon_search_needs_an_n_gram_model_and_other_modes_have_no_lexicon() -> None:
    base = DecodingConfig(mode="lexicon", lexicon=Path("lexicon.txt"), lm=FusionConfig(ngram=Path("a.arpa")))
    found = variants(base, modes=["greedy", "joint", "lexicon"], lms=["none", "ngram"])
    assert list(found) == ["greedy", "joint", "joint+ngram", "lexicon+ngram"]
    assert [each.lexicon for each in found.values()] == [None, None, None, Path("lexicon.txt")]
    with pytest.raises(ValueError, match=r"^modes has 'lexicon', which needs an n-gram model, but lms="):
        variants(base, modes=["lexicon"], lms=["none"])
    with pytest.raises(
        ValueError, match=r"^decoding\.mode is 'lexicon', which needs decoding\.lexicon, the words' pronun"
    ):
        variants(DecodingConfig(mode="joint", lm=base.lm), modes=["lexicon"], lms=["ngram"])


def test_weights_of_lexicon_search_from_before_there_was_a_prior_leave_it_out(tmp_path: Path) -> None:
    own = {"weights": {"phone_weight": 0.6}, "calibration": UNCALIBRATED.to_dict()}
    path = tmp_path / "decoding.json"
    path.write_text(json.dumps({"searches": {"lexicon+ngram": own, "joint": own | {"weights": {}}}}), encoding="utf-8")
    found = read_tuned(path)
    assert found["lexicon+ngram"].weights == {"phone_weight": 0.6, "prior_weight": 0.0}
    assert found["joint"].weights == {}


def test_a_speller_is_for_spelling_alone_and_takes_no_language_model() -> None:
    base = DecodingConfig(mode="spell", speller=Path("speller"))
    found = variants(base, modes=["greedy", "joint", "spell"], lms=["none"])
    assert {name: each.speller for name, each in found.items()} == {
        "greedy": None,
        "joint": None,
        "spell": Path("speller"),
    }
    with pytest.raises(ValueError, match=r"^decoding\.mode is 'spell', which needs decoding\.speller, a folder that"):
        variants(DecodingConfig(mode="joint"), modes=["spell"], lms=["none"])
    with pytest.raises(ValueError, match=r"^lms has 'ngram', but decoding\.mode is 'spell', which has no place for a"):
        variants(base, modes=["joint", "spell"], lms=["none", "ngram"])


def test_the_prior_is_for_lexicon_search_alone() -> None:
    lm = FusionConfig(ngram=Path("a.arpa"))
    base = DecodingConfig(mode="lexicon", lexicon=Path("lexicon.txt"), lm=lm, prior_weight=0.5)
    found = variants(base, modes=["joint", "lexicon"], lms=["ngram"])
    assert {name: each.prior_weight for name, each in found.items()} == {"joint+ngram": 0.0, "lexicon+ngram": 0.5}
