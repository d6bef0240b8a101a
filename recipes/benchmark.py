"""Times a search beside its peers: python recipes/benchmark.py benchmark=search model=runs/an4 manifest=dev.jsonl"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks import harness, report
from benchmarks.harness import Benchmark
from benchmarks.prefix_beam import PrefixBeamBenchmark
from benchmarks.search import SearchBenchmark
from hydra.core.config_store import ConfigStore
from launching import launch
from omegaconf import MISSING

from asr import checkpoint
from asr.data import manifest
from asr.devices import pick_device


@dataclass(slots=True, kw_only=True)
class BenchmarkRecipe:
    """`recipes/benchmark.py`: a search beside its peers, on the same frames.

    Attributes:
        model: A model folder or a run folder.
        manifest: Utterances to take from, evenly.
        output: The folder that the results go to, as a JSON file named after the benchmark.
        num_utterances: Most utterances.
        batch_size: Utterances of a batch.
        beam_size: Hypotheses kept in every step, by all.
        repeats: How often all is timed.
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`.
        num_threads: Processor threads; 0 takes all.
    """

    model: Path = MISSING
    manifest: Path = MISSING
    output: Path = MISSING
    num_utterances: int = 32
    batch_size: int = 16
    beam_size: int = 10
    repeats: int = 3
    device: str = "auto"
    num_threads: int = 1
    benchmark: Benchmark = MISSING

    def __post_init__(self) -> None:
        for name in ("num_utterances", "batch_size", "beam_size", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


_STORE = ConfigStore.instance()
_STORE.store(name="BenchmarkRecipe", node=BenchmarkRecipe)
_STORE.store(group="benchmark", name="search_schema", node=SearchBenchmark)
_STORE.store(group="benchmark", name="prefix_beam_schema", node=PrefixBeamBenchmark)


@torch.inference_mode()
def run(recipe: BenchmarkRecipe) -> None:
    """Measures, prints the tables and writes the JSON file."""
    loaded = checkpoint.load(recipe.model, device=pick_device(recipe.device, num_threads=recipe.num_threads))
    chosen = manifest.spread_out(manifest.read(recipe.manifest), recipe.num_utterances)
    work = harness.prepare(loaded, chosen, batch_size=recipe.batch_size, beam_size=recipe.beam_size)
    contenders, skipped = harness.build(recipe.benchmark.builders(work))
    measured = harness.measure(contenders, work.batches, repeats=recipe.repeats)
    found = {"model": str(loaded.path), "manifest": str(recipe.manifest)}
    found |= report.results(recipe.benchmark, work, measured, skipped)
    path = recipe.output / f"{recipe.benchmark.name}.json"
    manifest.write_text(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    print(f"{report.tables(found)}\n\n{path}")


if __name__ == "__main__":
    launch("benchmark", run)
