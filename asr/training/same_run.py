"""Whether the checkpoints in a run folder are of the model that is to be trained there."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from asr.tokenizer import Tokenizer


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run from which it goes on; None where there is none."""
    return max((folder / "checkpoints").glob("step-*"), default=None)


def refuse_changes(
    folder: Path,
    *,
    sizes: tuple[Mapping[str, object], Mapping[str, object]],
    tokenizers: tuple[Tokenizer, Tokenizer],
    phones: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> None:
    """Compares what a run was told, which comes first in each pair, with what is asked now.

    Args:
        folder: The run folder, for the message.
        sizes: Settings by name.
        tokenizers: Whose tokens it writes.
        phones: Those that it knows.

    Raises:
        ValueError: If there is a difference; the first is named.
    """
    advice = "give this run another name, or remove that folder"
    before, now = sizes
    for key in now:
        if before[key] != now[key]:
            raise ValueError(f"{folder} holds a run with {key} {before[key]}, not {now[key]}; {advice}")
    if list(phones[0]) != list(phones[1]):
        raise ValueError(f"{folder} holds a run with other phones, {' '.join(phones[0]) or 'none'}; {advice}")
    if tokenizers[0].tokens != tokenizers[1].tokens:
        size = tokenizers[0].vocab_size
        raise ValueError(f"{folder} holds a run with another tokenizer, of {size} tokens; {advice}")


def named(group: str, settings: Mapping[str, object]) -> dict[str, object]:
    """Settings by the names that a command line has for them, `group.key`."""
    return {f"{group}.{key}": value for key, value in settings.items()}


def refuse_other_sizes(start: Path, *, has: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Checks that the weights which training starts from are of the sizes that are asked for.

    Args:
        start: Their folder, for the message.
        has: Sizes of it, by the names that a command line has for them.
        asked: Sizes by these names, maybe others besides.

    Raises:
        ValueError: If not; the message has all the overrides that mend it.
    """
    mending = [f"{key}={value}" for key, value in has.items() if asked[key] != value]
    if mending:
        raise ValueError(f"init_from: {start} has other sizes; to start from it, set {' '.join(mending)}")
