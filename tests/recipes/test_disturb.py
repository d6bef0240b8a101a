"""recipes/disturb.py: a copy that evaluation reads, and refusals in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import disturb
import pytest
import tiny
from hydra.errors import HydraException
from utterances import make_utterances

from asr.data import manifest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    manifest.write(tmp_path / "set.jsonl", make_utterances(tmp_path, [0.4, 0.5, 0.3]))
    return tmp_path / "set.jsonl"


def test_the_copy_is_a_set_of_its_own(compose: Callable[..., Any], path: Path, tmp_path: Path, capsys):
    arguments = [f"manifest={path}", f"output={tmp_path / 'noisy'}", f"sample_rate={tiny.SAMPLE_RATE}"]
    disturb.run(compose("disturb", *arguments, "disturbance.num_talkers=2"))
    copies = manifest.read(tmp_path / "noisy" / "set.jsonl")
    assert [each.text for each in copies] == [each.text for each in manifest.read(path)]
    assert all(each.audio.is_file() and each.audio.parent == tmp_path / "noisy" / "audio" for each in copies)
    assert f"manifests=[{tmp_path / 'noisy' / 'set.jsonl'}]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("output=.", "which holds the set itself; name another folder"),
        ("disturbance.reverb_dir=null", r"nothing would change; set disturbance\.noise_dir, num_talkers or reverb_dir"),
        ("sample_rate=0", "sample_rate is 0; it must be positive"),
        ("talkers=b.jsonl", r"talkers is b\.jsonl, but disturbance\.num_talkers is 0; set it, or leave talkers out"),
    ],
)
def test_what_cannot_be_is_refused(compose: Callable[..., Any], change: str, message: str):
    arguments = ["manifest=a.jsonl", "output=noisy", "disturbance.reverb_dir=rooms"]
    with pytest.raises((ValueError, HydraException), match=message):
        compose("disturb", *arguments, change)
