import hashlib
import io
import shutil
import sys
import tarfile
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from corpus_trees import texts, write_tree

from asr.data import librispeech, manifest
from asr.data.download import DownloadError, download, extract
from asr.data.librispeech import SUBSETS, LibriSpeechConfig, Subset

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
TEXTS = texts(1272, 61)
TRAIN_TEXTS = texts(19, 26, 27)


@dataclass
class Mirror:
    """A server on this machine, with the faults that servers and networks have."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    knows_ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes sent before each of the next connections breaks
    names_length: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range


class Handler(BaseHTTPRequestHandler):
    def __init__(self, mirror: Mirror, *args) -> None:
        self.mirror = mirror
        super().__init__(*args)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.mirror.requests.append((self.path, wanted))
        body = self.mirror.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.mirror.knows_ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.mirror.names_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = self.mirror.cut_after.pop(0) if self.mirror.cut_after else len(body)
        self.wfile.write(body[start : start + cut])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def start_mirror() -> Iterator[Callable[..., Mirror]]:
    servers = []

    def start(**settings) -> Mirror:
        mirror = Mirror(**settings)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, mirror))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        mirror.url = f"http://127.0.0.1:{server.server_port}"
        return mirror

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def pack(folder: Path, name: str, contents: dict[str, str]) -> bytes:
    """Packs a subset as OpenSLR does, with the corpus's documents beside it."""
    write_tree(folder / "LibriSpeech" / name, contents)
    (folder / "LibriSpeech" / "LICENSE.TXT").write_text("CC BY 4.0")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(folder / "LibriSpeech", "LibriSpeech")
    return packed.getvalue()


@pytest.fixture
def archives(tmp_path, monkeypatch) -> dict[str, bytes]:
    """Small archives in the place of the real ones, which the table is made to describe."""
    files = {}
    for name, resource, contents in (("dev-clean", 12, TEXTS), ("train-clean-5", 31, TRAIN_TEXTS)):
        body = pack(tmp_path / "packed" / name, name, contents)
        files[f"/{resource}/{name}.tar.gz"] = body
        publish(monkeypatch, name, body, len(contents))
    return files


def publish(monkeypatch, name: str, body: bytes, num_utterances: int) -> None:
    md5 = hashlib.md5(body).hexdigest()
    old = SUBSETS[name]
    subset = Subset(
        resource=old.resource, md5=md5, num_utterances=num_utterances, num_bytes=len(body), part_of=old.part_of
    )
    monkeypatch.setitem(SUBSETS, name, subset)


def corpus(tmp_path: Path, *mirrors: Mirror, **settings) -> LibriSpeechConfig:
    values = {"name": "libri", "root": tmp_path / "data", "manifests": tmp_path / "m", "download": bool(mirrors)}
    values["mirrors"] = [mirror.url for mirror in mirrors]
    return LibriSpeechConfig(**({"test": ["dev-clean"]} | values | settings))


def ids(path: Path) -> list[str]:
    return [utterance.id for utterance in manifest.read(path)]


def test_the_table_has_what_is_published():
    assert len(SUBSETS) == 9
    assert sum(each.num_utterances for each in SUBSETS.values() if each.resource == 12) == 292_367
    for each in SUBSETS.values():
        assert len(each.md5) == 32
        assert int(each.md5, 16)
    assert len({each.md5 for each in SUBSETS.values()}) == 9
    assert {each.part_of for each in SUBSETS.values()} <= {"", *SUBSETS}


def test_missing_subsets_are_downloaded_and_put_in_place(tmp_path, archives, start_mirror):
    mirror = start_mirror(files=archives)
    config = corpus(tmp_path, mirror, train=["train-clean-5"])
    splits = config.prepare(progress=False)
    assert ids(splits.test[0]) == sorted(TEXTS)
    assert ids(splits.train[0]) == sorted(TRAIN_TEXTS)
    assert {each.speaker for each in manifest.read(splits.test[0])} == {"1272", "61"}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["LibriSpeech"]
    assert (tmp_path / "data" / "LibriSpeech" / "LICENSE.TXT").is_file()
    assert (tmp_path / "data" / "LibriSpeech" / "dev-clean" / librispeech.MARKER).is_file()

    shutil.rmtree(tmp_path / "m")
    config.prepare(progress=False)
    assert sorted(path for path, _ in mirror.requests) == sorted(archives)


def test_the_archive_can_be_kept_and_one_that_is_there_is_used(tmp_path, archives, start_mirror):
    mirror = start_mirror(files=archives)
    corpus(tmp_path, mirror, keep_archives=True).prepare(progress=False)
    archive = tmp_path / "data" / "dev-clean.tar.gz"
    assert archive.read_bytes() == archives["/12/dev-clean.tar.gz"]

    shutil.rmtree(tmp_path / "data" / "LibriSpeech")
    shutil.rmtree(tmp_path / "m")
    corpus(tmp_path, mirror).prepare(progress=False)
    assert len(mirror.requests) == 1
    assert not archive.exists()


def test_a_foreign_archive_in_the_way_is_named(tmp_path, archives, start_mirror):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev-clean.tar.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"dev-clean.tar.gz: its MD5 is [0-9a-f]{32}, expected .*; delete it"):
        corpus(tmp_path, start_mirror(files=archives)).prepare(progress=False)


def test_progress_goes_to_standard_error_only(tmp_path, archives, start_mirror, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # bars are for terminals
    corpus(tmp_path, start_mirror(files=archives)).prepare(progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    for bar in ("dev-clean.tar.gz: 100%", "checking dev-clean", "unpacking dev-clean", "dev-clean: 100%"):
        assert bar in captured.err


def test_a_cut_connection_is_resumed_where_it_broke(tmp_path, archives, start_mirror):
    mirror = start_mirror(files=archives, cut_after=[100, 50])
    splits = corpus(tmp_path, mirror).prepare(progress=False)
    assert len(ids(splits.test[0])) == len(TEXTS)
    assert [wanted for _, wanted in mirror.requests] == [None, "bytes=100-", "bytes=150-"]


def test_a_server_without_ranges_sends_all_of_it_again(tmp_path, archives, start_mirror):
    mirror = start_mirror(files=archives, cut_after=[100], knows_ranges=False)
    splits = corpus(tmp_path, mirror).prepare(progress=False)
    assert len(ids(splits.test[0])) == len(TEXTS)
    assert [wanted for _, wanted in mirror.requests] == [None, "bytes=100-"]


def test_a_server_that_names_no_length_is_fine(tmp_path, archives, start_mirror):
    mirror = start_mirror(files=archives, cut_after=[100], names_length=False)
    assert len(ids(corpus(tmp_path, mirror).prepare(progress=False).test[0])) == len(TEXTS)


def test_a_download_goes_on_in_the_next_run_and_with_another_mirror(tmp_path, archives, start_mirror):
    cut_off = start_mirror(files=archives, cut_after=[100, 0])
    with pytest.raises(DownloadError, match=r"dev-clean.tar.gz: the connection was cut; try again later"):
        corpus(tmp_path, cut_off).prepare(progress=False)
    part = tmp_path / "data" / "dev-clean.tar.gz.part"
    assert part.read_bytes() == archives["/12/dev-clean.tar.gz"][:100]

    healthy = start_mirror(files=archives)
    corpus(tmp_path, healthy).prepare(progress=False)
    assert healthy.requests == [("/12/dev-clean.tar.gz", "bytes=100-")]
    assert not part.exists()


def test_a_part_that_is_already_whole_needs_no_request(tmp_path, archives, start_mirror):
    mirror = start_mirror(files=archives)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev-clean.tar.gz.part").write_bytes(archives["/12/dev-clean.tar.gz"])
    corpus(tmp_path, mirror).prepare(progress=False)
    assert mirror.requests == []


@pytest.mark.parametrize("size", [100, 10_000_000])
def test_a_bad_older_part_is_thrown_away_and_fetched_again(tmp_path, archives, start_mirror, size):
    mirror = start_mirror(files=archives)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev-clean.tar.gz.part").write_bytes(b"x" * size)
    assert len(ids(corpus(tmp_path, mirror).prepare(progress=False).test[0])) == len(TEXTS)
    assert mirror.requests[-1] == ("/12/dev-clean.tar.gz", None)


def test_the_second_mirror_is_used_when_the_first_fails(tmp_path, archives, start_mirror):
    empty, second = start_mirror(), start_mirror(files=archives)
    nowhere = Mirror(url="http://127.0.0.1:9")  # the discard port: nobody listens
    splits = corpus(tmp_path, nowhere, empty, second).prepare(progress=False)
    assert len(ids(splits.test[0])) == len(TEXTS)
    assert len(empty.requests) == 1


def test_all_mirrors_failing_says_what_each_did(tmp_path, archives, start_mirror):
    page = start_mirror(files={"/12/dev-clean.tar.gz": b"<html>please log in</html>"})
    body = archives["/12/dev-clean.tar.gz"]
    changed = body[:-1] + b"x"
    wrong = start_mirror(files={"/12/dev-clean.tar.gz": changed})
    with pytest.raises(DownloadError) as caught:
        corpus(tmp_path, start_mirror(), page, wrong).prepare(progress=False)
    message = str(caught.value)
    assert "dev-clean.tar.gz: HTTP 404 Not Found; " in message
    assert f"it offers 26 bytes, expected {len(body)}; " in message
    assert (
        f"its MD5 is {hashlib.md5(body[:-1] + b'x').hexdigest()}, expected {hashlib.md5(body).hexdigest()}" in message
    )
    assert "name another mirror in data.mirrors, or put the file at" in message
    assert list((tmp_path / "data").iterdir()) == []


def test_an_older_part_survives_a_login_page(tmp_path, archives, start_mirror):
    page = start_mirror(files={"/12/dev-clean.tar.gz": b"<html>"}, knows_ranges=False)
    (tmp_path / "data").mkdir()
    part = tmp_path / "data" / "dev-clean.tar.gz.part"
    part.write_bytes(archives["/12/dev-clean.tar.gz"][:50])
    with pytest.raises(DownloadError, match="it offers 6 bytes"):
        corpus(tmp_path, page).prepare(progress=False)
    assert part.stat().st_size == 50


def test_an_address_that_is_none_for_downloads(tmp_path):
    with pytest.raises(ValueError, match="'file:///etc/passwd' is not an address to download from"):
        download(["file:///etc/passwd"], tmp_path / "x", md5="", num_bytes=1, progress=False)


def test_a_full_disk_is_noticed_before_anything_is_fetched(tmp_path, archives, start_mirror, monkeypatch):
    mirror = start_mirror(files=archives)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"fetching dev-clean needs \d.\d GB, but 0.0 GB are free; make room"):
        corpus(tmp_path, mirror).prepare(progress=False)
    assert mirror.requests == []


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.size = 4 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    ("evil", "reason"),
    [
        (member("../escaped"), "its path leads out"),
        (member("LibriSpeech/../../escaped"), "its path leads out"),
        (member("/tmp/escaped-absolute"), "its path leads out"),
        (member("LibriSpeech\\..\\escaped"), "its path leads out"),
        (member("LibriSpeech/link", tarfile.SYMTYPE, "../../.."), "it is a link or a device"),
        (member("LibriSpeech/link", tarfile.SYMTYPE, "/etc/passwd"), "it is a link or a device"),
        (member("LibriSpeech/link", tarfile.LNKTYPE, "../../escaped"), "it is a link or a device"),
        (member("LibriSpeech/pipe", tarfile.FIFOTYPE), "it is a link or a device"),
    ],
)
def test_a_malicious_archive_writes_nothing_outside(tmp_path, start_mirror, monkeypatch, evil, reason):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(evil, io.BytesIO(b"evil"))
    publish(monkeypatch, "dev-clean", packed.getvalue(), 1)
    mirror = start_mirror(files={"/12/dev-clean.tar.gz": packed.getvalue()})
    with pytest.raises(ValueError, match=f"dev-clean.tar.gz: refused to unpack .*: {reason}.*; delete the archive"):
        corpus(tmp_path, mirror).prepare(progress=False)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["dev-clean.tar.gz"]
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/tmp/escaped-absolute").exists()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9])
def test_a_damaged_archive_is_named(tmp_path, archives, kept):
    archive = tmp_path / "cut.tar.gz"
    body = archives["/12/dev-clean.tar.gz"]
    archive.write_bytes(body[: int(kept * len(body))])
    with pytest.raises(
        ValueError, match=r"cut.tar.gz: the archive is damaged: [^\n]+; delete it to download it again$"
    ):
        extract(archive, tmp_path / "out", progress=False)


def test_an_archive_with_another_number_of_utterances_is_not_installed(tmp_path, archives, start_mirror, monkeypatch):
    body = archives["/12/dev-clean.tar.gz"]
    publish(monkeypatch, "dev-clean", body, 5)
    mirror = start_mirror(files=archives)
    with pytest.raises(ValueError, match=r"dev-clean.tar.gz: 4 utterances, but LibriSpeech's dev-clean has 5; delete"):
        corpus(tmp_path, mirror).prepare(progress=False)
    assert not (tmp_path / "data" / "LibriSpeech").exists()
    splits = corpus(tmp_path, mirror, check_counts=False).prepare(progress=False)
    assert len(ids(splits.test[0])) == 4


def test_an_archive_of_something_else_is_named(tmp_path, start_mirror, monkeypatch):
    body = pack(tmp_path / "packed", "test-other", TEXTS)
    publish(monkeypatch, "dev-clean", body, 4)
    mirror = start_mirror(files={"/12/dev-clean.tar.gz": body})
    with pytest.raises(ValueError, match=r"dev-clean.tar.gz: there is no LibriSpeech/dev-clean in it"):
        corpus(tmp_path, mirror).prepare(progress=False)


@pytest.mark.parametrize("place", ["LibriSpeech/dev-clean", "dev-clean"])
@pytest.mark.parametrize("suffix", [".flac", ".opus"])
def test_a_corpus_on_disk_is_used_where_it_stands(tmp_path, archives, place, suffix):
    write_tree(tmp_path / "data" / place, TEXTS, suffix=suffix)
    before = sorted((tmp_path / "data").rglob("*"))
    utterances = manifest.read(corpus(tmp_path).prepare(progress=False).test[0])
    assert [each.id for each in utterances] == sorted(TEXTS)
    assert utterances[0].audio == tmp_path / "data" / place / "1272" / "0" / f"1272-0-0000{suffix}"
    assert sorted((tmp_path / "data").rglob("*")) == before


def test_a_part_of_a_subset_on_disk_names_both_numbers(tmp_path, archives):
    write_tree(tmp_path / "data" / "dev-clean", texts(61))
    with pytest.raises(ValueError, match=r"2 utterances, but LibriSpeech's dev-clean has 4; copy it whole, .*counts=f"):
        corpus(tmp_path).prepare(progress=False)
    assert len(ids(corpus(tmp_path, check_counts=False).prepare(progress=False).test[0])) == 2


def test_an_installed_subset_that_lost_files_was_once_whole(tmp_path, archives, start_mirror):
    corpus(tmp_path, start_mirror(files=archives)).prepare(progress=False)
    shutil.rmtree(tmp_path / "data" / "LibriSpeech" / "dev-clean" / "61")
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(ValueError, match="has 4; it was whole when it was unpacked; copy"):
        corpus(tmp_path).prepare(progress=False)


def test_folders_in_librispeechs_layout_need_no_entry_in_the_table(tmp_path):
    write_tree(tmp_path / "data" / "LibriSpeech" / "my-part", TEXTS)
    utterances = manifest.read(corpus(tmp_path, test=["my-part"]).prepare(progress=False).test[0])
    assert {each.speaker for each in utterances} == {"1272", "61"}


def test_dev_clean_2_is_cut_out_of_dev_clean_by_its_ids(tmp_path, archives, monkeypatch):
    write_tree(tmp_path / "data" / "LibriSpeech" / "dev-clean", TEXTS)
    publish(monkeypatch, "dev-clean-2", b"", 2)
    listed = tmp_path / "data" / "LibriSpeech" / "dev-clean-2.ids"
    listed.write_text("61-0-0000\n1272-0-0001\n")
    config = corpus(tmp_path, test=["dev-clean-2"])
    assert ids(config.prepare(progress=False).test[0]) == ["1272-0-0001", "61-0-0000"]

    shutil.rmtree(tmp_path / "m")
    listed.write_text("61-0-0000\n61-0-0007\n")
    with pytest.raises(ValueError, match=r"dev-clean-2.ids: 1 of its ids are not in .*dev-clean, 61-0-0007 for one"):
        config.prepare(progress=False)
    listed.write_text("61-0-0000\n")
    with pytest.raises(ValueError, match=r"dev-clean-2.ids: 1 utterances, but LibriSpeech's dev-clean-2 has 2"):
        config.prepare(progress=False)


@pytest.mark.parametrize("name", ["dev-clean", "dev-clean-2"])
def test_what_is_missing_says_where_it_was_looked_for_and_what_to_do(tmp_path, name):
    message = rf"{name}: not in .*LibriSpeech/{name} or .*data/{name}; set data.root .*download=true to fetch 0.\d+ GB"
    with pytest.raises(FileNotFoundError, match=message):
        corpus(tmp_path, test=[name]).prepare(progress=False)


def test_a_subset_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-clean-10: not in .*, and none to download: dev-clean, dev"):
        corpus(tmp_path, test=["train-clean-10"], download=True).prepare(progress=False)
    with pytest.raises(ValueError, match=r"set '../dev-clean' is not the name of a LibriSpeech subset, such as"):
        corpus(tmp_path, test=["../dev-clean"])


def test_mini_librispeech_and_the_hundred_hours_share_recordings(tmp_path, archives):
    write_tree(tmp_path / "data" / "train-clean-5", TRAIN_TEXTS)
    write_tree(tmp_path / "data" / "train-clean-100", TRAIN_TEXTS | texts(40))
    write_tree(tmp_path / "data" / "dev-clean", TEXTS)
    with pytest.raises(ValueError, match="train-clean-100 and train-clean-5 share 6 recordings, 19-0-0000 for one"):
        corpus(tmp_path, train=["train-clean-5", "train-clean-100"], test=[], check_counts=False).prepare(
            progress=False
        )


def test_how_a_subset_is_fetched_does_not_make_its_manifest_anew(tmp_path, archives, monkeypatch):
    write_tree(tmp_path / "data" / "dev-clean", TEXTS)
    splits = corpus(tmp_path).prepare(progress=False)
    monkeypatch.setattr(LibriSpeechConfig, "collect", None)
    assert corpus(tmp_path, Mirror(url="http://elsewhere"), keep_archives=True).prepare(progress=False) == splits


@pytest.mark.real
@pytest.mark.skipif(not (SHARED / "LibriSpeech").is_dir(), reason="LibriSpeech is not in ../shared/data")
def test_mini_librispeech(tmp_path):
    config = LibriSpeechConfig(
        name="mini", root=SHARED, manifests=tmp_path, train=["train-clean-5"], valid=["dev-clean-2"]
    )
    splits = config.prepare(progress=False)
    train, valid = manifest.read(splits.train[0]), manifest.read(splits.valid[0])
    assert (len(train), len({each.speaker for each in train})) == (1519, 28)
    assert sum(each.duration_s for each in train) / 3600 == pytest.approx(5.31, abs=0.01)
    assert len(valid) == 1089
