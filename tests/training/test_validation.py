"""The validation of a recogniser in training: its word error rate, and what it shows."""

from dataclasses import replace

import pytest
import tiny
import torch
from training_runs import make_task
from utterances import make_utterances

from asr import evaluate
from asr.augment import AugmentConfig
from asr.data.manifest import Utterance
from asr.decoding.search import DecodingConfig, Search
from asr.recognition import recognize_utterances
from asr.training.task import WordErrorValidation

NUM_UTTERANCES = 10


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("speech")
    return make_utterances(folder, [0.2 + 0.05 * number for number in range(NUM_UTTERANCES)])


def validation(utterances: list[Utterance], *, max_batch_s: float = 9.0) -> WordErrorValidation:
    task = make_task(AugmentConfig(), dropout=0.5)
    task.model.load_state_dict(tiny.make_model().state_dict())
    return WordErrorValidation(
        task=task,
        tokenizer=tiny.make_tokenizer(),
        utterances=utterances,
        sample_rate=tiny.SAMPLE_RATE,
        max_batch_s=max_batch_s,
    )


def test_the_metric_is_the_word_error_rate_of_greedy_search(utterances):
    found = validation(utterances)()
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    recognised = recognize_utterances(
        model, utterances, {"greedy": Search(model, DecodingConfig())}, sample_rate=tiny.SAMPLE_RATE
    )
    texts = {utterance.id: tokenizer.decode(each["greedy"].best.tokens) for utterance, each in recognised}
    score = evaluate.score({each.id: each.text for each in utterances}, texts, num_draws=1)
    assert any(texts.values())
    assert found.metric == score.wer
    assert found.scalars == {"valid/wer": score.wer, "valid/cer": score.cer}


def test_dropout_is_off_and_the_batches_do_not_matter(utterances):
    first, second = validation(utterances)(), validation(utterances[::-1], max_batch_s=0.5)()
    assert first.scalars == second.scalars


def test_validation_draws_nothing(utterances):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    validate = validation(utterances)
    torch.set_rng_state(before)
    validate()
    assert torch.equal(torch.get_rng_state(), before)


def test_eight_transcripts_are_shown_beside_their_references(utterances):
    lines = validation(utterances)().texts["valid/transcripts"].splitlines()
    assert lines[:2] == ["| reference | hypothesis |", "| --- | --- |"]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [each.text for each in utterances[:8]]


def test_a_character_that_the_training_texts_lack_is_an_error_of_the_model_not_of_the_run(utterances):
    strange = [replace(utterances[0], text="x"), *utterances[1:]]
    found = validation(strange)()
    assert found.images.keys() == {
        "features/plain",
        "features/augmented",
        "attention/encoder",
        "attention/decoder",
    }


def test_an_empty_validation_set_is_an_error_with_a_way_out():
    message = r"there are no utterances to choose the model on; name sets in data\.valid, or keep some .*holdout_utter"
    with pytest.raises(ValueError, match=message):
        validation([])
