"""Recall of listed words and phrases."""

import pytest

from asr.evaluate import score
from asr.phrase_recall import PhraseRecall, phrase_recall, wer_of_rest


def test_occurrences_are_counted_as_whole_words_in_each_utterance() -> None:
    references = {"a": "Ann met anna and ann", "b": "the New York times", "c": "nothing"}
    hypotheses = {"a": "ann met ann", "b": "the new yolk times", "c": "ann york new york"}
    found = phrase_recall(references, hypotheses, ["ann", "new york"])
    assert found == PhraseRecall(spoken=3, found=2, false=2)
    assert found.recall == pytest.approx(2 / 3)
    assert found.to_dict() == {"spoken": 3, "found": 2, "false": 2, "recall": pytest.approx(2 / 3)}


def test_repeats_and_overlaps_count() -> None:
    assert phrase_recall({"a": "no no no"}, {"a": "no no"}, ["no no"]) == PhraseRecall(spoken=2, found=1, false=0)


def test_nothing_spoken_has_no_recall() -> None:
    assert phrase_recall({"a": "x"}, {"a": "y"}, ["z", "..."]).recall is None


def test_an_utterance_without_hypothesis_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^utterance b has no hypothesis; recognise it, or leave it out of the ref"):
        phrase_recall({"a": "x", "b": "x"}, {"a": "x"}, ["x"])


def test_errors_of_the_rest_are_those_of_words_that_no_phrase_has() -> None:
    references = {"a": "ann met bob in york", "b": "nothing new"}
    hypotheses = {"a": "and met bob york", "b": "ann nothing knew so"}
    # Ann -> and and the inserted ann are the list's; in is deleted, new -> knew, so is inserted.
    found = wer_of_rest(score(references, hypotheses, num_draws=1).alignments, ["Ann", "york"])
    assert found == pytest.approx(3 / 5)


def test_without_a_rest_there_is_no_rate() -> None:
    assert wer_of_rest(score({"a": "ann"}, {"a": "an"}, num_draws=1).alignments, ["ann"]) is None
