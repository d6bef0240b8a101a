"""Times parts of this project beside their peers: python recipes/benchmark.py benchmark=train_step num_threads=1"""

import json

from benchmarks import report, settings
from benchmarks.harness import Conditions
from benchmarks.settings import BenchmarkRecipe
from launching import launch

from asr.data import manifest
from asr.devices import pick_device

settings.register()


def run(recipe: BenchmarkRecipe) -> None:
    """Measures, prints the tables and writes the JSON file."""
    recipe.check_together()
    conditions = Conditions(
        device=pick_device("cpu" if recipe.benchmark.processor_only else recipe.device, num_threads=recipe.num_threads),
        repeats=recipe.repeats,
        model=recipe.model,
        manifest=recipe.manifest,
    )
    measured = recipe.benchmark.run(conditions)
    found = report.surroundings(recipe.benchmark, conditions) | measured
    path = recipe.output / f"{recipe.benchmark.name}.json"
    manifest.write_text(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    print(f"{report.text(recipe.benchmark, found)}\n\n{path}")


if __name__ == "__main__":
    launch("benchmark", run)
