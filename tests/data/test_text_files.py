"""Text files and manifests as sentences: plain or compressed, and what is damaged is named."""

import gzip
import lzma
from pathlib import Path

import pytest

from asr.data import manifest
from asr.data.text_files import read_lines

LINES = ["A first line\n", "\n", "ein früher Zug\n"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz", "a"])
def test_a_text_is_its_lines_with_their_numbers_compressed_or_not(tmp_path: Path, name: str) -> None:
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(Path(name).suffix, open)
    with opener(tmp_path / name, "wt", encoding="utf-8") as stream:
        stream.writelines(LINES)
    assert list(read_lines(tmp_path / name)) == [(str(number), line) for number, line in enumerate(LINES, start=1)]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b\n", encoding="utf-8-sig")
    assert list(read_lines(tmp_path / "a.txt")) == [("1", "a b\n")]


def test_a_manifest_gives_its_texts(tmp_path: Path) -> None:
    texts = ["a b", "", "c"]
    utterances = [
        manifest.Utterance(id=f"u{number}", audio=tmp_path / "a.wav", duration_s=1.0, text=text)
        for number, text in enumerate(texts)
    ]
    manifest.write(tmp_path / "m.jsonl", utterances)
    assert list(read_lines(tmp_path / "m.jsonl")) == [("u0", "a b"), ("u1", ""), ("u2", "c")]


@pytest.mark.parametrize("name", ["no.txt", "no.txt.gz"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{name}: no such text; give files with a sentence a line"):
        list(read_lines(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.txt.gz", gzip.compress(b"a b c\n" * 1000)[:-20], r"cut short or damaged \(.*\); copy it again"),
        ("cut.txt.xz", lzma.compress(b"a b c\n" * 1000)[:-20], r"cut short or damaged \(.*\); copy it again"),
        ("not.txt.gz", b"plain text", r"cut short or damaged \(Not a gzipped file"),
        ("not.txt.xz", b"plain text", r"cut short or damaged \(Input format not supported"),
        ("latin.txt", "früh".encode("latin-1"), r"not UTF-8 text \(invalid .* at byte 2\); convert it first"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: {message}"):
        list(read_lines(tmp_path / name))
