"""Denoising attention against plain attention and against the published design.

    python -m benchmarks.attention_step --engine pyro [--repeats 15] [--processor-time] [--json]

p = 512, 8 heads, batch 8, n queries over n vectors, float32. Every variant makes its keys and values first.

training: over one draw of the measure, forward and backward, beside plain attention over the same vectors.
scalar: over the mean measure with one variance for each component, forward, beside plain attention.
general: over the mean measure with one for each coordinate, forward, beside the published design, written anew, which
lifts the queries to width p in every head and leaves a term out. `bfloat16` is ours with such operands for the gates.
memory: what a step of the training form takes at its peak, each variant in a process of its own.

All variants are interleaved in one process, with two threads, in alternating order; medians are reported. On a machine
that others use as well, `--processor-time` measures the processor time of one thread.
"""

from __future__ import annotations

import importlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import resident
from benchmarks.measuring import command, medians
from guidebook.engines.memory import keep_freed_memory

BATCH, WIDTH, HEADS = 8, 512, 8
LENGTHS = (64, 256, 512)


def arrays(length: int) -> dict[str, np.ndarray]:
    """Vectors and queries about standard normal; p is kept by the projections."""
    rng = np.random.default_rng(0)
    rows, weights = (BATCH, length, WIDTH), (WIDTH, WIDTH)
    made = {name: rng.standard_normal(rows) for name in ("y", "z", "upstream")}
    made |= {name: rng.standard_normal(weights) / WIDTH**0.5 for name in ("query", "key", "value")}
    made |= {"log_weight": rng.standard_normal(rows[:2]), "variance": rng.uniform(0.05, 1, rows)}
    return {name: array.astype(np.float32) for name, array in made.items()}


def measure(engine: str, repeats: int = 15, clock: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    """Everything this script measures: a list of entries with a name, times in milliseconds and ratios."""
    keep_freed_memory()
    if engine == "pyro":
        importlib.import_module("torch").set_num_threads(1 if clock is time.process_time else 2)
    made = importlib.import_module(f"benchmarks.attention_{engine}")
    entries = []
    for form, lengths in (("training", LENGTHS), ("scalar", LENGTHS), ("general", LENGTHS[-1:])):
        for length in lengths:
            found = medians(getattr(made, form)(arrays(length), HEADS), repeats, clock)
            if form == "general":
                ratios = {f"stock/{name}": found["stock"] / found[name] for name in ("ours", "bfloat16")}
            else:
                ratios = {"ours/plain": found["ours"] / found["plain"]}
            times = {f"{name}_ms": value for name, value in found.items()}
            entries.append({"name": f"{engine}_attention_{form}_{length}"} | times | ratios)
    return [*entries, memory(engine)]


def memory(engine: str) -> dict[str, Any]:
    """One entry, of the largest length: medians of five processes."""
    found = {}
    for variant in ("ours", "plain"):
        code = f"from benchmarks.attention_step import peak; print(peak({engine!r}, {variant!r}))"
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)
        ]
        found[variant] = statistics.median(float(run.stdout) for run in runs)
    times = {f"{variant}_mib": value for variant, value in found.items()}
    return {
        "name": f"{engine}_attention_memory_{LENGTHS[-1]}",
        **times,
        "ours/plain": found["ours"] / found["plain"],
    }


def peak(engine: str, variant: str) -> float:
    """MiB by which a step, which has been taken at a small length, raises the resident memory."""
    made = importlib.import_module(f"benchmarks.attention_{engine}")
    made.training(arrays(8), HEADS)[variant]()
    step = made.training(arrays(LENGTHS[-1]), HEADS)[variant]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)
    step()
    return resident("VmHWM") - before


if __name__ == "__main__":
    command(measure, __doc__)
