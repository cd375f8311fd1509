"""A training step of the sentence VAE under every divergence, against the plain ELBO's; and IWAE with 16 particles.

    python -m benchmarks.objective_step --engine pyro [--repeats 15] [--json]

One particle for all, so that what differs is the objective's own cost; then 16 for IWAE, whose encoder runs once and
whose decoder is batched. Each takes turns with the plain step in one process with two threads. Shape as `benchmarks.pyro_step`,
batch 32.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from benchmarks.measuring import medians, show
from benchmarks.pyro_step import Shape
from guidebook.engines import load
from guidebook.engines.memory import keep_freed_memory
from guidebook.engines.protocol import Control, Settings
from guidebook.guides.pairs import PAIRS
from guidebook.guides.sentence_guide import SentenceGuide
from guidebook.inference import IWAE, KL
from guidebook.inference.compatibility import choices, misfit
from guidebook.inference.divergences import Divergence
from guidebook.inference.mistakes import kinds
from guidebook.models.sentence_vae import SentenceModel

PAIR = PAIRS["sentence_vae"]
ROWS = 32
PARTICLES = 16


def step(engine: str, divergence: Any) -> Any:
    """The engine's own step, which returns once its result is there."""
    model, guide, shape = SentenceModel(), SentenceGuide(), Shape(ROWS)
    settings = Settings(data_size=42_068, objective=divergence.objective())
    program = load(engine).Program(PAIR, PAIR.realisable(model, guide, shape.vocabulary), settings)
    batch, count, rates = shape.batch(), iter(range(10**9)), {"model": 1e-3, "guide": 1e-3}
    held, carried = [program.init(batch)], divergence.carried()
    weight = {"weight": 1.0, **carried} if carried else 1.0

    def run() -> float:
        held[0], info = program.step(held[0], [batch], Control(next(count), weight, rates))
        return float(info["objective"])

    return run


def objectives() -> dict[str, Any]:
    """Name → every divergence with every estimator that fits the normal pair, at one particle."""
    prior, posterior = SentenceModel().prior, SentenceGuide().posterior
    every = (choice for spec in kinds(Divergence).values() for choice in choices(spec) if choice.filtering is None)
    return {
        "_".join(filter(None, (one.kind, getattr(one, "estimator", None)))): one.model_copy(update={"particles": 1})
        for one in every
        if misfit(prior, posterior, one) is None and one.kind != "svgd"  # whose particles move each other
    }


def measure(engine: str, repeats: int = 15) -> list[dict[str, Any]]:
    """An entry a divergence, and one for IWAE's particles."""
    keep_freed_memory()
    if engine == "pyro":
        importlib.import_module("torch").set_num_threads(2)
    plain = step(engine, KL())
    every = {f"{engine}_{name}": (one, 1) for name, one in objectives().items() if name != "kl_analytic"}
    every[f"{engine}_iwae_{PARTICLES}_particles"] = IWAE(particles=PARTICLES), PARTICLES
    entries = []
    for name, (one, times) in every.items():
        found = medians({"plain": plain, "ours": step(engine, one)}, repeats)
        share = found["ours"] / (times * found["plain"])
        entries.append(
            {"name": name, "ours_ms": found["ours"], "plain_ms": times * found["plain"], "ours/plain": share}
        )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("pyro", "numpyro"), default="pyro")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    show(measure(options.engine, options.repeats), options.json)


if __name__ == "__main__":
    main()
