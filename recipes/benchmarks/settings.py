"""What `recipes/benchmark.py` can be told, and the kinds of benchmarks, by the names of `conf/benchmark/`."""

from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from benchmarks.features import FeaturesBenchmark
from benchmarks.harness import Benchmark
from benchmarks.prefix_beam import PrefixBeamBenchmark
from benchmarks.score import ScoreBenchmark
from benchmarks.search import SearchBenchmark
from benchmarks.train_step import TrainStepBenchmark
from benchmarks.transcribe import TranscribeBenchmark

KINDS = (
    FeaturesBenchmark,
    TrainStepBenchmark,
    SearchBenchmark,
    PrefixBeamBenchmark,
    TranscribeBenchmark,
    ScoreBenchmark,
)


@dataclass(slots=True, kw_only=True)
class BenchmarkRecipe:
    """`recipes/benchmark.py`: a part of this project beside its peers, doing the same.

    Attributes:
        model: A model folder or a run folder, for those benchmarks that need one.
        manifest: Utterances for the model, for the same.
        output: The folder that the results go to, as a JSON file named after the benchmark.
        repeats: How often all is timed.
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`.
        num_threads: Processor threads; 0 takes all.
        benchmark: What to time.
    """

    model: Path | None = None
    manifest: Path | None = None
    output: Path = MISSING
    repeats: int = 3
    device: str = "auto"
    num_threads: int = 1
    benchmark: Benchmark = MISSING

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}; it must be at least 1")

    def check_together(self) -> None:
        """Finds settings that are fine alone but not together, before anything is computed.

        Raises:
            ValueError: If a model or utterances are missing, or named where they have no effect.
        """
        kind = self.benchmark
        for name, value in (("model", self.model), ("manifest", self.manifest)):
            if kind.needs_model and value is None:
                raise ValueError(f"benchmark={kind.name} needs a model and utterances for it; name {name}=…")
            if not kind.needs_model and value is not None:
                raise ValueError(f"{name} is {value}, but benchmark={kind.name} takes none; leave it out")
        if kind.processor_only and self.device not in ("auto", "cpu"):
            raise ValueError(f"device is {self.device}, but benchmark={kind.name} computes on the processor alone")


def register() -> None:
    """Makes the recipe and the kinds known to Hydra."""
    store = ConfigStore.instance()
    store.store(name=BenchmarkRecipe.__name__, node=BenchmarkRecipe)
    for kind in KINDS:
        store.store(group="benchmark", name=f"{kind().name}_schema", node=kind)
