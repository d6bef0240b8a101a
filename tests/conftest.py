"""Makes the helpers of this folder importable for the tests of every folder below it, and shares the tiny model."""

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tiny recogniser; tests that damage it copy it first."""
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny")
