"""The nonparametric bottleneck against its matrix products.

    python -m benchmarks.bottleneck_step --engine pyro [--repeats 15] [--processor-time] [--json]

p = 512, batch 8, n vectors of width p, float32: projections, one draw of the measure and the KL, forward, and back from a
given gradient of the draw to vectors and projections. floor: the products of the two projections of width p alone, outputs
allocated beforehand. hand: the paper's layer written plainly. paper and mixture: ours, by the objective of the posterior.

All variants are interleaved in one process, with two threads, in alternating order; medians are reported. On a machine
that others use as well, `--processor-time` measures the processor time of one thread.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measuring import command, medians
from guidebook.engines.memory import keep_freed_memory
from guidebook.guides.measures import DirichletProcessPosterior
from guidebook.models.measures import DirichletProcessPrior

BATCH, WIDTH = 8, 512
LENGTHS = (64, 256, 512)
OBJECTIVES = ("paper", "mixture")
PRIOR = DirichletProcessPrior(dim=WIDTH)


def posterior(objective: Any) -> DirichletProcessPosterior:
    return DirichletProcessPosterior(objective=objective)


def arrays(length: int) -> dict[str, np.ndarray]:
    """Vectors about standard normal, the weights of the projections by name, and the gradient of the draw."""
    rng = np.random.default_rng(0)
    made = {"h": rng.standard_normal((BATCH, length, WIDTH))}
    made["upstream"] = rng.standard_normal((BATCH, length + 1, WIDTH + 1)) / length
    for name, weight in posterior("paper").layout(features=WIDTH, latent=WIDTH).items():
        made[name] = weight.start + rng.uniform(-weight.scale, weight.scale, weight.shape)
    return {name: np.asarray(array, np.float32) for name, array in made.items()}


def measure(engine: str, repeats: int = 15, clock: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    """Everything this script measures: a list of entries with a name, times in milliseconds and ratios."""
    keep_freed_memory()
    if engine == "pyro":
        importlib.import_module("torch").set_num_threads(1 if clock is time.process_time else 2)
    made = importlib.import_module(f"benchmarks.bottleneck_{engine}")
    entries = []
    for length in LENGTHS:
        given = arrays(length)
        steps = {"floor": made.floor(given), "hand": made.hand(given)}
        found = medians(steps | {name: made.ours(given, name) for name in OBJECTIVES}, repeats, clock)
        for name in OBJECTIVES:
            times = {"ours_ms": found[name], "hand_ms": found["hand"], "floor_ms": found["floor"]}
            ratios = {f"ours/{other}": found[name] / found[other] for other in ("floor", "hand")}
            entries.append({"name": f"{engine}_bottleneck_{name}_{length}"} | times | ratios)
    return entries


if __name__ == "__main__":
    command(measure, __doc__)
