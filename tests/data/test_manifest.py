import errno
import json
from pathlib import Path

import pytest

from asr.data import manifest
from asr.data.manifest import Utterance

GOOD = {"id": "a", "audio": "a.wav", "duration_s": 1.5, "text": "yes", "speaker": "s"}


def utterance(**changes: object) -> Utterance:
    values: dict[str, object] = {"id": "a", "audio": Path("/x/a.wav"), "duration_s": 1.5, "text": "yes"}
    return Utterance(**(values | changes))  # type: ignore[arg-type]


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_what_is_written_is_read_again(tmp_path):
    utterances = [
        utterance(id="ünï-1", audio=tmp_path / "clips" / "ü.flac", text="schön", speaker="Ö"),
        utterance(id="2", audio=Path("/far/away.opus"), text="", duration_s=0.25, start_s=1.0, end_s=1.25),
        utterance(id="3", audio=Path("/far/away.opus"), duration_s=1 / 3),
    ]
    path = tmp_path / "manifests" / ".." / "set.jsonl"
    (tmp_path / "manifests").mkdir()
    manifest.write(tmp_path / "set.jsonl", utterances)
    assert manifest.read(tmp_path / "set.jsonl") == utterances
    assert [each.audio.resolve() for each in manifest.read(path)] == [each.audio for each in utterances]


def test_audio_under_the_manifests_folder_is_relative_to_it_and_other_audio_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m" / "set.jsonl"
    manifest.write(path, [utterance(audio=Path("m/in/a.wav")), utterance(id="b", audio=Path("out/b.wav"))])
    assert [json.loads(line)["audio"] for line in path.read_text().splitlines()] == [
        "in/a.wav",
        (tmp_path / "out" / "b.wav").as_posix(),
    ]
    assert manifest.read(path)[0].audio == tmp_path / "m" / "in" / "a.wav"


def test_optional_fields_blank_lines_and_notes_of_the_owner_are_fine(tmp_path):
    path = write_lines(
        tmp_path / "m.jsonl",
        {"id": "a", "audio": "/a.wav", "duration_s": 2, "text": "yes", "start_s": None, "gender": "f"},
        "  ",
        {"id": "b", "audio": "/a.wav", "duration_s": 2, "text": "no", "start_s": 3, "end_s": 5},
    )
    first, second = manifest.read(path)
    assert (first.speaker, first.start_s, first.end_s) == ("", None, None)
    assert (second.duration_s, second.start_s, second.end_s) == (2.0, 3.0, 5.0)


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert manifest.read(tmp_path / "m.jsonl")[0].audio == tmp_path / "a.wav"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "audio": ', r"broken JSON at column \d+: Expecting value"),
        ("[1, 2]", r"expected a JSON object, got \[1, 2\]"),
        ("null", "expected a JSON object, got null"),
        *(({k: v for k, v in GOOD.items() if k != name}, f"field '{name}' is missing") for name in list(GOOD)[:4]),
        (GOOD | {"id": 7}, "field 'id' is 7, expected a string"),
        (GOOD | {"id": "a b"}, "id 'a b' is empty or has white space"),
        (GOOD | {"id": ""}, "id '' is empty"),
        (GOOD | {"audio": ""}, "field 'audio' is empty"),
        (GOOD | {"audio": ["x" * 99]}, r"field 'audio' is \[\"x+…, expected a string"),
        (GOOD | {"text": None}, "field 'text' is null, expected a string"),
        (GOOD | {"speaker": 3}, "field 'speaker' is 3, expected a string"),
        (GOOD | {"duration_s": "1.5"}, "field 'duration_s' is \"1.5\", expected a number of seconds"),
        (GOOD | {"duration_s": True}, "field 'duration_s' is true, expected a number of seconds"),
        (GOOD | {"duration_s": 0}, "duration_s is 0.0, expected seconds above 0"),
        (GOOD | {"duration_s": -1}, "duration_s is -1.0, expected seconds above 0"),
        (GOOD | {"duration_s": float("nan")}, "duration_s is nan"),
        (GOOD | {"duration_s": float("inf")}, "duration_s is inf"),
        (GOOD | {"start_s": -1}, "start_s is -1.0, expected seconds from 0 up"),
        (GOOD | {"start_s": 2, "end_s": 2}, "end_s is 2.0, expected more than the start, 2.0 s"),
        (GOOD | {"end_s": 9}, "duration_s is 1.5, but the part from 0.0 s to 9.0 s lasts 9 s"),
    ],
)
def test_a_broken_line_names_file_line_and_field(tmp_path, line, message):
    path = write_lines(tmp_path / "m.jsonl", GOOD | {"id": "first"}, line)
    with pytest.raises(ValueError, match=f"m.jsonl:2: .*{message}"):
        manifest.read(path)


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(ValueError, match=r"m.jsonl:2: not UTF-8 text .* at byte 8"):
        manifest.read(tmp_path / "m.jsonl")


def test_an_id_that_comes_twice_names_both_lines(tmp_path):
    path = write_lines(tmp_path / "m.jsonl", GOOD, GOOD | {"id": "b"}, GOOD)
    with pytest.raises(ValueError, match=r"m.jsonl:3: id 'a' is already on line 1"):
        manifest.read(path)


@pytest.mark.parametrize("contents", ["", "\n \n"])
def test_an_empty_manifest_is_an_error(tmp_path, contents):
    (tmp_path / "m.jsonl").write_text(contents)
    with pytest.raises(ValueError, match=r"m.jsonl: the manifest is empty"):
        manifest.read(tmp_path / "m.jsonl")


def test_a_missing_manifest_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"m.jsonl: no such manifest; recipes/prepare.py makes"):
        manifest.read(tmp_path / "m.jsonl")
    with pytest.raises(FileNotFoundError, match="is a folder, not a manifest"):
        manifest.read(tmp_path)


def test_writing_refuses_duplicates_and_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "m.jsonl"
    manifest.write(path, [utterance()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"m.jsonl: two utterances have the id 'a'"):
        manifest.write(path, [utterance(), utterance()])
    with pytest.raises(ValueError, match=r"m.jsonl: there are no utterances to write"):
        manifest.write(path, [])
    assert path.read_bytes() == before


def test_a_full_disk_names_the_file_and_leaves_the_old_one_alone(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    manifest.write(path, [utterance()])
    before = path.read_bytes()

    def full(self: Path, text: str, **_: object) -> int:
        self.write_bytes(text.encode()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"m.jsonl cannot be written: No space left on device"):
        manifest.write(path, [utterance(text="another")])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
