"""What all corpora share: their settings, their sets, and manifests that are made once and then reused.

A corpus is a dataclass beside this one that says, in `collect`, which utterances one of its sets holds. Everything else
is here: keeping back whole speakers for validation, refusing a recording that is in training and in test, naming
the utterances that cannot be used, and writing `SET.jsonl` files with a `prepared.json` that records what made them.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from asr.data import manifest
from asr.data.manifest import Utterance

PREPARED = "prepared.json"
PROBLEMS = "problems.tsv"
HELD_OUT = "valid"
# Raised whenever the same settings would give other manifests, so that old ones are made anew.
_FORMAT = 1
_NUM_NAMED = 5
_EMPTY = "its transcript is empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The manifests of a corpus by their use; the name of a set is its file's stem."""

    train: list[Path]
    valid: list[Path]
    test: list[Path]


@dataclass(frozen=True, slots=True)
class Problem:
    """An utterance, or a file, that cannot be used, and why."""

    where: str
    reason: str


@dataclass(slots=True, kw_only=True)
class Collected:
    """What a set holds: usable utterances and problems; `num_transcripts` counts the transcripts of both."""

    utterances: list[Utterance]
    problems: list[Problem] = field(default_factory=list)
    num_transcripts: int = 0


@dataclass(slots=True, kw_only=True)
class CorpusConfig:
    """Settings of any corpus, and the way from them to manifests.

    Attributes:
        name: the corpus's name, for messages.
        root: the folder that the corpus lies in.
        manifests: the folder that its manifests are written to.
        train: names of the training sets.
        valid: names of the sets that models are chosen on.
        test: names of the sets that are reported.
        holdout_utterances: keep back at least so many utterances of the training sets as the set `valid`, whole
            speakers at a time (single utterances where no speaker is known); 0 for none. Excludes `valid`.
        holdout_seed: which speakers are kept back.
        bad_utterances: what to do about utterances that cannot be used (no audio, no transcript, an empty transcript in
            training): "stop", or "leave_out" to go on without them. Either way they are counted and named, all of them
            in `problems.tsv` beside the manifests.
        empty_transcripts: whether training sets may hold recordings in which nobody speaks, with an empty transcript:
            noise from which a recogniser learns to hear nothing. False counts them among those that cannot be used.
            None of them is kept back. A batch of nothing else weighs as much as any other: let there be few.
    """

    name: str
    root: Path
    manifests: Path
    train: list[str] = field(default_factory=list)
    valid: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    holdout_utterances: int = 0
    holdout_seed: int = 0
    bad_utterances: str = "stop"
    empty_transcripts: bool = False

    def __post_init__(self) -> None:
        self.root = Path(self.root).expanduser()
        self.manifests = Path(self.manifests).expanduser()
        if self.bad_utterances not in ("stop", "leave_out"):
            raise ValueError(f"data.bad_utterances is {self.bad_utterances!r}, expected 'stop' or 'leave_out'")
        if self.holdout_utterances < 0:
            raise ValueError(f"data.holdout_utterances is {self.holdout_utterances}, expected 0 or more")
        if self.holdout_utterances and self.valid:
            raise ValueError(
                f"data.holdout_utterances={self.holdout_utterances} and data.valid={self.valid} exclude each other; "
                "set one of them to 0 or []"
            )
        self._check_names()

    def fetch(self, sets: list[str], *, progress: bool) -> None:
        """Brings the named sets to disk where they are not; a corpus that can be downloaded or made overrides this."""

    def collect(self, name: str, *, progress: bool) -> Collected:
        """Returns what one set holds; each corpus implements this.

        Raises:
            FileNotFoundError: if the set is not on disk.
            ValueError: if it is not as it should be.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its sets hold")

    def stem(self, name: str) -> str:
        """Returns the stem of a set's manifest, which is the set's name in results."""
        return name.replace("/", "-")

    def file_of(self, name: str) -> Path | None:
        """The one file that a set is read from, such as a table, if it is one; manifests are made anew when it changes.

        Folders of audio are not looked through again: remove the manifests after changing what is in them.
        """
        return None

    def prepare(self, *, progress: bool = True) -> Splits:
        """Makes the manifests of all sets, or finds those that the same settings made before.

        Args:
            progress: show progress bars on standard error.

        Raises:
            FileNotFoundError: if a set is not on disk and cannot be fetched.
            ValueError: if utterances cannot be used (and `bad_utterances` is "stop"), a recording is in two sets that
                must be disjoint, or too little would be left to train on.
        """
        if not (self.train or self.valid or self.test):
            raise ValueError(f"{self.name}: no set is named; give data.train, data.valid or data.test")
        if (reused := self._reuse()) is not None:
            return reused
        names = list(dict.fromkeys(self.train + self.valid + self.test))
        self.fetch(names, progress=progress)
        collected = {name: self.collect(name, progress=progress) for name in names}
        self._settle_problems(collected)
        sets = {name: collected[name].utterances for name in names}
        self._check_disjoint(sets)
        return self._write(sets, num_problems=sum(len(each.problems) for each in collected.values()))

    def settings(self) -> dict[str, object]:
        """Returns the settings that decide what is in the manifests, as plain JSON values."""
        values: dict[str, object] = {"corpus": type(self).__name__}
        for each in fields(self):
            if each.name == "empty_transcripts" and not self.empty_transcripts:
                continue  # manifests from before there was such a setting are still right
            if each.metadata.get("changes_manifests", each.name != "manifests"):
                value = getattr(self, each.name)
                values[each.name] = str(value.absolute()) if isinstance(value, Path) else value
        return values

    def _check_names(self) -> None:
        """Refuses sets that come twice, that are trained and tested on, or that share the name of a manifest."""
        for use, names in (("train", self.train), ("valid", self.valid), ("test", self.test)):
            for name, count in Counter(names).items():
                if not name or count > 1:
                    raise ValueError(f"data.{use} is {names}: {name!r} is empty or named {count} times; name it once")
        for name in self.train:
            if name in self.valid + self.test:
                raise ValueError(f"data.train has {name!r}, which is in data.valid or data.test too; keep them apart")
        taken = {HELD_OUT: "the utterances kept back"} if self.holdout_utterances else {}
        for name in dict.fromkeys(self.train + self.valid + self.test):
            if (other := taken.setdefault(self.stem(name), repr(name))) != repr(name):
                raise ValueError(f"{name!r} and {other} would both be the manifest {self.stem(name)}.jsonl; rename one")

    def _reuse(self) -> Splits | None:
        """Returns the manifests on disk if the same settings and files made them and they are all there."""
        try:
            record = json.loads((self.manifests / PREPARED).read_text(encoding="utf-8"))
            same = record["format"] == _FORMAT and record["settings"] == self.settings()
            same = same and all(record["files"].get(name) == digest for name, digest in self._digests().items())
            splits = self._splits(**{use: list(record["splits"][use]) for use in ("train", "valid", "test")})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return splits if same and all(path.is_file() for path in splits.train + splits.valid + splits.test) else None

    def _digests(self) -> dict[str, str]:
        """What the files of sets hold now; those that are not there any more are taken to be as they were."""
        files = {name: self.file_of(name) for name in dict.fromkeys(self.train + self.valid + self.test)}
        digests = {}
        for name, path in files.items():
            if path is not None and path.is_file():
                with path.open("rb") as stream:
                    digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        return digests

    def _splits(self, *, train: list[str], valid: list[str], test: list[str]) -> Splits:
        """Turns stems into the paths of manifests."""
        paths = [[self.manifests / f"{stem}.jsonl" for stem in stems] for stems in (train, valid, test)]
        return Splits(train=paths[0], valid=paths[1], test=paths[2])

    def _settle_problems(self, collected: Mapping[str, Collected]) -> None:
        """Names what cannot be used, in `problems.tsv` and on standard error, or stops."""
        for name in [] if self.empty_transcripts else self.train:
            contents = collected[name]
            empty = [utterance for utterance in contents.utterances if not utterance.text]
            contents.problems += [Problem(utterance.id, _EMPTY) for utterance in empty]
            contents.utterances = [utterance for utterance in contents.utterances if utterance.text]
        problems = [(name, problem) for name, contents in collected.items() for problem in contents.problems]
        report = self.manifests / PROBLEMS
        if not problems:
            report.unlink(missing_ok=True)
            return
        lines = [f"{name}\t{problem.where}\t{problem.reason}\n" for name, problem in problems]
        manifest.write_text(report, "set\tutterance\treason\n" + "".join(lines))
        named = [f"{name}: {problem.where}: {problem.reason}" for name, problem in problems[:_NUM_NAMED]]
        more = f"; and {len(problems) - _NUM_NAMED} more" if len(problems) > _NUM_NAMED else ""
        summary = f"{self.name}: {len(problems)} not usable, all in {report}: {'; '.join(named)}{more}"
        if self.bad_utterances == "stop":
            silent = any(problem.reason == _EMPTY for _, problem in problems)
            hint = "; where nobody speaks, set data.empty_transcripts=true" if silent else ""
            raise ValueError(f"{summary}; mend them, or set data.bad_utterances=leave_out to go on without them{hint}")
        print(f"warning: {summary}; left out, as data.bad_utterances=leave_out says", file=sys.stderr)

    def _check_disjoint(self, sets: Mapping[str, list[Utterance]]) -> None:
        """Refuses a recording that is in two training sets, or in training and in validation or test."""
        owner: dict[tuple[str, str, float], str] = {}
        for name in self.train:
            shared = [each for each in sets[name] if owner.setdefault(_recording(each), name) != name]
            if shared:
                other = owner[_recording(shared[0])]
                raise ValueError(
                    f"{name} and {other} share {len(shared)} recordings, {shared[0].id} for one; train on one of them"
                )
        for name in dict.fromkeys(self.valid + self.test):
            shared = [each for each in sets[name] if _recording(each) in owner]
            if shared:
                raise ValueError(
                    f"{len(shared)} recordings of {name}, {shared[0].id} for one, are also in the training set "
                    f"{owner[_recording(shared[0])]}; scores on them would mean nothing, so take them out of one"
                )

    def _write(self, sets: dict[str, list[Utterance]], *, num_problems: int) -> Splits:
        """Writes all manifests, and then the record of what made them."""
        use: dict[str, list[str]] = {"train": self.train, "valid": self.valid, "test": self.test}
        if self.holdout_utterances:
            training = {name: sets[name] for name in self.train}
            kept, held = hold_out(training, self.holdout_utterances, seed=self.holdout_seed)
            sets = {**sets, **kept, HELD_OUT: held}
            use = {**use, "train": [name for name in self.train if kept[name]], "valid": [HELD_OUT]}
        self._clear()
        stems = {each: [self.stem(name) for name in names] for each, names in use.items()}
        contents: dict[str, dict[str, object]] = {}
        for name in dict.fromkeys(name for names in use.values() for name in names):
            manifest.write(self.manifests / f"{self.stem(name)}.jsonl", sets[name])
            contents[self.stem(name)] = count(sets[name])
        record = {
            "format": _FORMAT,
            "settings": self.settings(),
            "files": self._digests(),
            "splits": stems,
            "sets": contents,
            "left_out": num_problems,
        }
        manifest.write_text(self.manifests / PREPARED, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        return self._splits(**stems)

    def _clear(self) -> None:
        """Removes the record of an earlier preparation, and then the manifests that it lists.

        The record goes first: manifests that an interruption leaves half made are then never taken for whole ones.
        """
        path = self.manifests / PREPARED
        try:
            stems = list(json.loads(path.read_text(encoding="utf-8"))["sets"])
        except (OSError, ValueError, KeyError, TypeError):
            stems = []
        path.unlink(missing_ok=True)
        for stem in stems:
            (self.manifests / f"{Path(stem).name}.jsonl").unlink(missing_ok=True)


def hold_out(
    sets: Mapping[str, list[Utterance]], num_utterances: int, *, seed: int
) -> tuple[dict[str, list[Utterance]], list[Utterance]]:
    """Keeps back whole speakers of some sets until at least `num_utterances` utterances are kept back.

    The order of the speakers comes from a hash of seed and speaker, so it is the same everywhere, and a new speaker
    in the corpus does not change the order of the others. Speakers who alone exceed the number come last: otherwise one
    of them could take a large part of the training data away. An utterance of no known speaker counts as its own.
    Where nobody speaks, nothing can be judged: recordings with an empty transcript are never kept back.

    Returns:
        The sets without these utterances, and the utterances kept back, both in their old order.

    Raises:
        ValueError: if no utterance would be left to train on.
    """
    everything = [utterance for utterances in sets.values() for utterance in utterances if utterance.text]
    size = Counter(map(_speaker, everything))
    order = sorted(size, key=lambda speaker: (size[speaker] > num_utterances, _hash(seed, speaker)))
    held: set[tuple[str, str]] = set()
    num_held = 0
    for speaker in order:
        if num_held >= num_utterances:
            break
        held.add(speaker)
        num_held += size[speaker]
    if num_held < num_utterances or len(held) == len(size):
        raise ValueError(
            f"data.holdout_utterances={num_utterances} would leave nothing to train on: {', '.join(sets) or 'no set'} "
            f"has {len(everything)} utterances of {len(size)} speakers; lower it, or name a set in data.valid"
        )
    kept = {
        name: [each for each in utterances if not each.text or _speaker(each) not in held]
        for name, utterances in sets.items()
    }
    return kept, [utterance for utterance in everything if _speaker(utterance) in held]


def count(utterances: Iterable[Utterance]) -> dict[str, object]:
    """Returns the numbers of utterances, known speakers and words, and the hours of speech."""
    utterances = list(utterances)
    return {
        "utterances": len(utterances),
        "speakers": len({utterance.speaker for utterance in utterances} - {""}),
        "words": sum(len(utterance.text.split()) for utterance in utterances),
        "hours": round(sum(utterance.duration_s for utterance in utterances) / 3600, 4),
    }


def _recording(utterance: Utterance) -> tuple[str, str, float]:
    """What marks the same recording, wherever its copies lie: plain ids such as `001` may well be in two corpora."""
    return utterance.id, utterance.text, round(utterance.duration_s, 3)


def _speaker(utterance: Utterance) -> tuple[str, str]:
    """The key of an utterance's speaker; where none is known, that of the utterance itself."""
    return (utterance.speaker, "") if utterance.speaker else ("", utterance.id)


def _hash(seed: int, speaker: tuple[str, str]) -> str:
    return hashlib.sha256(f"{seed}\t{speaker[0]}\t{speaker[1]}".encode()).hexdigest()
