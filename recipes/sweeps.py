"""Names for the runs of a sweep: python recipes/train.py -m name=abl seed=1,2 makes runs/abl-seed_1 and abl-seed_2."""

import re
import sys
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

_UNSAFE = re.compile(r"[^\w.+-]+")  # in names of files and on the command line


def register() -> None:
    """Lets configs write `${swept:${hydra.overrides.task}}` for what a run of a sweep has to itself."""
    OmegaConf.register_new_resolver("swept", lambda task: suffix(task, arguments=sys.argv[1:]), replace=True)


def suffix(task: Sequence[str], *, arguments: Sequence[str]) -> str:
    """What to add to the name of a run: the settings that its sweep varies, sorted; nothing without a sweep.

    A run's name depends neither on the other values of its sweep nor on their order: when the sweep is started again,
    with more values too, the run goes on where it stopped.

    Args:
        task: The overrides of this run, one value each.
        arguments: The command line, on which a varied setting has several: a list, a `choice()` or a `range()`.

    Returns:
        Such as `-loss.consistency_weight_0.2-seed_1`; it is safe as a part of a file name.
    """
    parser = OverridesParser.create()
    words = [word for word in arguments if "=" in word and not word.startswith("-")]
    varied = {each.key_or_group for each in parser.parse_overrides(words) if each.is_sweep_override()} - {"name"}
    chosen = [each for each in parser.parse_overrides(list(task)) if each.key_or_group in varied]
    pairs = sorted(f"{each.key_or_group}={str(each.input_line).partition('=')[2]}" for each in chosen)
    return "".join("-" + _UNSAFE.sub("_", pair).strip("_") for pair in pairs)
