"""Where a model is: in the package, in a folder, or on the hub, which a fake stands for here."""

import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

import asr
from asr import checkpoint, hub
from asr.search_choice import OWN_LEXICON, OWN_NGRAM
from asr.variants import TUNED_FILE


class FakeHub:
    """`huggingface_hub` with a folder for each model, and a cache; it takes and gives files as they are.

    Args:
        folder: Where all is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.models, self.cache = folder / "hub", folder / "cache"

    def push(self, folder: Path, name: str) -> None:
        """What `upload_folder` does."""
        shutil.copytree(folder, self.models / name)

    def snapshot_download(self, name: str, *, allow_patterns: list[str]) -> str:
        """As of the library: only files that match, and the same place every time."""
        if not (self.models / name).is_dir():
            raise OSError(f"404 Client Error.\n\nRepository Not Found for {name}.")
        place = self.cache / name.replace("/", "--")
        place.mkdir(parents=True, exist_ok=True)
        for file in (self.models / name).iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, place)
        return str(place)


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub in place of `huggingface_hub`, and a working directory that holds nothing."""
    fake = FakeHub(tmp_path / "remote")
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=fake.snapshot_download))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return fake


# Folders


@pytest.mark.parametrize("name", ["runs/an4", "/somewhere/model", "model", Path("a/b/c")])
def test_a_path_is_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "an4").mkdir(parents=True)
    assert hub.locate(name) == Path(name)


def test_a_folder_is_taken_before_a_model_of_the_hub(fake_hub: FakeHub, tiny_folder: Path) -> None:
    fake_hub.push(tiny_folder, "someone/tiny")
    assert hub.locate("someone/tiny") != Path("someone/tiny")
    Path("someone/tiny").mkdir(parents=True)
    assert hub.locate("someone/tiny") == Path("someone/tiny")


# The package's own


def test_no_name_means_the_model_of_the_package(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "RELEASED", tiny_folder)
    assert hub.locate() == tiny_folder


def test_a_package_without_a_model_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "RELEASED", tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        hub.locate()
    assert str(caught.value) == (
        "no model came with this installation; name one: a model folder, a run folder, or OWNER/NAME on the hub"
    )


def test_the_model_of_the_package_is_part_of_it() -> None:
    assert Path(asr.__file__).parent / "released" == hub.RELEASED


# The hub


def test_a_model_that_was_pushed_is_pulled_with_all_that_it_needs(
    fake_hub: FakeHub, tmp_path: Path, tiny_folder: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "pushed")
    for name in ("README.md", "decoding.json", "words.ngram", "training.pickle"):
        (folder / name).write_text("{}")
    fake_hub.push(folder, "someone/tiny")
    found = hub.locate("someone/tiny")
    kept = {file.name for file in found.iterdir()}
    assert kept == {file.name for file in folder.iterdir()} - {"training.pickle"}
    for name in kept:
        assert (found / name).read_bytes() == (folder / name).read_bytes()
    assert checkpoint.load(found).path == found


def test_a_model_that_the_hub_lacks_is_one_line(fake_hub: FakeHub) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        hub.locate("someone/nothing")
    assert str(caught.value) == (
        "someone/nothing: no such folder, and the hub does not give a model of that name (404 Client Error. Repository "
        "Not Found for someone/nothing); check name and network"
    )


@pytest.mark.parametrize("error", [ConnectionError("no route to host"), ValueError("not a name")])
def test_a_hub_that_fails_is_one_line(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str, *, allow_patterns: list[str]) -> str:
        raise error

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=fail))
    with pytest.raises(FileNotFoundError, match=rf"^someone/tiny: no such folder, and the hub .* \({error}\); check"):
        hub.locate("someone/tiny")


def test_without_the_library_the_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it fails
    with pytest.raises(FileNotFoundError) as caught:
        hub.locate("someone/tiny")
    assert str(caught.value) == (
        "someone/tiny: no such folder, and models of the hub need huggingface_hub; check the path, or "
        "pip install huggingface_hub"
    )


@pytest.mark.parametrize("load", [hub.locate, asr.load_model], ids=["locate", "load_model"])
def test_a_name_that_cannot_be_one_of_the_hub_is_never_asked_for(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, load: Callable[[str], object]
) -> None:
    def fail(name: str, *, allow_patterns: list[str]) -> str:
        raise AssertionError(f"asked for {name}")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=fail))
    for name in ("nothing", "./some/model", "a/b/c", "../model", "a b/c"):
        if load is hub.locate:
            assert load(name) == Path(name)
        else:
            with pytest.raises(FileNotFoundError, match="no such model; give a model folder"):
                load(name)


def test_all_that_a_released_folder_may_hold_is_fetched(fake_hub: FakeHub, tiny_folder: Path) -> None:
    fake_hub.push(tiny_folder, "someone/tiny")
    for name in (OWN_NGRAM, OWN_LEXICON, TUNED_FILE, "README.md"):
        (fake_hub.models / "someone/tiny" / name).touch()
    fetched = hub.locate("someone/tiny")
    assert {file.name for file in fetched.iterdir()} == {
        file.name for file in (fake_hub.models / "someone/tiny").iterdir()
    }
