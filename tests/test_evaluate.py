import json
import math
import random
from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.evaluate import Alignment, Comparison, Score, SpeakerScore, compare, read_texts, score
from asr.text import normalize

FEW_DRAWS = 200
WORDS = ["a", "b", "ab", "the", "cat", "don't", "été"]
SENTENCE = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
CORPUS = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=8)


def noisy_corpus(*, num_utterances: int, error_rate: float, seed: int) -> tuple[dict[str, str], dict[str, str]]:
    """References of 1 to 15 words, and hypotheses in which words are replaced at a rate."""
    choose = random.Random(seed)
    references, hypotheses = {}, {}
    for index in range(num_utterances):
        words = choose.choices(WORDS, k=choose.randint(1, 15))
        references[f"u{index}"] = " ".join(words)
        hypotheses[f"u{index}"] = " ".join("wrong" if choose.random() < error_rate else word for word in words)
    return references, hypotheses


def split(corpus: list[tuple[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    references = {f"u{index}": reference for index, (reference, _) in enumerate(corpus)}
    return references, {f"u{index}": hypothesis for index, (_, hypothesis) in enumerate(corpus)}


# Counts


@given(CORPUS)
def test_counts_equal_jiwers(corpus: list[tuple[str, str]]) -> None:
    references, hypotheses = split(corpus)
    result = score(references, hypotheses, num_draws=2)
    words = jiwer.process_words(list(references.values()), list(hypotheses.values()))
    characters = jiwer.process_characters(list(references.values()), list(hypotheses.values()))
    assert (result.substitutions, result.deletions, result.insertions) == (
        words.substitutions,
        words.deletions,
        words.insertions,
    )
    assert result.words == sum(len(text.split()) for text in references.values())
    assert result.characters == sum(map(len, references.values()))
    assert result.wer == pytest.approx(words.wer)
    assert result.cer == pytest.approx(characters.cer)
    for alignment, (reference, hypothesis) in zip(result.alignments, corpus, strict=True):
        alone = jiwer.process_words(reference, hypothesis)
        assert alignment.errors == alone.substitutions + alone.deletions + alone.insertions


@given(CORPUS)
def test_alignments_and_confusions_add_up(corpus: list[tuple[str, str]]) -> None:
    references, hypotheses = split(corpus)
    result = score(references, hypotheses, num_draws=2)
    assert [alignment.id for alignment in result.alignments] == list(references)
    assert [alignment.reference for alignment in result.alignments] == list(references.values())
    assert [alignment.hypothesis for alignment in result.alignments] == list(hypotheses.values())
    errors = result.substitutions + result.deletions + result.insertions
    assert sum(alignment.errors for alignment in result.alignments) == errors
    assert sum(count for _, _, count in result.confusions) == errors
    assert all(reference != hypothesis for reference, hypothesis, _ in result.confusions)
    counts = [count for _, _, count in result.confusions]
    assert counts == sorted(counts, reverse=True)


def test_a_score_by_hand() -> None:
    references = {"x": "The cat sat.", "y": "on the blue mat", "z": "so it goes"}
    hypotheses = {"z": "so it goes", "x": "the CAT, sits", "y": "on blue mat today"}
    result = score(references, hypotheses, speakers={"x": "ann", "y": "bob", "z": "bob"}, num_draws=FEW_DRAWS)
    assert (result.utterances, result.words, result.characters) == (3, 10, 36)
    assert (result.substitutions, result.deletions, result.insertions) == (1, 1, 1)
    assert result.wer == pytest.approx(3 / 10)
    # "sat" -> "sits" is one character replaced and one inserted; "the " goes, and " today" comes.
    assert result.cer == pytest.approx((2 + 4 + 6) / 36)
    assert result.sentence_error_rate == pytest.approx(2 / 3)
    assert result.confusions == [("", "today", 1), ("sat", "sits", 1), ("the", "", 1)]
    assert result.by_speaker == {
        "ann": SpeakerScore(utterances=1, words=3, wer=pytest.approx(1 / 3)),
        "bob": SpeakerScore(utterances=2, words=7, wer=pytest.approx(2 / 7)),
    }
    assert result.alignments[1] == Alignment(
        id="y", speaker="bob", pairs=(("on", "on"), ("the", ""), ("blue", "blue"), ("mat", "mat"), ("", "today"))
    )


def test_speakers_are_listed_worst_first() -> None:
    references = dict.fromkeys(["a1", "b1", "c1"], "one two")
    hypotheses = {"a1": "one two", "b1": "", "c1": "one"}
    result = score(references, hypotheses, speakers={key: key[0] for key in references}, num_draws=FEW_DRAWS)
    assert [(speaker, part.wer) for speaker, part in result.by_speaker.items()] == [("b", 1.0), ("c", 0.5), ("a", 0.0)]


def test_both_sides_are_normalised() -> None:
    result = score({"x": "Don’t STOP — now!"}, {"x": "don't stop now"}, num_draws=FEW_DRAWS)
    assert result.wer == result.cer == 0
    assert result.alignments[0].reference == normalize("Don’t STOP — now!")


def test_empty_references() -> None:
    one_word_and_silence = score({"x": "", "y": "cat"}, {"x": "a b", "y": "cat"}, num_draws=FEW_DRAWS)
    assert (one_word_and_silence.words, one_word_and_silence.insertions) == (1, 2)
    assert one_word_and_silence.wer == 2
    assert one_word_and_silence.cer == 1  # "a b" inserted beside the three characters of "cat"
    assert one_word_and_silence.sentence_error_rate == 0.5

    silence_alone = score({"x": "", "y": "?!"}, {"x": "", "y": "..."}, num_draws=FEW_DRAWS)
    assert (silence_alone.wer, silence_alone.cer, silence_alone.wer_ci95) == (0, 0, (0, 0))
    assert silence_alone.sentence_error_rate == 0

    # No word to divide by: jiwer gives the number of insertions, and so do we; a rate stays a finite number.
    invented = score({"x": "", "y": ""}, {"x": "a b", "y": "c"}, num_draws=FEW_DRAWS)
    assert invented.wer == jiwer.wer(["", ""], ["a b", "c"]) == 3
    assert invented.cer == 4
    assert all(math.isfinite(bound) for bound in invented.wer_ci95)


def test_empty_hypotheses() -> None:
    result = score({"x": "the cat"}, {"x": ""}, num_draws=FEW_DRAWS)
    assert (result.deletions, result.wer, result.cer) == (2, 1, 1)


# Intervals and the paired test


def slow_interval(errors: list[int], words: list[int], *, num_draws: int) -> tuple[float, float]:
    choose = random.Random(1)
    rates = []
    for _ in range(num_draws):
        drawn = [choose.randrange(len(errors)) for _ in errors]
        rates.append(sum(errors[index] for index in drawn) / sum(words[index] for index in drawn))
    rates.sort()
    return rates[int(0.025 * num_draws)], rates[int(0.975 * num_draws)]


def test_interval_agrees_with_a_plain_loop() -> None:
    references, hypotheses = noisy_corpus(num_utterances=60, error_rate=0.2, seed=3)
    result = score(references, hypotheses)
    errors = [alignment.errors for alignment in result.alignments]
    words = [alignment.words for alignment in result.alignments]
    assert result.wer_ci95 == pytest.approx(slow_interval(errors, words, num_draws=3000), abs=0.006)
    assert result.wer_ci95[0] < result.wer < result.wer_ci95[1]


def test_speaker_interval_agrees_with_a_plain_loop_over_speakers() -> None:
    references, hypotheses = noisy_corpus(num_utterances=80, error_rate=0.1, seed=4)
    speakers = {key: f"s{index % 8}" for index, key in enumerate(references)}
    hypotheses |= {key: "" for key in references if speakers[key] == "s3"}
    result = score(references, hypotheses, speakers=speakers)
    words = [part.words for part in result.by_speaker.values()]
    errors = [round(part.wer * part.words) for part in result.by_speaker.values()]
    assert result.wer_ci95_by_speaker == pytest.approx(slow_interval(errors, words, num_draws=3000), abs=0.02)
    # One speaker is far off, which drawing single utterances hides.
    assert result.wer_ci95_by_speaker is not None
    assert np.ptp(result.wer_ci95_by_speaker) > 1.5 * np.ptp(result.wer_ci95)


def test_interval_covers_the_truth_about_19_times_in_20() -> None:
    hits = 0
    for seed in range(100):
        references, hypotheses = noisy_corpus(num_utterances=50, error_rate=0.3, seed=seed)
        low, high = score(references, hypotheses, num_draws=500).wer_ci95
        hits += low <= 0.3 <= high
    assert 87 <= hits <= 100


def test_interval_depends_on_the_seed_alone() -> None:
    references, hypotheses = noisy_corpus(num_utterances=40, error_rate=0.2, seed=5)
    first = score(references, hypotheses, num_draws=FEW_DRAWS, seed=7)
    assert first == score(references, hypotheses, num_draws=FEW_DRAWS, seed=7)
    assert first.wer_ci95 != score(references, hypotheses, num_draws=FEW_DRAWS, seed=8).wer_ci95


def test_memory_blocks_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    references, hypotheses = noisy_corpus(num_utterances=40, error_rate=0.2, seed=5)
    in_one_block = score(references, hypotheses, num_draws=FEW_DRAWS)
    monkeypatch.setattr("asr.evaluate._DRAWS_PER_BLOCK", 37)
    assert score(references, hypotheses, num_draws=FEW_DRAWS) == in_one_block


@pytest.mark.parametrize(
    "speakers",
    [
        None,
        {},
        {"x": "ann", "y": "ann"},
        {"x": "ann", "y": ""},
        {"x": "ann"},
    ],
)
def test_no_speaker_interval_without_two_known_speakers(speakers: dict[str, str] | None) -> None:
    texts = {"x": "a b", "y": "c"}
    assert score(texts, texts, speakers=speakers, num_draws=FEW_DRAWS).wer_ci95_by_speaker is None
    comparison = compare(texts, texts, texts, speakers=speakers, num_draws=FEW_DRAWS)
    assert (comparison.ci95_by_speaker, comparison.p_value_by_speaker) == (None, None)


def test_unknown_speakers_are_not_listed() -> None:
    texts = {"x": "a b", "y": "c"}
    assert list(score(texts, texts, speakers={"x": "ann", "y": ""}, num_draws=FEW_DRAWS).by_speaker) == ["ann"]
    assert score(texts, texts, num_draws=FEW_DRAWS).by_speaker == {}


def test_comparison_of_clearly_different_runs() -> None:
    references, bad = noisy_corpus(num_utterances=100, error_rate=0.4, seed=6)
    _, good = noisy_corpus(num_utterances=100, error_rate=0.0, seed=6)
    speakers = {key: f"s{index % 10}" for index, key in enumerate(references)}
    better = compare(references, bad, good, speakers=speakers)
    assert better.wer_a == score(references, bad, num_draws=1).wer
    assert better.wer_b == 0
    assert better.difference == -better.wer_a
    assert better.ci95[0] < better.difference < better.ci95[1] < 0
    assert better.p_value == better.p_value_by_speaker == pytest.approx(2 / 10_001)  # never 0 by chance alone
    worse = compare(references, good, bad, speakers=speakers)
    assert worse.difference == -better.difference
    assert worse.ci95 == pytest.approx((-better.ci95[1], -better.ci95[0]))
    assert worse.ci95_by_speaker is not None
    assert worse.p_value == better.p_value


def test_comparison_of_identical_runs() -> None:
    references, hypotheses = noisy_corpus(num_utterances=50, error_rate=0.2, seed=7)
    result = compare(references, hypotheses, dict(reversed(hypotheses.items())), num_draws=FEW_DRAWS)
    assert (result.difference, result.ci95, result.p_value) == (0, (0, 0), 1)


def test_comparison_is_paired() -> None:
    # Both runs are bad on the same utterances, B a little worse everywhere: hidden between separate intervals,
    # plain in a paired test.
    references = {f"u{index}": "one two three four five six seven eight" for index in range(60)}
    run_a = {key: "" if index % 2 else text for index, (key, text) in enumerate(references.items())}
    run_b = {
        key: text.replace("six", "sex") if index % 5 == 0 else text for index, (key, text) in enumerate(run_a.items())
    }
    low_b, high_b = score(references, run_b).wer_ci95
    result = compare(references, run_a, run_b)
    assert low_b < result.wer_a < high_b
    assert result.ci95[0] > 0
    assert result.p_value < 0.05


def test_p_value_of_a_coin_toss() -> None:
    # Of two utterances, A wins one by two words and B the other by one: A wins overall unless A's is never drawn.
    references = {"x": "one two three", "y": "one two three"}
    result = compare(references, references | {"y": "one two"}, references | {"x": "one"})
    assert result.difference == pytest.approx(1 / 6)
    assert result.p_value == pytest.approx(2 * 0.25, abs=0.04)


# Errors


def test_missing_and_extra_hypotheses() -> None:
    references = {f"u{index}": "a" for index in range(10)}
    some = {"u3": "a", "u4": "a", "u5": "a"}
    message = r"^7 of 10 references have no hypothesis: u0, u1, u2, u6, u7, …; give an empty hypothesis"
    for call in (
        score,
        lambda *texts: compare(*texts, references),
        lambda *texts: compare(texts[0], references, texts[1]),
    ):
        with pytest.raises(ValueError, match=message):
            call(references, some)
    with pytest.raises(ValueError, match=r"^7 of 10 hypotheses have no reference: u0, u1, u2, u6, u7, …$"):
        score(some, references)
    with pytest.raises(ValueError, match=r"^1 of 3 hypotheses have no reference: u5$"):
        score({"u3": "a", "u4": "a"}, some)


def test_nothing_to_score() -> None:
    with pytest.raises(ValueError, match="there is nothing to score: no references"):
        score({}, {"x": "a"})


def test_no_draws() -> None:
    with pytest.raises(ValueError, match="num_draws is 0; the bootstrap needs at least 1 draw"):
        score({"x": "a"}, {"x": "a"}, num_draws=0)


# JSON


def test_score_as_json() -> None:
    references, hypotheses = noisy_corpus(num_utterances=20, error_rate=0.2, seed=8)
    result = score(references, hypotheses, speakers={key: key[-1] for key in references}, num_draws=FEW_DRAWS)
    figures = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    contract = "utterances words wer wer_ci95 cer substitutions deletions insertions sentence_error_rate by_speaker"
    assert set(contract.split()) <= set(figures)
    assert not {"confusions", "alignments"} & set(figures)
    assert figures["wer"] == result.wer
    assert figures["wer_ci95"] == list(result.wer_ci95)
    assert figures["by_speaker"]["3"] == {
        "utterances": 2,
        "words": result.by_speaker["3"].words,
        "wer": result.by_speaker["3"].wer,
    }
    assert isinstance(result, Score)


def test_comparison_as_json() -> None:
    result = compare({"x": "a b"}, {"x": "a"}, {"x": "a b"}, num_draws=FEW_DRAWS)
    assert isinstance(result, Comparison)
    assert json.loads(json.dumps(result.to_dict())) == {
        "wer_a": 0.5,
        "wer_b": 0.0,
        "difference": -0.5,
        "ci95": [-0.5, -0.5],
        "p_value": 2 / (FEW_DRAWS + 1),
        "ci95_by_speaker": None,
        "p_value_by_speaker": None,
    }


# Files of `ID words…` lines


def test_read_texts(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffa-1 HELLO  World \r\n\r\nb-2\n  c-3\tÉté un\u2028deux\n".encode())
    assert read_texts(path) == {"a-1": "HELLO  World", "b-2": "", "c-3": "Été un\u2028deux"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a one\nb two\n\na three\n", r"texts\.txt:4: utterance a was given on line 1 already"),
        (b"a one\nb caf\xe9\n", r"texts\.txt:2: byte 6 of the line is not UTF-8 text; convert the file to UTF-8"),
        ("a one\n".encode("utf-16"), r"texts\.txt:1: byte 1 of the line is not UTF-8"),
        (b"", r"texts\.txt: no utterances; expected lines of an utterance id and its words"),
        (b"\n \n", r"texts\.txt: no utterances"),
    ],
)
def test_broken_text_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_texts(path)


def test_missing_text_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"texts\.txt"):
        read_texts(tmp_path / "texts.txt")
