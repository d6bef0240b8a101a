import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from asr.data import corpora, manifest
from asr.data.corpora import Collected, CorpusConfig, Problem, hold_out
from asr.data.manifest import Utterance


@dataclass(slots=True, kw_only=True)
class ListConfig(CorpusConfig):
    """A corpus that is given as lists, and counts how often it is read."""

    sets: dict[str, Collected] = field(default_factory=dict, metadata={"changes_manifests": False})
    num_reads: int = field(default=0, metadata={"changes_manifests": False})

    def collect(self, name: str, *, progress: bool) -> Collected:
        self.num_reads += 1
        return self.sets[name]


def spoken(*ids: str, text: str = "yes", speaker: str = "") -> list[Utterance]:
    return [
        Utterance(id=each, audio=Path(f"/x/{each}.wav"), duration_s=1.0, text=text, speaker=speaker or each[0])
        for each in ids
    ]


def corpus(tmp_path: Path, sets: dict[str, list[Utterance]], **settings) -> ListConfig:
    contents = {name: Collected(utterances=utterances) for name, utterances in sets.items()}
    return ListConfig(name="lists", root=tmp_path / "root", manifests=tmp_path / "m", sets=contents, **settings)


def ids(path: Path) -> list[str]:
    return [utterance.id for utterance in manifest.read(path)]


def test_each_set_becomes_a_manifest_named_after_it(tmp_path):
    config = corpus(tmp_path, {"x/a": spoken("a1"), "b": spoken("b1")}, train=["x/a"], valid=["b"], test=["b"])
    splits = config.prepare(progress=False)
    assert splits == corpora.Splits(
        train=[tmp_path / "m" / "x-a.jsonl"], valid=[tmp_path / "m" / "b.jsonl"], test=[tmp_path / "m" / "b.jsonl"]
    )
    assert ids(splits.train[0]) == ["a1"]
    assert config.num_reads == 2


def test_the_record_says_what_made_the_manifests_and_what_is_in_them(tmp_path):
    corpus(tmp_path, {"a": spoken("a1", "b1", text="two words")}, train=["a"]).prepare(progress=False)
    record = json.loads((tmp_path / "m" / "prepared.json").read_text())
    assert record["settings"]["root"] == str(tmp_path / "root")
    assert record["settings"]["corpus"] == "ListConfig"
    assert record["sets"] == {"a": {"utterances": 2, "speakers": 2, "words": 4, "hours": 0.0006}}
    assert record["left_out"] == 0


def test_the_same_settings_reuse_the_manifests_and_others_rebuild_them(tmp_path):
    sets = {"a": spoken("a1", "b1"), "b": spoken("b2")}
    config = corpus(tmp_path, sets, train=["a"], test=["b"])
    first = config.prepare(progress=False)
    assert (config.prepare(progress=False), config.num_reads) == (first, 2)

    other = corpus(tmp_path, sets, train=["a"], holdout_utterances=1)
    assert [path.name for path in other.prepare(progress=False).valid] == ["valid.jsonl"]
    assert other.num_reads == 1
    assert not (tmp_path / "m" / "b.jsonl").exists(), "a manifest of the old settings stayed"
    assert (config.prepare(progress=False), config.num_reads) == (first, 4)


@pytest.mark.parametrize("damage", ["no record", "broken record", "other record", "no manifest"])
def test_an_incomplete_preparation_is_made_anew(tmp_path, damage):
    config = corpus(tmp_path, {"a": spoken("a1")}, train=["a"])
    splits = config.prepare(progress=False)
    record = tmp_path / "m" / "prepared.json"
    if damage == "no record":
        record.unlink()
    elif damage == "no manifest":
        splits.train[0].unlink()
    else:
        record.write_text("{" if damage == "broken record" else "[]")
    assert config.prepare(progress=False) == splits
    assert (config.num_reads, ids(splits.train[0])) == (2, ["a1"])


def test_an_interrupted_rebuild_is_not_taken_for_the_older_one(tmp_path, monkeypatch):
    sets = {"a": spoken("a1"), "b": spoken("b1")}
    config = corpus(tmp_path, sets, train=["a"])
    config.prepare(progress=False)
    write = manifest.write

    def stop_at_b(path: Path, utterances: list[Utterance]) -> None:
        if path.stem == "b":
            raise KeyboardInterrupt
        write(path, utterances)

    monkeypatch.setattr(manifest, "write", stop_at_b)
    with pytest.raises(KeyboardInterrupt):
        corpus(tmp_path, sets, train=["a", "b"]).prepare(progress=False)
    monkeypatch.undo()
    config.prepare(progress=False)
    assert config.num_reads == 2


def test_holding_out_takes_whole_speakers_reproducibly():
    sets = {"x": spoken(*(f"{s}{n}" for s in "abcdef" for n in range(4))), "y": spoken("a8", "g1", "g2")}
    kept, held = hold_out(sets, 6, seed=3)
    everything = {each.id for utterances in sets.values() for each in utterances}
    assert 6 <= len(held) < 6 + 5
    assert {each.speaker for each in held}.isdisjoint({each.speaker for part in kept.values() for each in part})
    assert {each.id for each in held} | {each.id for part in kept.values() for each in part} == everything
    assert hold_out(sets, 6, seed=3) == (kept, held)
    assert len({tuple(each.id for each in hold_out(sets, 6, seed=seed)[1]) for seed in range(20)}) > 3


def test_holding_out_does_not_depend_on_the_order_of_the_utterances():
    utterances = spoken(*(f"{s}{n}" for s in "abcdef" for n in range(4)))
    held = hold_out({"x": utterances}, 6, seed=0)[1]
    assert {each.id for each in hold_out({"x": utterances[::-1]}, 6, seed=0)[1]} == {each.id for each in held}


def test_holding_out_spares_a_speaker_who_alone_exceeds_the_number():
    sets = {"x": spoken(*(f"a{n}" for n in range(50)), "b1", "b2", "c1", "c2", "d1", "d2")}
    for seed in range(10):
        assert "a" not in {each.speaker for each in hold_out(sets, 4, seed=seed)[1]}


def test_without_known_speakers_single_utterances_are_held_out():
    utterances = [Utterance(id=str(n), audio=Path("x"), duration_s=1.0, text="t") for n in range(10)]
    kept, held = hold_out({"x": utterances}, 3, seed=0)
    assert (len(kept["x"]), len(held)) == (7, 3)


def test_a_training_set_whose_speakers_are_all_held_out_leaves_the_splits(tmp_path):
    sets = {each: spoken(f"{each}1", f"{each}2") for each in "abc"}
    splits = corpus(tmp_path, sets, train=list("abc"), holdout_utterances=2).prepare(progress=False)
    assert len(splits.train) == 2
    assert len(ids(splits.valid[0])) == 2


@pytest.mark.parametrize("number", [2, 3])
def test_holding_out_everything_is_refused(tmp_path, number):
    config = corpus(tmp_path, {"a": spoken("a1", "a2")}, train=["a"], holdout_utterances=number)
    with pytest.raises(ValueError, match=rf"holdout_utterances={number} would leave nothing .* has 2 utterances of 1"):
        config.prepare(progress=False)


def test_an_empty_transcript_is_refused_in_training_and_fine_in_a_test_set(tmp_path):
    sets = {"a": spoken("a1") + spoken("a2", text=""), "b": spoken("b1", text="")}
    with pytest.raises(ValueError, match=r"1 not usable, .*problems.tsv: a: a2: its transcript is empty; mend them"):
        corpus(tmp_path, sets, train=["a"], test=["b"]).prepare(progress=False)
    with pytest.raises(ValueError, match=r"on without them; where nobody speaks, set data\.empty_transcripts=true$"):
        corpus(tmp_path, sets, train=["a"]).prepare(progress=False)


def test_recordings_in_which_nobody_speaks_may_be_trained_on_when_it_is_said(tmp_path):
    sets = {"a": spoken("a1") + spoken("a2", text="")}
    splits = corpus(tmp_path, sets, train=["a"], empty_transcripts=True).prepare(progress=False)
    assert ids(splits.train[0]) == ["a1", "a2"]


def test_recordings_in_which_nobody_speaks_are_not_kept_back(tmp_path):
    silent = [replace(each, speaker="") for each in spoken(*(f"s{n}" for n in range(30)), text="")]
    sets = {"a": [*silent, *spoken("a1"), *spoken("b1")]}
    splits = corpus(tmp_path, sets, train=["a"], empty_transcripts=True, holdout_utterances=1).prepare(progress=False)
    assert len(ids(splits.train[0])) == 31
    assert ids(splits.valid[0]) in (["a1"], ["b1"])


def test_settings_that_leave_silence_out_are_those_from_before_there_was_any(tmp_path):
    config = corpus(tmp_path, {"a": spoken("a1")}, train=["a"])
    assert "empty_transcripts" not in config.settings()
    assert replace(config, empty_transcripts=True).settings()["empty_transcripts"] is True


def test_problems_of_all_sets_are_named_at_once(tmp_path):
    config = corpus(tmp_path, {"a": spoken("a1"), "b": spoken("b1")}, train=["a"], test=["b"])
    for name in "ab":
        config.sets[name].problems = [Problem(f"{name}{n}", "it is gone") for n in range(4)]
    with pytest.raises(ValueError, match=r"8 not usable, .*: a: a0: it is gone; .*; b: b0: it is gone; and 3 more"):
        config.prepare(progress=False)
    lines = (tmp_path / "m" / "problems.tsv").read_text().splitlines()
    assert (len(lines), lines[-1]) == (9, "b\tb3\tit is gone")
    assert not (tmp_path / "m" / "prepared.json").exists()

    for name in "ab":
        config.sets[name].problems = []
    config.prepare(progress=False)
    assert not (tmp_path / "m" / "problems.tsv").exists()


def test_leaving_out_counts_and_names_what_is_left_out(tmp_path, capsys):
    sets = {"a": spoken("a1") + spoken("a2", text="")}
    splits = corpus(tmp_path, sets, train=["a"], bad_utterances="leave_out").prepare(progress=False)
    assert ids(splits.train[0]) == ["a1"]
    assert json.loads((tmp_path / "m" / "prepared.json").read_text())["left_out"] == 1
    captured = capsys.readouterr()
    assert "warning: lists: 1 not usable" in captured.err
    assert "a: a2: its transcript is empty; left out" in captured.err
    assert captured.out == ""


def test_a_recording_in_training_and_in_test_is_refused(tmp_path):
    config = corpus(tmp_path, {"a": spoken("a1", "a2"), "b": spoken("a2", "b1")}, train=["a"], test=["b"])
    with pytest.raises(ValueError, match="1 recordings of b, a2 for one, are also in the training set a"):
        config.prepare(progress=False)


def test_a_recording_in_two_training_sets_is_refused(tmp_path):
    config = corpus(tmp_path, {"a": spoken("a1", "a2"), "b": spoken("a2", "b1")}, train=["a", "b"])
    with pytest.raises(ValueError, match="b and a share 1 recordings, a2 for one; train on one of them"):
        config.prepare(progress=False)


def test_the_same_plain_id_for_other_words_is_no_recording_in_two_sets(tmp_path):
    sets = {"a": spoken("001", text="yes"), "b": spoken("001", text="no")}
    splits = corpus(tmp_path, sets, train=["a"], test=["b"]).prepare(progress=False)
    assert [manifest.read(path)[0].text for path in splits.train + splits.test] == ["yes", "no"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bad_utterances": "skip"}, "data.bad_utterances is 'skip', expected 'stop' or 'leave_out'"),
        ({"holdout_utterances": -1}, "data.holdout_utterances is -1, expected 0 or more"),
        ({"holdout_utterances": 5, "valid": ["b"]}, r"holdout_utterances=5 and data.valid=\['b'\] exclude each other"),
        ({"train": ["a", "a"]}, "'a' is empty or named 2 times"),
        ({"test": [""]}, "'' is empty or named 1 times"),
        ({"train": ["a"], "test": ["a"]}, "data.train has 'a', which is in data.valid or data.test too"),
        ({"train": ["x/y"], "test": ["x-y"]}, "'x-y' and 'x/y' would both be the manifest x-y.jsonl"),
        (
            {"train": ["a"], "test": ["valid"], "holdout_utterances": 1},
            "'valid' and the utterances kept back would both",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        corpus(tmp_path, {}, **settings)


def test_a_corpus_without_sets_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lists: no set is named; give data.train, data.valid or data.test"):
        corpus(tmp_path, {}).prepare(progress=False)
