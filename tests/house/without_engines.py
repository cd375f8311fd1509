"""Run in an environment that holds the wheel and its base dependencies, and neither engine.

Every room but the engines' own imports, the command line answers, and asking for an engine names its extra.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOMS = ("models", "guides", "engines", "engines.protocol", "inference", "inference.cli", "data", "recipes")
FRAMEWORKS = ("torch", "pyro", "jax", "numpyro", "equinox", "optax")


def guidebook(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(sysconfig.get_path("scripts")) / "guidebook"
    return subprocess.run([script, *arguments], capture_output=True, text=True, check=False)


def expect(condition: bool, complaint: object) -> None:
    if not condition:
        sys.exit(f"without engines: {complaint}")


def main() -> None:
    present = [name for name in FRAMEWORKS if importlib.util.find_spec(name)]
    expect(not present, f"this environment is not empty: it has {', '.join(present)}")
    for room in ROOMS:
        importlib.import_module(f"guidebook.{room}")
    for arguments in (["--help"], ["list"], ["list", "--json"]):
        result = guidebook(*arguments)
        expect(
            result.returncode == 0 and bool(result.stdout),
            f"guidebook {' '.join(arguments)}: {result.stderr}",
        )
    for engine in ("pyro", "numpyro"):
        result = guidebook("fit", "quickstart", "--engine", engine, "--out", "run")
        expect(result.returncode == 2, f"fit --engine {engine} exits {result.returncode}: {result.stderr}")
        expect(f"guidebook[{engine}]" in result.stderr, f"fit --engine {engine} names no extra: {result.stderr}")
        expect("Traceback" not in result.stderr, result.stderr)
    print("without engines: every room imports, the command line answers")


if __name__ == "__main__":
    main()
