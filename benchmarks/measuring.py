"""Medians of variants measured in turns, and what a script prints of them."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Step = Callable[[], Any]
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


def clock(processor_time: bool) -> Callable[[], float]:
    """The wall's, or the processor's with one thread of an engine that is not imported yet."""
    if processor_time:
        os.environ.update(ONE_THREAD)
    return time.process_time if processor_time else time.perf_counter


def medians(
    variants: Mapping[str, Step], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Milliseconds of each variant, measured in turns, every other turn from the last to the first."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 2):
        for name in list(variants)[:: 1 - 2 * (repeat % 2)]:
            start = clock()
            variants[name]()
            if repeat >= 2:
                taken[name].append(1e3 * (clock() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def show(entries: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    """A line an entry, or all of them as one line of JSON."""
    if as_json:
        print(json.dumps(list(entries)))
        return
    for entry in entries:
        print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in entry.items()))


def command(measure: Callable[..., list[dict[str, Any]]], about: str | None) -> None:
    """The command line of a script whose `measure(engine, repeats, clock)` measures either engine."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("pyro", "numpyro"), default="pyro")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    show(measure(options.engine, options.repeats, clock(options.processor_time)), options.json)
