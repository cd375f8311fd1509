"""Every speed measurement of both engines, into `benchmarks/results/speed.DEVICE.json`.

    python -m benchmarks.speed [SCRIPT ...] [--repeats 15]

With scripts named, vrnn_step say, the measurements of the others are kept as they are. Each script is run in a process
of its own, with all its variants interleaved. Milliseconds drift with the machine; the ratios are what counts. Have
nothing else running.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from typing import Any

from benchmarks.machine import ROOT, commit, device

ENGINES = ("pyro", "numpyro")

TARGETS = {
    "pyro_step_batch_32": {"ours/hand": ("<=", 1.0), "stock/ours": (">=", 1.8)},
    "pyro_step_batch_64": {"ours/hand": ("<=", 0.8), "stock/ours": (">=", 1.8), "ours/floor": ("<=", 1.5)},
    "numpyro_step_batch_32": {"ours/hand": ("<=", 0.85), "stock/ours": (">=", 1.5)},
    "numpyro_step_batch_64": {"ours/hand": ("<=", 0.85), "stock/ours": (">=", 1.5), "ours/floor": ("<=", 1.5)},
    "pyro_iw_nll_500": {"ours/floor": ("<=", 1.5)},
    "numpyro_iw_nll_500": {"ours/floor": ("<=", 1.5)},
    "pyro_von_mises_fisher": {"stock/ours": (">=", 4.0)},
    "pyro_power_spherical": {"stock/ours": (">=", 1.5)},
    "pyro_iwae_16_particles": {"ours/plain": ("<=", 0.7)},
    "numpyro_iwae_16_particles": {"ours/plain": ("<=", 0.7)},
    "pyro_vrnn": {"ours/hand": ("<=", 1.1), "stock/ours": (">=", 3.0)},
    "pyro_vrnn_residual": {"ours/hand": ("<=", 1.1), "stock/ours": (">=", 3.0)},
    "numpyro_vrnn": {"ours/hand": ("<=", 1.1), "stock/ours": (">=", 1.6)},
    "numpyro_vrnn_residual": {"ours/hand": ("<=", 1.1), "stock/ours": (">=", 1.6)},
    "pyro_dmm": {"stock/ours": (">=", 4.0)},
    **{f"{engine}_attention_training_{n}": {"ours/plain": ("<=", 1.1)} for engine in ENGINES for n in (64, 256, 512)},
    **{f"{engine}_attention_scalar_{n}": {"ours/plain": ("<=", 1.25)} for engine in ENGINES for n in (64, 256, 512)},
    **{f"{engine}_attention_general_512": {"stock/ours": (">=", 2.5)} for engine in ENGINES},
    **{f"{engine}_attention_memory_512": {"ours/plain": ("<=", 1.3)} for engine in ENGINES},
    **{
        f"{engine}_bottleneck_{objective}_{n}": {"ours/floor": ("<=", 1.8)}
        for engine in ENGINES
        for objective in ("paper", "mixture")
        for n in (64, 256, 512)
    },
    "pyro_peak_memory_50000": {"ours/hand": ("<=", 0.5)},
    "numpyro_peak_memory_50000": {"ours/hand": ("<=", 0.5)},
}
"""Measurement → ratio → bound. The bound on ours/floor at batch 64 is for the better of the two engines."""

OBJECTIVE = {"ours/plain": ("<=", 1.05)}
"""Of the other measurements against the plain ELBO: an objective's own cost at one particle."""

LINEAR = {"ours/plain": ("<=", 1.15)}
"""Of a step of so many times the steps or particles, against so many times a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", help="those to run; all of them if none is named")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    repeats = options.repeats
    load = os.getloadavg()[0]
    runs = [*(f"{engine}_step" for engine in ENGINES), "spherical_step", "dmm_step"]
    runs += [
        f"{script} --engine {engine}"
        for script in ("objective_step", "vrnn_step", "attention_step", "bottleneck_step")
        for engine in ENGINES
    ]
    name = re.sub(r"[^a-z0-9]+", "-", device().lower()).strip("-")
    path = ROOT / "benchmarks" / "results" / f"speed.{name}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["measurements"] if options.scripts and path.exists() else []
    entries = {entry["name"]: entry for entry in before}
    of = {"commit": commit(), "repeats": repeats, "load_before": load}
    path.parent.mkdir(exist_ok=True)
    for run in runs:
        if not options.scripts or run.split()[0] in options.scripts:
            entries |= {entry["name"]: judged(entry) | of for entry in measured(run, repeats)}
            result = {"device": device(), "measurements": list(entries.values())}
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


def measured(run: str, repeats: int) -> list[dict[str, Any]]:
    print(f"measuring {run}: some minutes", file=sys.stderr, flush=True)
    script, *options = run.split()
    command = [sys.executable, "-m", f"benchmarks.{script}", *options, "--json", "--repeats", str(repeats)]
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def judged(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with each target and whether it was met."""
    others = {} if "ours/plain" not in entry else LINEAR if "_vrnn_" in entry["name"] else OBJECTIVE
    targets = [
        {
            "metric": ratio,
            "bound": f"{sign} {bound}",
            "met": entry[ratio] <= bound if sign == "<=" else entry[ratio] >= bound,
        }
        for ratio, (sign, bound) in TARGETS.get(entry["name"], others).items()
    ]
    return entry | {"targets": targets}


if __name__ == "__main__":
    main()
