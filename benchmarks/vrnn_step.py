"""A training step of the VRNN against a hand-written loop of the same network and a stock program.

    python -m benchmarks.vrnn_step --engine pyro [--repeats 15] [--processor-time] [--json]

X = 88 notes, H = 128, Z = 64, batch 32, T = 100, float32. By hand stands outside the loop over time whatever needs no
earlier step: φ_x and its products, the prior, the decoder, the likelihood, the KL. The stock program is written as the
library's own examples are, with all of a step inside the loop of the model and inside that of the guide. Weights are
the same for all three, and by hand gives the same ELBO at the same draws, or nothing is measured. Then the step's cost
by T and by particles.

All variants are interleaved in one process, with two threads, in alternating order; medians are reported. On a machine
that others use as well, `--processor-time` measures the processor time of one thread.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import resident
from benchmarks.measuring import Step, clock, medians, show
from guidebook.engines import load
from guidebook.engines.draws import standard_normal
from guidebook.engines.memory import keep_freed_memory
from guidebook.engines.protocol import Control, Settings
from guidebook.guides.pairs import PAIRS
from guidebook.guides.vrnn_guide import VRNNGuide
from guidebook.inference import KL
from guidebook.models.cells import LSTMCell
from guidebook.models.mlp import MLP
from guidebook.models.priors import ConditionalNormal
from guidebook.models.vrnn import VRNNModel

PAIR = PAIRS["vrnn"]
DATA_SIZE = 229
LENGTHS, PARTICLES, WINDOW = (100, 300, 1000, 3000), (1, 4, 16), 100
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """X, H, Z, B, T. residual: whether the guide's means are the prior's plus what its network gives."""

    steps: int = 100
    residual: bool = False
    notes: int = 88
    hidden: int = 128
    latent: int = 64
    rows: int = 32

    def batch(self) -> dict[str, np.ndarray]:
        """Sequences of equal length, so that no variant gains by skipping pads."""
        notes = np.random.default_rng(0).random((self.rows, self.steps, self.notes)) < 0.05
        return {
            "x": notes.astype(np.float32),
            "mask": np.ones(notes.shape[:2], bool),
            "lengths": np.full(self.rows, self.steps, np.int32),
            "weight": np.ones(self.rows, np.float32),
            "index": np.arange(self.rows, dtype=np.int32),
        }

    def networks(self) -> Any:
        hidden = (self.hidden,)
        features = MLP(hidden=hidden, activation="relu", activate_outputs=True)
        model = VRNNModel(
            prior=ConditionalNormal(dim=self.latent, hidden=hidden, activation="relu"),
            inputs=features,
            latents=features,
            features=self.hidden,
            decoder=MLP(hidden=hidden, activation="relu"),
            cell=LSTMCell(hidden=self.hidden),
        )
        return PAIR.realisable(model, VRNNGuide(residual=self.residual, features=self.hidden), self.notes)


def program(engine: str, shape: Shape, particles: int = 1, truncate: int | None = None) -> tuple[Any, Any]:
    """The engine with the pair, and its state."""
    settings = Settings(data_size=DATA_SIZE, objective=KL(particles=particles).objective(), truncate=truncate)
    made = load(engine).Program(PAIR, shape.networks(), settings)
    return made, made.init(shape.batch())


def ours(engine: str, shape: Shape, particles: int = 1) -> Step:
    """The engine's own step, which returns once its result is there."""
    return stepping(*program(engine, shape, particles), shape.batch())


def stepping(made: Any, state: Any, batch: Mapping[str, np.ndarray]) -> Step:
    """Steps of a program on one batch, from a state on."""
    held, count, rates = [state], iter(range(10**9)), {"model": 1e-3, "guide": 1e-3}

    def step() -> float:
        held[0], info = made.step(held[0], [batch], Control(next(count), 1.0, rates))
        return float(info["objective"])

    return step


def initial(engine: str, shape: Shape) -> Weights:
    """The weights that all variants start from, once the loop by hand has given the engine's ELBO with them."""
    made, state = program(engine, shape)
    weights, batch = made.weights(state), shape.batch()
    expected = made.terms(state, batch, seed=0).elbo()[0]
    noise = standard_normal(0, "z", (shape.steps, shape.rows, shape.latent)).astype(np.float32)
    np.testing.assert_allclose(loops(engine).elbo(shape, weights, batch["x"], noise), expected, rtol=1e-4)
    return weights


def loops(engine: str) -> Any:
    return importlib.import_module(f"benchmarks.vrnn_{engine}")


def training(engine: str, shape: Shape, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """One entry: every variant of a training step."""
    weights, x, made = initial(engine, shape), shape.batch()["x"], loops(engine)
    variants = {
        "ours": ours(engine, shape),
        "hand": made.hand(shape, weights, x),
        "stock": made.stock(shape, weights, x),
    }
    found = medians(variants, repeats, clock)
    ratios = {"ours/hand": found["ours"] / found["hand"], "stock/ours": found["stock"] / found["ours"]}
    name = f"{engine}_vrnn_residual" if shape.residual else f"{engine}_vrnn"
    return {"name": name} | {f"{k}_ms": v for k, v in found.items()} | ratios


def growth(engine: str, repeats: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """An entry for each T and for each number of particles beyond the first, beside so many times the first."""
    shape = Shape()
    lengths = {f"steps_{steps}": ours(engine, replace(shape, steps=steps)) for steps in LENGTHS}
    many = {f"particles_{count}": ours(engine, shape, count) for count in PARTICLES[1:]}
    found = medians(lengths | many, repeats, clock)
    first = found[f"steps_{LENGTHS[0]}"]
    times = [steps / LENGTHS[0] for steps in LENGTHS] + list(PARTICLES[1:])
    return [
        {
            "name": f"{engine}_vrnn_{name}",
            "ours_ms": found[name],
            "plain_ms": more * first,
            "ours/plain": found[name] / (more * first),
        }
        for name, more in zip(found, times, strict=True)
        if more > 1
    ]


def peak(engine: str, steps: int) -> float:
    """MiB by which steps of truncated backpropagation raise resident memory at its peak, compilation included."""
    made, state = program(engine, Shape(2 * WINDOW), truncate=WINDOW)
    batch, rates = Shape(steps).batch(), {"model": 1e-3, "guide": 1e-3}
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)
    for count in range(2):
        state, _ = made.step(state, [batch], Control(count, 1.0, rates))
    return resident("VmHWM") - before


def memory(engine: str) -> dict[str, Any]:
    """One entry: peak memory of a step in windows at T = 3,000, and at T = 300; each in a process of its own."""
    found = {}
    for steps in (300, 3000):
        command = [sys.executable, "-m", "benchmarks.vrnn_step", "--engine", engine, "--peak", str(steps)]
        found[steps] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    sizes = {"ours_mib": found[3000], "plain_mib": found[300], "ours/plain": found[3000] / found[300]}
    return {"name": f"{engine}_vrnn_memory_in_windows", **sizes}


def measure(engine: str, repeats: int = 15, clock: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    """Everything this script measures: a list of entries with a name, times in milliseconds and ratios."""
    keep_freed_memory()
    if engine == "pyro":
        importlib.import_module("torch").set_num_threads(1 if clock is time.process_time else 2)
    entries = [training(engine, Shape(residual=residual), repeats, clock) for residual in (False, True)]
    return [*entries, *growth(engine, max(3, repeats // 3), clock), memory(engine)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("pyro", "numpyro"), default="pyro")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.engine, options.peak))
        return
    show(measure(options.engine, options.repeats, clock(options.processor_time)), options.json)


if __name__ == "__main__":
    main()
