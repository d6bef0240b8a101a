"""Makes the recipes importable, as they are for Python when one of them is the program, and tells Hydra of them."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hydra", reason="the extra `recipes` is not installed")

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "recipes"))

import hydra  # noqa: E402
import launching  # noqa: E402
import schema  # noqa: E402


@pytest.fixture(scope="session")
def compose() -> Callable[..., Any]:
    """`compose(NAME, *overrides)` makes the dataclasses that `recipes/NAME.py` gets with these arguments."""
    schema.register()

    def composed(name: str, *overrides: str) -> Any:
        importlib.import_module(name)  # a recipe may have dataclasses of its own, which it tells Hydra of
        with hydra.initialize_config_dir(str(launching.CONF), version_base="1.3"):
            return launching.to_dataclasses(hydra.compose(name, list(overrides)))

    return composed
