"""Any folder as a corpus: LibriSpeech-style trees, CSV and TSV tables of paths and texts, manifests."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from asr.data import manifest
from asr.data.corpora import Collected, CorpusConfig, Problem
from asr.data.trees import Entry, collect_tree, measure, speaker_in_path

# A table's suffix decides what separates its columns.
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MANIFEST = ".jsonl"
CLIPS = "clips"


@dataclass(slots=True, kw_only=True)
class FolderConfig(CorpusConfig):
    """A corpus of your own: each set is a path relative to `root`, such as `an4/train` or `en/train.tsv`.

    A set that is a folder is read as a tree (`asr.data.trees`: `*.trans.txt` at any depth, audio beside them). A set
    that is a .csv or .tsv file is read as a table with a header; its audio is looked up beside the table and in
    `clips/` there, and audio that no row names belongs to some other table. The columns' defaults are Common Voice's.
    A .jsonl file is a manifest that another corpus made; several corpora are joined that way.
    A set's manifest is named after its path, with dashes for slashes: `an4-train.jsonl`, `en-train.jsonl`.

    Attributes:
        path_column: the table's column of audio files.
        text_column: the column of transcripts.
        speaker_column: the column of speakers; "" if the tables have none.
    """

    path_column: str = "path"
    text_column: str = "sentence"
    speaker_column: str = "client_id"

    def stem(self, name: str) -> str:
        """Returns the set's path with dashes for slashes and without a file's suffix; the corpus's name for `.`."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"set {name!r} leaves data.root; name a path under it")
        path = path.with_suffix("") if path.suffix in (*DELIMITERS, MANIFEST) else path
        return "-".join(path.parts) or self.name

    def file_of(self, name: str) -> Path | None:
        """A table or manifest."""
        return self.root / name if Path(name).suffix in (*DELIMITERS, MANIFEST) else None

    def collect(self, name: str, *, progress: bool) -> Collected:
        """Reads one tree, table or manifest.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it has no transcripts, lacks a column, or is not UTF-8.
        """
        path = self.root / name
        if path.is_dir():
            return collect_tree(path, name=name, speaker=speaker_in_path, progress=progress)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such folder or table; set data.root (now {self.root}) to the folder that holds {name}"
            )
        if path.suffix == MANIFEST:
            utterances = manifest.read(path)
            return Collected(utterances=utterances, num_transcripts=len(utterances))
        if path.suffix not in DELIMITERS:
            raise ValueError(
                f"{path}: neither a folder, a table ({' or '.join(DELIMITERS)}) nor a manifest ({MANIFEST})"
            )
        return self._collect_table(path, name=name, progress=progress)

    def _collect_table(self, path: Path, *, name: str, progress: bool) -> Collected:
        """Turns a table's rows into utterances and problems."""
        entries: list[Entry] = []
        problems: list[Problem] = []
        first_seen: dict[str, str] = {}
        num_rows = 0
        for where, row in _read_rows(path, [self.path_column, self.text_column, self.speaker_column]):
            num_rows += 1
            entry = self._entry(path.parent, row)
            if isinstance(entry, str):
                problems.append(Problem(where, entry))
            elif (first := first_seen.setdefault(entry.id, where)) != where:
                problems.append(Problem(where, f"the id {entry.id} is already at {first}"))
            else:
                entries.append(entry)
        if not num_rows:
            raise ValueError(f"{path}: the table has no rows; expected one utterance a row, below a header")
        contents = measure(entries, name=name, progress=progress)
        contents.problems = problems + contents.problems
        contents.num_transcripts = num_rows
        return contents

    def _entry(self, folder: Path, row: Mapping[str, str]) -> Entry | str:
        """Turns a row into an entry, or says why it is none."""
        written = row[self.path_column].strip()
        if not written:
            return f"column {self.path_column!r} is empty"
        audio = next((path for path in (folder / written, folder / CLIPS / written) if path.is_file()), None)
        if audio is None:
            return f"no audio {written} in {folder} or {folder / CLIPS}"
        parts = PurePosixPath(written).with_suffix("").parts
        # An id has no white space; `a/b c.mp3` is the utterance `a-b_c`.
        utterance_id = "_".join("-".join(part for part in parts if part not in ("/", "..")).split())
        speaker = row[self.speaker_column].strip() if self.speaker_column else ""
        return Entry(id=utterance_id, audio=audio, text=row[self.text_column], speaker=speaker)


def _read_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields `FILE:LINE` and the named columns of each row; empty column names are left out.

    Raises:
        ValueError: if a column is missing, a row is too short, or the table is not UTF-8.
    """
    columns = [column for column in columns if column]
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            # Common Voice writes its TSV files without quoting, so that a quotation mark there is only a character.
            quoting: Literal[0, 3] = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
            rows = csv.DictReader(stream, delimiter=DELIMITERS[path.suffix], quoting=quoting)
            present = rows.fieldnames or []
            if missing := [column for column in columns if column not in present]:
                raise ValueError(
                    f"{path}: no column {missing[0]!r} among {', '.join(map(repr, present)) or 'none'}; "
                    "set data.path_column, data.text_column and data.speaker_column (empty if there is none)"
                )
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if any(row[column] is None for column in columns):
                    raise ValueError(f"{where}: the row is shorter than the header, which has {len(present)} columns")
                yield where, {column: row[column] for column in columns}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a readable table: {error}") from error
