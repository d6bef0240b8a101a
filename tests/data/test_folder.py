import os
from pathlib import Path

import pytest
from corpus_trees import texts, write_audio, write_tree

from asr.data import manifest
from asr.data.folder import FolderConfig
from asr.data.manifest import Utterance

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def folder(tmp_path: Path, **settings) -> FolderConfig:
    values = {"name": "mine", "root": tmp_path, "manifests": tmp_path / "manifests"}
    return FolderConfig(**(values | settings))


def read_one(config: FolderConfig) -> list[Utterance]:
    splits = config.prepare(progress=False)
    return manifest.read((splits.train + splits.valid + splits.test)[0])


def write_table(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.mark.parametrize("suffix", [".flac", ".wav", ".opus", ".ogg", ".mp3", ".FLAC"])
def test_a_tree_in_any_format(tmp_path, suffix):
    write_tree(tmp_path / "in" / "train", texts(1, 2), suffix=suffix)
    utterances = read_one(folder(tmp_path, train=["in/train"]))
    assert [each.id for each in utterances] == ["1-0-0000", "1-0-0001", "2-0-0000", "2-0-0001"]
    assert utterances[0].text == "speaker 1 says the 0"
    assert utterances[0].audio == tmp_path / f"in/train/1/0/1-0-0000{suffix}"
    # An MP3 decoder may give a few frames of padding.
    assert utterances[0].duration_s == pytest.approx(0.1, abs=0.1 if suffix == ".mp3" else 1e-6)


def test_the_manifest_is_named_after_the_path(tmp_path):
    write_tree(tmp_path / "an4" / "test", texts(1))
    write_tree(tmp_path / "v1.5", texts(2))
    splits = folder(tmp_path, train=["v1.5"], test=["an4/test"]).prepare(progress=False)
    assert (splits.train[0].name, splits.test[0].name) == ("v1.5.jsonl", "an4-test.jsonl")


def test_the_root_itself_can_be_the_set(tmp_path):
    write_tree(tmp_path / "data", texts(1))
    splits = folder(tmp_path, root=tmp_path / "data", test=["."]).prepare(progress=False)
    assert splits.test == [tmp_path / "manifests" / "mine.jsonl"]


def test_the_speaker_is_librispeechs_or_the_folder_or_unknown(tmp_path):
    write_tree(tmp_path / "set", {"61-70968-0000": "YES"})
    for place, name in (("set/fash", "an251-fash-b"), ("set/deep/er/ann", "7-8-9"), ("set", "top")):
        write_audio(tmp_path / place / f"{name}.wav")
        (tmp_path / place / "x.trans.txt").write_text(f"{name} NO\n")
    speakers = {each.id: each.speaker for each in read_one(folder(tmp_path, test=["set"]))}
    assert speakers == {"61-70968-0000": "61", "an251-fash-b": "fash", "7-8-9": "ann", "top": ""}


def test_speakers_are_held_out_of_all_training_sets(tmp_path):
    write_tree(tmp_path / "a", texts(1, 2, 3, chapters=range(2)))
    write_tree(tmp_path / "b", texts(2, 3, 4, chapters=range(5, 6), utterances=9))
    splits = folder(tmp_path, train=["a", "b"], holdout_utterances=6).prepare(progress=False)
    trained = [each for path in splits.train for each in manifest.read(path)]
    held = manifest.read(splits.valid[0])
    assert splits.valid == [tmp_path / "manifests" / "valid.jsonl"]
    assert len(held) >= 6
    assert len(held) + len(trained) == 12 + 27
    assert {each.speaker for each in held}.isdisjoint({each.speaker for each in trained})


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_tree(tmp_path / "far" / "away", texts(1))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "near").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "far" / "away" / "1" / "back").symlink_to(tmp_path / "far")
    assert len(read_one(folder(tmp_path, test=["set"]))) == 2


def test_hidden_files_and_other_formats_of_the_same_utterance_do_no_harm(tmp_path):
    write_tree(tmp_path / "set", texts(1))
    write_audio(tmp_path / "set" / "1" / "0" / "1-0-0000.wav")
    (tmp_path / "set" / "1" / "0" / "._1-0-0000.flac").write_bytes(b"what macOS leaves in archives")
    assert {each.audio.suffix for each in read_one(folder(tmp_path, test=["set"]))} == {".flac"}


def damage(kind: str, place: Path) -> None:
    transcripts = place / "1-0.trans.txt"
    if kind == "no audio":
        (place / "1-0-0001.flac").unlink()
    elif kind == "no transcript":
        write_audio(place / "1-0-0009.flac")
    elif kind == "twice":
        transcripts.write_text(transcripts.read_text() + "\n1-0-0000 AGAIN\n")
    elif kind == "empty":
        transcripts.write_text("1-0-0000 ...\n1-0-0001\n")
    elif kind == "no samples":
        write_audio(place / "1-0-0001.flac", duration_s=0.0)
    elif kind == "no sound":
        (place / "1-0-0001.flac").write_text("this is text")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no audio", r"1 not usable, .*1-0.trans.txt:2: no audio 1-0-0001.\* \(.flac .wav .opus .ogg .mp3\) beside it"),
        ("no transcript", r"1 not usable, .*1-0-0009.flac: no line for 1-0-0009 in a \*.trans.txt beside it"),
        ("twice", r"1 not usable, .*1-0.trans.txt:4: the id 1-0-0000 is already at .*1-0.trans.txt:1"),
        ("empty", r"2 not usable, .*set: 1-0-0000: its transcript is empty; set: 1-0-0001: its"),
        ("no samples", r"1 not usable, .*1-0-0001.flac"),
        ("no sound", r"1 not usable, .*1-0-0001.flac"),
    ],
)
def test_what_cannot_be_used_stops_or_is_left_out_and_named(tmp_path, capsys, kind, message):
    write_tree(tmp_path / "set", texts(1, 2))
    damage(kind, tmp_path / "set" / "1" / "0")
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, train=["set"]).prepare(progress=False)
    utterances = read_one(folder(tmp_path, train=["set"], bad_utterances="leave_out"))
    good = {"no transcript": 4, "twice": 4, "empty": 2}.get(kind, 3)
    assert len(utterances) == good
    assert "not usable" in capsys.readouterr().err


def test_a_folder_without_transcripts_and_a_missing_one(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=r"set: no transcripts in it; expected files \*.trans.txt, at any depth"):
        folder(tmp_path, test=["set"]).prepare(progress=False)
    with pytest.raises(FileNotFoundError, match=r"none: no such folder or table; set data.root \(now .*\) to"):
        folder(tmp_path, test=["none"]).prepare(progress=False)


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    write_tree(tmp_path / "set", texts(1, 2))
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "2":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: .*set/2"):
        folder(tmp_path, test=["set"]).prepare(progress=False)


def test_transcripts_that_are_not_utf8(tmp_path):
    write_tree(tmp_path / "set", texts(1))
    (tmp_path / "set" / "1" / "0" / "1-0.trans.txt").write_bytes(b"1-0-0000 caf\xe9\n")
    with pytest.raises(ValueError, match=r"1-0.trans.txt: not UTF-8 text \(.* at byte 12\); convert it"):
        folder(tmp_path, test=["set"]).prepare(progress=False)


@pytest.mark.parametrize("name", ["../other", "/somewhere"])
def test_a_set_outside_of_the_root_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"leaves data.root; name a path under it"):
        folder(tmp_path, train=[name])


def test_a_common_voice_table(tmp_path):
    write_audio(tmp_path / "en" / "clips" / "common_voice_en_1.mp3", duration_s=0.5)
    write_audio(tmp_path / "en" / "clips" / "common_voice_en_2.mp3", duration_s=0.5)
    write_audio(tmp_path / "en" / "clips" / "of_another_table.mp3")
    write_table(
        tmp_path / "en" / "train.tsv",
        "client_id\tpath\tsentence\tup_votes",
        'ann\tcommon_voice_en_1.mp3\t"Hello," she said – twice.\t2',
        'bob\tcommon_voice_en_2.mp3\tIt\'s "late"\t2',
    )
    splits = folder(tmp_path, train=["en/train.tsv"]).prepare(progress=False)
    assert splits.train == [tmp_path / "manifests" / "en-train.jsonl"]
    first, second = manifest.read(splits.train[0])
    assert (first.id, first.speaker, first.text) == ("common_voice_en_1", "ann", "hello she said twice")
    assert (second.speaker, second.text) == ("bob", "it's late")
    assert first.audio == tmp_path / "en" / "clips" / "common_voice_en_1.mp3"


def test_a_csv_table_with_other_columns(tmp_path):
    for name in ("a b.wav", "sub/c.wav"):
        write_audio(tmp_path / "audio" / name)
    write_audio(tmp_path / "far.wav")
    write_table(
        tmp_path / "t.csv",
        "\ufefffile,words",
        'audio/a b.wav,"Yes, please"',
        "audio/sub/c.wav,No",
        f"{tmp_path}/far.wav,Far",
    )
    config = folder(tmp_path, test=["t.csv"], path_column="file", text_column="words", speaker_column="")
    utterances = read_one(config)
    far = "-".join((tmp_path / "far").parts[1:])
    assert [each.id for each in utterances] == ["audio-a_b", "audio-sub-c", far]
    assert [each.text for each in utterances] == ["yes please", "no", "far"]
    assert {each.speaker for each in utterances} == {""}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path,text,client_id"], "no column 'sentence' among 'path', 'text', 'client_id'; set data.path_column"),
        (["path,sentence"], "no column 'client_id' among 'path', 'sentence'; .*empty if there is none"),
        ([""], "no column 'path' among none"),
        (["path,sentence,client_id"], "the table has no rows"),
        (["path,sentence,client_id", "a.wav,yes"], "t.csv:2: the row is shorter than the header, which has 3 columns"),
        (["path,sentence,client_id", "z.wav,yes,s"], "1 not usable, .*t.csv:2: no audio z.wav in .* or .*clips"),
        (["path,sentence,client_id", ",yes,s"], "1 not usable, .*t.csv:2: column 'path' is empty"),
        (
            ["path,sentence,client_id", "a.wav,yes,s", "a.wav,no,s"],
            "1 not usable, .*t.csv:3: the id a is already at .*t.csv:2",
        ),
        (["path,sentence,client_id", "a.wav,?!,s"], "1 not usable, .*a: its transcript is empty"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path, rows, message):
    write_audio(tmp_path / "a.wav")
    write_table(tmp_path / "t.csv", *rows)
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, train=["t.csv"]).prepare(progress=False)


def test_a_table_of_another_kind_or_encoding(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    (tmp_path / "t.csv").write_bytes(b"path,sentence,client_id\na.wav,caf\xe9,s\n")
    with pytest.raises(ValueError, match=r"t.xlsx: neither a folder, a table \(.csv or .tsv\) nor a manifest"):
        folder(tmp_path, test=["t.xlsx"]).prepare(progress=False)
    with pytest.raises(ValueError, match=r"t.csv: not UTF-8 text"):
        folder(tmp_path, test=["t.csv"]).prepare(progress=False)


@pytest.mark.real
@pytest.mark.skipif(not (SHARED / "an4").is_dir(), reason="AN4 is not in ../shared/data")
def test_an4(tmp_path):
    config = folder(tmp_path, root=SHARED, train=["an4/train"], test=["an4/test"])
    splits = config.prepare(progress=False)
    train, test = manifest.read(splits.train[0]), manifest.read(splits.test[0])
    assert (len(train), len({each.speaker for each in train})) == (948, 74)
    assert (len(test), sum(len(each.text.split()) for each in test)) == (130, 773)

    held_out = folder(tmp_path, root=SHARED, train=["an4/train"], holdout_utterances=100).prepare(progress=False)
    valid, kept = manifest.read(held_out.valid[0]), manifest.read(held_out.train[0])
    assert len(valid) >= 100
    assert sorted(each.id for each in valid + kept) == sorted(each.id for each in train)
    assert {each.speaker for each in valid}.isdisjoint({each.speaker for each in kept})


def test_manifests_join_corpora(tmp_path):
    write_tree(tmp_path / "one", texts(1))
    write_tree(tmp_path / "other", texts(2))
    folder(tmp_path, train=["one"], manifests=tmp_path / "a").prepare(progress=False)
    folder(tmp_path, train=["other"], manifests=tmp_path / "b").prepare(progress=False)
    splits = folder(tmp_path, train=["a/one.jsonl", "b/other.jsonl"]).prepare(progress=False)
    assert [path.name for path in splits.train] == ["a-one.jsonl", "b-other.jsonl"]
    utterances = [each for path in splits.train for each in manifest.read(path)]
    assert [each.id for each in utterances] == ["1-0-0000", "1-0-0001", "2-0-0000", "2-0-0001"]
    assert all(each.audio.is_file() for each in utterances)


def test_a_changed_table_or_manifest_is_read_again_and_a_missing_one_is_not(tmp_path):
    write_tree(tmp_path / "one", texts(1))
    write_tree(tmp_path / "other", texts(2))
    table = tmp_path / "t.csv"
    write_table(table, "path,sentence", "one/1/0/1-0-0000.flac,first")
    corpus = folder(tmp_path, train=["t.csv"], speaker_column="")
    assert [each.text for each in read_one(corpus)] == ["first"]
    write_table(table, "path,sentence", "one/1/0/1-0-0000.flac,first", "other/2/0/2-0-0000.flac,second")
    assert [each.text for each in read_one(corpus)] == ["first", "second"]
    table.unlink()  # as on a machine that has the manifests alone
    assert [each.text for each in read_one(corpus)] == ["first", "second"]
