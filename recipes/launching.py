"""The start of every recipe: Hydra composes, plain dataclasses come out, and faults of the user become one line."""

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from language_schema import TrainLmRecipe, TrainSpellerRecipe
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from schema import TrainRecipe, register

from asr.errors import one_line
from asr.garbage import keep_few_kernels
from asr.training.distributed import leave, own_rank
from asr.training.interfaces import Interrupted, TrainingError

CONF = Path(__file__).parents[1] / "conf"


def launch(config_name: str, run: Callable[[Any], None]) -> None:
    """Composes conf/CONFIG_NAME.yaml with the command line, makes plain dataclasses of it, and runs the recipe.

    Faults of the user come out as one line on standard error with exit code 1; a signal gives 128 plus its number.
    Of the processes that torchrun starts, the first one writes the log, and tells of a signal that all obeyed.
    """
    register()
    keep_few_kernels()
    if own_rank():
        logging.disable()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises what it would print over several lines

    faults: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def main(config: DictConfig) -> None:
        try:
            run(to_dataclasses(config))
        except _FAULTS as fault:  # kept from Hydra, which would announce it in its own words first
            faults.append(fault)

    try:
        main()
        if faults:
            raise faults[0]
        leave()
    except Interrupted as stopped:
        if own_rank():  # torchrun would end the first process, which still has to speak, as soon as another one failed
            sys.exit(0)
        sys.exit(_fail(str(stopped), 128 + stopped.signal_number))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))
    except _FAULTS as fault:
        sys.exit(_fail(f"error: {_message(fault)}", 1))


_FAULTS = (
    HydraException,
    OmegaConfBaseException,
    ValueError,
    OSError,
    ImportError,
    torch.OutOfMemoryError,
    TrainingError,
    Interrupted,
)


def to_dataclasses(config: DictConfig) -> Any:
    """Makes plain dataclasses of a composed config; their checks run here.

    Raises:
        ValueError: If a key was added that the dataclass lacks, or a value is out of its range.
    """
    try:
        return OmegaConf.to_object(config)
    except AttributeError as error:
        raise ValueError(f"{str(error).split('. Did')[0]}; take the + from the override and check its name") from None


# What may change when a run goes on: it decides neither what is drawn nor what is learned.
_MAY_CHANGE = (
    "device",
    "num_threads",
    "tracking",
    "decoding",
    "data.root",
    "data.manifests",
    "loader.num_workers",
    "loader.cache_gb",
    "trainer.max_steps",
    "trainer.patience",
    "trainer.save_every",
    "trainer.log_every",
    "trainer.compile",
    "trainer.activation_checkpointing",
    "trainer.sharding",
)


def write_config(recipe: TrainRecipe | TrainLmRecipe | TrainSpellerRecipe, folder: Path) -> None:
    """Writes what a run was told to `config.yaml`, as YAML that any program reads: paths are texts.

    Raises:
        ValueError: If the folder holds checkpoints of a run that was told otherwise; the first difference is named.
    """
    plain = json.loads(json.dumps(asdict(recipe), default=str))
    path = folder / "config.yaml"
    if path.is_file() and any((folder / "checkpoints").glob("step-*")):
        before, now = _flat(OmegaConf.to_container(OmegaConf.load(path))), _flat(plain)
        for key in now:
            allowed = any(key == each or key.startswith(f"{each}.") for each in _MAY_CHANGE)
            # A setting that is newer than the run has a default that does what was done without it.
            if key in before and not allowed and before[key] != now[key]:
                raise ValueError(
                    f"{folder} holds a run with {key}={before[key]}, not {now[key]}; "
                    "give this run another name, or remove that folder"
                )
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(plain)), encoding="utf-8")


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as `a.b.c`."""
    if not isinstance(config, dict):
        return {prefix.removesuffix("."): config}
    return {key: value for name, part in config.items() for key, value in _flat(part, f"{prefix}{name}.").items()}


def run_folder() -> Path:
    """The folder of this run, where Hydra writes its log."""
    return Path(HydraConfig.get().runtime.output_dir)


def _fail(message: str, code: int) -> int:
    logging.shutdown()
    process = f"process {own_rank()}: " if own_rank() else ""
    print(f"{process}{message}", file=sys.stderr)
    return code


def _message(error: BaseException) -> str:
    """One line; of what Hydra and OmegaConf say over several lines, the first two say what matters."""
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        error = error.__cause__
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return one_line(error)
    lines = [line.strip() for line in str(error).splitlines()]
    wanted = [line for line in lines if line and not line.startswith(("object_type=", "reference_type="))]
    if "Available options" in str(error):
        return " ".join(line for line in wanted if "path" not in line)
    return "; ".join(wanted[:2])
