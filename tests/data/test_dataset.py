"""Batches from utterances: the same plan the same batch, from files or memory, in one process or several."""

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import tiny
import torch
from torch import Tensor
from utterances import make_utterances

from asr import audio
from asr.augment import AugmentConfig
from asr.data.batching import BatchPlan, BucketSampler, Draw
from asr.data.dataset import (
    Batch,
    LoaderConfig,
    UtteranceDataset,
    encode_all,
    find_unusable,
    preload,
    stable_seed,
    usable_utterances,
)
from asr.data.manifest import Utterance
from asr.data.workers import made_ahead
from asr.pronunciation import Lexicon, PhoneEncoder

DURATIONS_S = [0.30, 0.20, 0.50, 0.41, 0.25]
RATE = tiny.SAMPLE_RATE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speech")


@pytest.fixture(scope="module")
def utterances(folder: Path) -> list[Utterance]:
    return make_utterances(folder, DURATIONS_S)


@pytest.fixture(scope="module")
def noisy(folder: Path) -> AugmentConfig:
    for number in range(3):
        audio.save(_made(folder / "noise") / f"{number}.wav", tiny.noise(4000, seed=50 + number), sample_rate=RATE)
        room = tiny.noise(300, seed=70 + number) * torch.exp(-torch.arange(300) / 50)
        audio.save(_made(folder / "rooms") / f"{number}.wav", room, sample_rate=RATE)
    return AugmentConfig(
        noise_dir=folder / "noise", noise_probability=1.0, reverb_dir=folder / "rooms", reverb_probability=1.0
    )


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def make_dataset(utterances: list[Utterance], **changes) -> UtteranceDataset:
    settings = {"tokenizer": tiny.make_tokenizer(), "sample_rate": RATE, "augment": None, "seed": 1}
    return UtteranceDataset(utterances, **(settings | changes))


def plan_of(*indices: int, speed: float = 1.0, epoch: int = 0, position: int = 0) -> BatchPlan:
    return BatchPlan(epoch, position, [Draw(index, speed) for index in indices])


def assert_same(first: Batch, second: Batch) -> None:
    for name in ("waveforms", "lengths", "tokens", "token_lengths"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert (first.ids, first.seed, first.num_tokens) == (second.ids, second.seed, second.num_tokens)


# Batches


def test_a_batch_holds_what_the_files_and_texts_say(utterances):
    batch = make_dataset(utterances)[plan_of(2, 1)]
    assert batch.ids == ["u2", "u1"]
    assert batch.lengths.tolist() == [4000, 1600]
    for row, index in enumerate((2, 1)):
        waveform = audio.load(utterances[index].audio, sample_rate=RATE)
        assert torch.equal(batch.waveforms[row, : len(waveform)], waveform)
        assert not batch.waveforms[row, len(waveform) :].any()
    # "a b" and "b c"; the ids of space, a, b, c are 2, 3, 4, 5.
    assert batch.tokens.tolist() == [[3, 2, 4], [4, 2, 5]]
    assert (batch.token_lengths.tolist(), batch.num_tokens) == ([3, 3], 6)


def test_tokens_are_padded_with_zeros(utterances):
    batch = make_dataset(utterances)[plan_of(0, 3)]
    assert batch.tokens.tolist() == [[3, 0, 0, 0, 0], [5, 2, 3, 2, 4]]
    assert (batch.token_lengths.tolist(), batch.num_tokens) == ([1, 5], 6)


def test_a_part_of_a_recording_is_cut_out(utterances):
    part = replace(utterances[2], duration_s=0.2, start_s=0.1, end_s=0.3)
    batch = make_dataset([part])[plan_of(0)]
    assert torch.equal(batch.waveforms[0], audio.load(part.audio, sample_rate=RATE)[800:2400])


def test_the_speed_of_the_plan_is_the_speed_of_the_waveform(utterances):
    batch = make_dataset(utterances)[plan_of(2, speed=1.25)]
    assert batch.lengths.tolist() == [3200]


def test_the_pause_of_the_plan_is_before_or_behind_the_utterance(utterances):
    dataset = make_dataset(utterances, augment=AugmentConfig(pause_probability=1.0))
    alone = dataset[plan_of(2)].waveforms[0]
    sides = set()
    for epoch in range(12):
        batch = dataset[BatchPlan(epoch, 0, [Draw(2, 1.0, 0.25)])]
        assert batch.lengths.tolist() == [4000 + RATE // 4]
        assert batch.tokens.tolist() == dataset[plan_of(2)].tokens.tolist()
        starts = [start for start in (0, RATE // 4) if torch.equal(batch.waveforms[0, start : start + 4000], alone)]
        sides.update(starts)
        assert len(starts) == 1
    assert sides == {0, RATE // 4}


def test_the_same_plan_gives_the_same_batch(utterances, noisy):
    plan = BatchPlan(3, 2, [Draw(1, 0.9), Draw(4, 1.1), Draw(0, 1.0, 0.1)])
    assert_same(
        make_dataset(utterances, augment=noisy)[plan], make_dataset(list(utterances), augment=replace(noisy))[plan]
    )


def test_the_first_shard_draws_what_one_process_draws_and_the_others_something_else(utterances):
    dataset = make_dataset(utterances)
    seeds = [dataset[BatchPlan(3, 2, [Draw(1, 1.0)], shard)].seed for shard in (0, 1, 2)]
    assert seeds[0] == dataset[BatchPlan(3, 2, [Draw(1, 1.0)])].seed == stable_seed(1, "batch", 3, 2)
    assert len(set(seeds)) == 3


def test_what_is_drawn_for_an_utterance_follows_from_seed_epoch_and_utterance_alone(utterances, noisy):
    def augmented(plan: BatchPlan, seed: int = 1) -> Tensor:
        batch = make_dataset(utterances, augment=noisy, seed=seed)[plan]
        row = batch.ids.index("u1")
        return batch.waveforms[row, : batch.lengths[row]]

    alone = augmented(plan_of(1))
    assert not torch.equal(alone, make_dataset(utterances)[plan_of(1)].waveforms[0])
    assert torch.equal(augmented(plan_of(3, 1, 0, position=9)), alone)
    assert not torch.equal(augmented(plan_of(1, epoch=1)), alone)
    assert not torch.equal(augmented(plan_of(1), seed=2), alone)


def test_the_seed_of_a_batch_follows_from_seed_epoch_and_position(utterances):
    def seed(dataset_seed: int, epoch: int, position: int) -> int:
        return make_dataset(utterances, seed=dataset_seed)[plan_of(0, epoch=epoch, position=position)].seed

    drawn = {seed(*each) for each in itertools.product((1, 2), (0, 1), (0, 1))}
    assert len(drawn) == 8
    assert seed(1, 0, 0) in drawn


def test_memory_and_files_agree_to_a_step_of_16_bits(folder):
    utterances = make_utterances(folder / "resampled", DURATIONS_S, sample_rate=11025)
    cache = preload(utterances, sample_rate=RATE, max_gb=1.0, progress=False)
    plan = plan_of(0, 1, 2, 3, 4)
    from_files, from_memory = (make_dataset(utterances, cache=each)[plan] for each in (None, cache))
    assert torch.equal(from_files.lengths, from_memory.lengths)
    assert (from_files.waveforms - from_memory.waveforms).abs().max() <= 1 / 32768
    assert not torch.equal(from_files.waveforms, from_memory.waveforms)


def test_memory_is_exact_for_16_bit_audio_at_the_right_rate(utterances):
    cache = preload(utterances, sample_rate=RATE, max_gb=1.0, progress=False)
    assert_same(make_dataset(utterances, cache=cache)[plan_of(0, 2)], make_dataset(utterances)[plan_of(0, 2)])


def test_samples_beyond_full_scale_are_clipped_in_memory(tmp_path):
    soundfile.write(tmp_path / "loud.wav", [2.0, -2.0, 0.5], RATE, subtype="FLOAT")
    loud = Utterance(id="loud", audio=tmp_path / "loud.wav", duration_s=3 / RATE, text="a")
    (cached,) = preload([loud], sample_rate=RATE, max_gb=1.0, progress=False) or []
    assert cached.tolist() == [32767, -32768, 16384]


def test_audio_over_the_limit_is_not_held_in_memory(utterances, caplog):
    caplog.set_level(logging.INFO)
    needed_gb = sum(DURATIONS_S) * RATE * 2 / 1e9
    assert preload(utterances, sample_rate=RATE, max_gb=0.99 * needed_gb, progress=False) is None
    assert "audio is read from disk" in caplog.text
    assert len(preload(utterances, sample_rate=RATE, max_gb=1.01 * needed_gb, progress=False) or []) == 5


def test_an_unreadable_file_is_named(utterances, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    broken = replace(utterances[0], id="broken", audio=tmp_path / "text.wav")
    with pytest.raises(audio.AudioError, match=r"text\.wav"):
        preload([*utterances, broken], sample_rate=RATE, max_gb=1.0, progress=False)
    with pytest.raises(audio.AudioError, match=r"text\.wav"):
        make_dataset([broken])[plan_of(0)]


def test_a_text_with_a_character_that_the_tokenizer_lacks_names_the_utterance(utterances):
    strange = replace(utterances[0], id="odd-one", text="a b x")
    message = r"utterance odd-one: the tokenizer has no token for 'x' \(U\+0078\)"
    with pytest.raises(ValueError, match=message):
        make_dataset([*utterances, strange])
    with pytest.raises(ValueError, match=message):
        encode_all([strange], tiny.make_tokenizer())


def test_a_batch_moves_to_a_device_with_all_its_tensors(utterances):
    moved = make_dataset(utterances)[plan_of(0, 1)].to(torch.device("meta"))
    tensors = (moved.waveforms, moved.lengths, moved.tokens, moved.token_lengths)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.ids == ["u0", "u1"]


def test_a_batch_is_padded_to_a_step_and_nothing_else_changes(utterances):
    plain, stepped = (
        make_dataset(utterances)[plan_of(0, 1)],
        make_dataset(utterances, padding_step_s=0.25)[plan_of(0, 1)],
    )
    step = tiny.SAMPLE_RATE // 4
    assert stepped.padded_length % step == 0
    assert plain.padded_length <= stepped.padded_length < plain.padded_length + step
    assert torch.equal(stepped.waveforms[:, : plain.padded_length], plain.waveforms)
    assert not stepped.waveforms[:, plain.padded_length :].any()
    assert torch.equal(stepped.lengths, plain.lengths)


# Made ahead of training


def made(dataset: UtteranceDataset, sampler: BucketSampler, *, num_workers: int):
    return made_ahead(
        sampler.__iter__, dataset.__getitem__, num_workers=num_workers, pin_memory=False, seed=dataset.seed
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors, on purpose
@pytest.mark.parametrize("start", [(0, 0), (1, 1)])
def test_workers_draw_what_one_process_draws(utterances, noisy, start):
    dataset = make_dataset(utterances, augment=noisy)
    sampler = BucketSampler(DURATIONS_S, max_batch_s=1.2, max_batch_size=2, speeds=noisy.speeds, seed=1, start=start)
    alone, together = (list(itertools.islice(made(dataset, sampler, num_workers=number), 7)) for number in (0, 2))
    assert [plan for plan, _ in alone] == [plan for plan, _ in together] == list(itertools.islice(sampler, 7))
    for (_, one), (_, other) in zip(alone, together, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_cannot_be_read_is_one_clear_line_whoever_reads_it(utterances, tmp_path, num_workers):
    lost = replace(utterances[0], audio=tmp_path / "lost.wav")
    sampler = BucketSampler([0.3], max_batch_s=1.0, max_batch_size=1, speeds=[1.0], seed=1)
    with pytest.raises((audio.AudioError, FileNotFoundError)) as caught:
        next(made(make_dataset([lost]), sampler, num_workers=num_workers))
    assert str(caught.value).startswith(f"{lost.audio}: ") and "\n" not in str(caught.value)


# Unusable utterances


def frames_of(duration_s: float) -> int:
    """Ten frames a second."""
    return int(duration_s * 10 + 1e-9)


def utterance(name: str, duration_s: float, text: str) -> Utterance:
    return Utterance(id=name, audio=Path(f"{name}.wav"), duration_s=duration_s, text=text)


GOOD = [utterance("fits", 0.3, "abc"), utterance("repeats-fit", 0.4, "aab")]
BAD = [
    utterance("short", 0.19, "a"),
    utterance("long", 2.01, "a"),
    utterance("dense", 0.29, "abc"),
    utterance("repeats", 0.39, "aab"),
]
LIMITS = LoaderConfig(min_duration_s=0.2, max_duration_s=2.0)


def reasons(utterances: list[Utterance], *, fastest: float = 1.0) -> dict[str, str]:
    tokens = encode_all(utterances, tiny.make_tokenizer())
    found = find_unusable(utterances, tokens, LIMITS, num_frames=frames_of, fastest=fastest)
    return {each.id: each.reason for each in found}


def select(utterances: list[Utterance], policy: str) -> list[Utterance]:
    config = replace(LIMITS, unusable=policy)
    return usable_utterances(utterances, tiny.make_tokenizer(), config, num_frames=frames_of, fastest=1.0)


def test_too_short_too_long_and_too_dense_utterances_are_found_with_their_reasons():
    assert reasons(GOOD + BAD) == {
        "short": "lasts 0.19 s, less than 0.2 s",
        "long": "lasts 2.01 s, more than 2 s",
        "dense": "has 2 frames for 3 tokens, CTC needs 3",
        "repeats": "has 3 frames for 3 tokens, CTC needs 4",
    }


def test_the_fastest_speed_leaves_fewer_frames():
    assert reasons(GOOD, fastest=1.1) == {
        "fits": "has 2 frames for 3 tokens, CTC needs 3",
        "repeats-fit": "has 3 frames for 3 tokens, CTC needs 4",
    }
    assert reasons([utterance("fits", 0.33, "abc"), utterance("repeats-fit", 0.44, "aab")], fastest=1.1) == {}


def test_stop_names_the_unusable_utterances_and_the_way_out():
    with pytest.raises(
        ValueError,
        match=r"^4 of 6 training utterances are unusable: short lasts 0\.19 s, less than 0\.2 s; long .*; dense .*; "
        r"repeats has 3 frames .* needs 4; mend them, or set loader\.unusable=leave_out$",
    ):
        select(GOOD + BAD, "stop")
    assert select(GOOD, "stop") == GOOD


def test_leave_out_keeps_the_rest_in_order_and_logs_number_and_names(caplog):
    caplog.set_level(logging.INFO)
    assert select([GOOD[1], *BAD, GOOD[0]], "leave_out") == [GOOD[1], GOOD[0]]
    assert "left out: 4 of 6 training utterances are unusable: short lasts" in caplog.text


def test_a_long_list_is_cut_in_the_message_but_every_name_is_in_the_log(caplog):
    caplog.set_level(logging.INFO)
    many = [utterance(f"short{number}", 0.1, "a") for number in range(9)]
    select(GOOD + many, "leave_out")
    assert "and 4 more" in caplog.text
    assert all(f"short{number} lasts" in caplog.text for number in range(9))


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match=r"no training utterance is left: short lasts .*; repeats has"):
        select(BAD, "leave_out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unusable": "skip"}, r"loader\.unusable is 'skip'; choose stop or leave_out"),
        ({"min_duration_s": 0.0}, r"loader\.min_duration_s 0 and loader\.max_duration_s 40: the first must be above 0"),
        (
            {"max_duration_s": 0.05},
            r"loader\.min_duration_s 0\.1 and loader\.max_duration_s 0\.05: .* below the second",
        ),
        ({"max_batch_s": 0.0}, r"loader\.max_batch_s 0 and max_batch_size 256 must be positive"),
        ({"max_batch_size": 0}, r"loader\.max_batch_s 120 and max_batch_size 0 must be positive"),
        ({"padding_step_s": -1.0}, r"loader\.padding_step_s is -1; it must not be negative"),
        ({"num_workers": -1}, r"loader\.num_workers -1 and loader\.cache_gb 4 must not be negative"),
        ({"cache_gb": -0.5}, r"loader\.num_workers 0 and loader\.cache_gb -0\.5 must not be negative"),
    ],
)
def test_loader_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**changes)


# Seeds


def test_a_stable_seed_is_the_same_on_every_machine_and_in_every_process():
    assert stable_seed(1, "utterance", 2, 3) == 8797863961617438882
    assert stable_seed(1, "utterance", 2, 4) != stable_seed(1, "utterance", 2, 3) != stable_seed(1, "batch", 2, 3)


def test_stable_seeds_fit_a_generator():
    seeds = [stable_seed("x", number) for number in range(1000)]
    assert len(set(seeds)) == 1000
    assert 0 <= min(seeds) < 2**60 < max(seeds) < 2**63


# Phones

PHONES = PhoneEncoder(
    Lexicon({"a": [("x", "y")], "b": [("z",)], "ab": [("y",)], "abc": [("x", "x", "x")]}), ["x", "y", "z"]
)


def test_with_a_lexicon_a_batch_has_the_phones_of_its_utterances_too(utterances: list[Utterance]) -> None:
    spoken = [replace(utterances[0], text="a b ab"), replace(utterances[1], text="b")]
    batch = make_dataset(spoken, phone_encoder=PHONES)[plan_of(1, 0)]
    assert batch.phones is not None and batch.phone_lengths is not None
    assert batch.phones.tolist() == [[3, 0, 0, 0], [1, 2, 3, 2]]
    assert batch.phone_lengths.tolist() == [1, 4]
    moved = batch.to(torch.device("meta"))
    assert moved.phones is not None and moved.phones.is_meta
    stepped = make_dataset(spoken, phone_encoder=PHONES, padding_step_s=0.5)[plan_of(1, 0)]
    assert stepped.phones is not None and stepped.phones.shape == stepped.tokens.shape == (2, 63)
    longer = make_dataset([replace(utterances[0], text=" ".join(["a"] * 40))], phone_encoder=PHONES, padding_step_s=0.5)
    batch = longer[plan_of(0)]  # 79 tokens, 80 phones
    assert batch.phones is not None and batch.phones.shape == batch.tokens.shape == (1, 127)
    words = make_dataset(
        [replace(utterances[0], text=" ".join(["abc"] * 10))], phone_encoder=PHONES, padding_step_s=0.5
    )
    batch = words[plan_of(0)]  # 39 tokens, 30 phones
    assert batch.phones is not None and batch.phones.shape == (1, 63)
    assert make_dataset(spoken)[plan_of(0)].phones is None


def test_a_word_that_the_lexicon_lacks_is_named_with_its_utterance(utterances: list[Utterance]) -> None:
    with pytest.raises(ValueError, match=r"^utterance .*: the pronunciation lexicon lacks the word 'c'"):
        make_dataset([replace(utterances[0], text="a c")], phone_encoder=PHONES)


def test_phones_need_frames_too() -> None:
    tight = utterance("tight", 0.4, "abc")
    select = [usable_utterances, [tight], tiny.make_tokenizer(), LIMITS]
    assert select[0](*select[1:], num_frames=frames_of, fastest=1.0) == [tight]
    with pytest.raises(ValueError, match=r"tight has 4 frames for 3 tokens and 3 phones, CTC needs 5; mend them"):
        select[0](*select[1:], num_frames=frames_of, fastest=1.0, phone_encoder=PHONES)
