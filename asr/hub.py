"""Where a model is: in this package, in a folder, or on the Hugging Face hub."""

import importlib
import re
from pathlib import Path

from asr.errors import one_line

# Part of the package; holds a model once one is released with it, see recipes/release.py.
RELEASED = Path(__file__).parent / "released"

# OWNER/NAME as the hub has them.
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# All that a model folder of this toolkit holds.
_FILES = ["*.json", "*.safetensors", "*.ngram", "*.txt.xz", "*.md"]


def locate(name: str | Path | None = None) -> Path:
    """The folder that a user means.

    Args:
        name: A model folder or run folder; or OWNER/NAME, which is fetched from the hub (once, by `huggingface_hub`,
            which keeps it in its cache) unless there is such a path; None for the model that came with this package.

    Returns:
        The folder; `asr.checkpoint.find_model` says whether it holds a model.

    Raises:
        FileNotFoundError: If the package holds no model and none is named, or a model is neither here nor on the hub.
    """
    if name is None:
        if not (RELEASED / "config.json").is_file():
            raise FileNotFoundError(
                "no model came with this installation; name one: a model folder, a run folder, or OWNER/NAME on the hub"
            )
        return RELEASED
    path = Path(name)
    if path.exists() or not _HUB_NAME.fullmatch(str(name)):
        return path
    return _fetch(str(name))


def _fetch(name: str) -> Path:
    """The folder of a model of the hub, in the cache of `huggingface_hub`."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise FileNotFoundError(
            f"{name}: no such folder, and models of the hub need huggingface_hub; check the path, or "
            "pip install huggingface_hub"
        ) from None
    try:
        return Path(hub.snapshot_download(name, allow_patterns=_FILES))
    # Its errors are all of these kinds: no network, no such model, no permission, not a name.
    except (OSError, ValueError) as error:
        reason = one_line(error).rstrip(".")
        raise FileNotFoundError(
            f"{name}: no such folder, and the hub does not give a model of that name ({reason}); check name and network"
        ) from None
