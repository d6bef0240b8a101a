"""LibriSpeech (OpenSLR 12) and mini LibriSpeech (OpenSLR 31): found on disk, or downloaded and checked.

V. Panayotov, G. Chen, D. Povey and S. Khudanpur: "LibriSpeech: an ASR corpus based on public domain audio books",
ICASSP 2015.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from asr.data.corpora import Collected, CorpusConfig
from asr.data.download import download, extract, require_space
from asr.data.manifest import write_text
from asr.data.trees import collect_tree, measure, scan_tree, speaker_in_id

CORPUS_FOLDER = "LibriSpeech"
MARKER = ".complete.json"
# Packed FLAC is as large as unpacked FLAC; the rest is for file systems with large blocks.
_UNPACKED_PER_PACKED = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """What is published of a subset: `part_of` names the larger subset that all its utterances are also in."""

    resource: int
    md5: str
    num_utterances: int
    num_bytes: int
    part_of: str = ""


# Checksums and sizes: openslr.org/resources/12/md5sum.txt and /31/md5sum.txt. Utterances: lines of the transcripts.
SUBSETS = {
    "dev-clean": Subset(
        resource=12, md5="42e2234ba48799c1f50f24a7926300a1", num_utterances=2703, num_bytes=337_926_286
    ),
    "dev-other": Subset(
        resource=12, md5="c8d0bcc9cca99d4f8b62fcc847357931", num_utterances=2864, num_bytes=314_305_928
    ),
    "test-clean": Subset(
        resource=12, md5="32fa31d27d2e1cad72775fee3f4849a9", num_utterances=2620, num_bytes=346_663_984
    ),
    "test-other": Subset(
        resource=12, md5="fb5a50374b501bb3bac4815ee91d3135", num_utterances=2939, num_bytes=328_757_843
    ),
    "train-clean-100": Subset(
        resource=12, md5="2a93770f6d5c6c964bc36631d331a522", num_utterances=28539, num_bytes=6_387_309_499
    ),
    "train-clean-360": Subset(
        resource=12, md5="c0e676e450a7ff2f54aeade5171606fa", num_utterances=104014, num_bytes=23_049_477_885
    ),
    "train-other-500": Subset(
        resource=12, md5="d1a0fd59409feb2c614ce4d30c387708", num_utterances=148688, num_bytes=30_593_501_606
    ),
    "train-clean-5": Subset(
        resource=31,
        md5="5df7d4e78065366204ca6845bb08f490",
        num_utterances=1519,
        num_bytes=332_954_390,
        part_of="train-clean-100",
    ),
    "dev-clean-2": Subset(
        resource=31,
        md5="6d7ab67ac6a1d2c993d050e16d61080d",
        num_utterances=1089,
        num_bytes=126_046_265,
        part_of="dev-clean",
    ),
}


def _default_mirrors() -> list[str]:
    return [
        "https://www.openslr.org/resources",
        "https://openslr.trmal.net/resources",
        "https://openslr.elda.org/resources",
        "https://openslr.magicdatatech.com/resources",
    ]


@dataclass(slots=True, kw_only=True)
class LibriSpeechConfig(CorpusConfig):
    """LibriSpeech, by the names of its subsets, such as `train-clean-100` or `dev-clean-2`.

    A subset that is on disk is used where it stands, as `ROOT/LibriSpeech/NAME` or `ROOT/NAME`, in any format of
    `asr.audio.AUDIO_SUFFIXES`. A subset of mini LibriSpeech may also stand as a list of its ids, `NAME.ids`, beside the
    larger subset that it is a part of. Other folders in LibriSpeech's layout can be named as well.

    Attributes:
        download: fetch what is missing from the mirrors into `ROOT/LibriSpeech`.
        mirrors: addresses that end where OpenSLR's `/12/dev-clean.tar.gz` goes on, tried in turn.
        check_counts: refuse a known subset with another number of utterances than the published one.
        keep_archives: leave the downloaded archives in `ROOT`.
    """

    download: bool = field(default=False, metadata={"changes_manifests": False})
    mirrors: list[str] = field(default_factory=_default_mirrors, metadata={"changes_manifests": False})
    check_counts: bool = True
    keep_archives: bool = field(default=False, metadata={"changes_manifests": False})

    def stem(self, name: str) -> str:
        """Returns the subset's name; raises a ValueError if it cannot be one."""
        if name != Path(name).name or "\\" in name or name == "..":
            raise ValueError(f"set {name!r} is not the name of a LibriSpeech subset, such as {', '.join(SUBSETS)}")
        return name

    def fetch(self, sets: list[str], *, progress: bool) -> None:
        """Downloads, checks and unpacks the subsets that are not on disk.

        Raises:
            FileNotFoundError: if a subset is missing and `download` is off, or it is none that can be downloaded.
            ValueError: if a checksum or a number of utterances is not the published one, or an archive is unsafe.
            OSError: if no mirror delivers it, or the disk is full.
        """
        missing = [name for name in sets if self._find(name) is None and self._find_ids(name) is None]
        for name in missing:
            places = f"{self.root / CORPUS_FOLDER / name} or {self.root / name}"
            if name not in SUBSETS:
                raise FileNotFoundError(f"{name}: not in {places}, and none to download: {', '.join(SUBSETS)}")
            if not self.download:
                raise FileNotFoundError(
                    f"{name}: not in {places}; set data.root to where it is, or data.download=true to fetch "
                    f"{SUBSETS[name].num_bytes / 1e9:.2f} GB from {self.mirrors[0] if self.mirrors else 'a mirror'}"
                )
        if missing:
            self._require_space(missing)
        for name in missing:
            self._install(name, progress=progress)

    def collect(self, name: str, *, progress: bool) -> Collected:
        """Reads one subset and checks its number of utterances.

        Raises:
            FileNotFoundError: if it is not on disk.
            ValueError: if its number of utterances is wrong, or its transcripts cannot be read.
        """
        folder = self._find(name)
        if folder is not None:
            contents = collect_tree(folder, name=name, speaker=speaker_in_id, progress=progress)
            self._check_count(name, contents.num_transcripts, folder)
            return contents
        ids = self._find_ids(name)
        if ids is None:
            raise FileNotFoundError(f"{name}: not under {self.root}; set data.download=true to fetch it")
        return self._cut_out(name, ids, progress=progress)

    def _find(self, name: str) -> Path | None:
        """Returns the folder of a subset that is on disk."""
        places = (self.root / CORPUS_FOLDER / name, self.root / name)
        return next((place for place in places if place.is_dir()), None)

    def _find_ids(self, name: str) -> Path | None:
        """Returns the list of ids that a subset is on disk as, beside the subset that it is a part of."""
        if name not in SUBSETS or not SUBSETS[name].part_of:
            return None
        whole = self._find(SUBSETS[name].part_of)
        ids = None if whole is None else whole.with_name(f"{name}.ids")
        return ids if ids is not None and ids.is_file() else None

    def _cut_out(self, name: str, ids: Path, *, progress: bool) -> Collected:
        """Reads the utterances of a larger subset that a list of ids names."""
        whole = ids.with_name(SUBSETS[name].part_of)
        wanted = dict.fromkeys(ids.read_text(encoding="utf-8").split())
        self._check_count(name, len(wanted), ids)
        entries = [entry for entry in scan_tree(whole, speaker=speaker_in_id).entries if entry.id in wanted]
        if absent := wanted.keys() - {entry.id for entry in entries}:
            raise ValueError(
                f"{ids}: {len(absent)} of its ids are not in {whole}, {min(absent)} for one; copy it whole"
            )
        return measure(entries, name=name, progress=progress)

    def _check_count(self, name: str, found: int, where: Path) -> None:
        """Raises a ValueError if a known subset has another number of utterances than the published one."""
        if not self.check_counts or name not in SUBSETS or found == SUBSETS[name].num_utterances:
            return
        was_whole = "; it was whole when it was unpacked" if (where / MARKER).is_file() else ""
        raise ValueError(
            f"{where}: {found} utterances, but LibriSpeech's {name} has {SUBSETS[name].num_utterances}{was_whole}; "
            f"copy it whole, delete it and set data.download=true, or set data.check_counts=false to use it as it is"
        )

    def _require_space(self, names: list[str]) -> None:
        """Checks the disk for all that will be downloaded: each archive lies there packed and unpacked for a while."""
        sizes = [SUBSETS[name].num_bytes for name in names]
        packed = sum(sizes) if self.keep_archives else max(sizes)
        arrived = sum(path.stat().st_size for name in names for path in self.root.glob(f"{name}.tar.gz*"))
        needed = int(packed + sum(sizes) * _UNPACKED_PER_PACKED) - arrived
        require_space(self.root, needed, purpose=f"fetching {', '.join(names)}")

    def _install(self, name: str, *, progress: bool) -> None:
        """Downloads a subset and moves it to its place in one step, when all is there and counted."""
        subset = SUBSETS[name]
        archive = self.root / f"{name}.tar.gz"
        urls = [f"{mirror.rstrip('/')}/{subset.resource}/{archive.name}" for mirror in self.mirrors]
        download(urls, archive, md5=subset.md5, num_bytes=subset.num_bytes, progress=progress)
        unpacked = self.root / f".unpacking-{name}"
        shutil.rmtree(unpacked, ignore_errors=True)  # what an interrupted run left
        try:
            unpacked.mkdir()
            extract(archive, unpacked, progress=progress)
            self._check_unpacked(name, unpacked / CORPUS_FOLDER / name, archive)
            self._move_into_place(name, unpacked / CORPUS_FOLDER)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
        if not self.keep_archives:
            archive.unlink()

    def _check_unpacked(self, name: str, folder: Path, archive: Path) -> None:
        """Counts what was unpacked, and marks it as complete."""
        if not folder.is_dir():
            raise ValueError(f"{archive}: there is no {CORPUS_FOLDER}/{name} in it; delete it, it is not the corpus")
        scan = scan_tree(folder, speaker=speaker_in_id)
        subset = SUBSETS[name]
        if self.check_counts and len(scan.entries) != subset.num_utterances:
            raise ValueError(
                f"{archive}: {len(scan.entries)} utterances, but LibriSpeech's {name} has {subset.num_utterances}; "
                "delete it, or set data.check_counts=false to use it as it is"
            )
        record = {"archive": archive.name, "md5": subset.md5, "utterances": len(scan.entries)}
        write_text(folder / MARKER, json.dumps(record) + "\n")

    def _move_into_place(self, name: str, unpacked: Path) -> None:
        """Moves a complete subset, and the corpus's own documents, to `ROOT/LibriSpeech`."""
        target = self.root / CORPUS_FOLDER
        target.mkdir(exist_ok=True)
        for document in unpacked.glob("*.TXT"):
            if not (target / document.name).exists():
                document.replace(target / document.name)
        (unpacked / name).replace(target / name)
