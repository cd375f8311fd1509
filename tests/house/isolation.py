"""Fits, judges and samples on one engine while the other engine's libraries cannot be found.

    python tests/house/isolation.py pyro
    python tests/house/isolation.py numpyro

The libraries are hidden from every finder, so that `import torch` and `find_spec("torch")` answer as on a
machine that never had them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

LIBRARIES = {
    "pyro": {"torch", "pyro", "pyroapi"},
    "numpyro": {"jax", "jaxlib", "numpyro", "equinox", "optax"},
}
TINY = (
    "model.prior.dim=4",
    "model.decoder.embedding=8",
    "model.decoder.hidden=8",
    "guide.encoder.embedding=8",
    "guide.encoder.hidden=8",
    "fit.max_steps=3",
    "data.buckets=2",
)


class Hiding:
    """A finder that finds everything but some top-level names."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self.finder, self.hidden = finder, hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self.hidden:
            return None
        return self.finder.find_spec(name, path, target)


def hide(libraries: set[str]) -> None:
    sys.meta_path[:] = [Hiding(finder, libraries) for finder in sys.meta_path]
    found = [name for name in libraries if importlib.util.find_spec(name)]
    expect(not found, f"{', '.join(found)} could still be found")


def expect(condition: bool, complaint: object) -> None:
    if not condition:
        sys.exit(f"isolation: {complaint}")


def guidebook(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command, in this process."""
    from guidebook.inference.cli import main

    output, errors, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["guidebook", *arguments]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        finally:
            sys.argv = before
    return int(status or 0), output.getvalue(), errors.getvalue()


def works(*arguments: str) -> dict[str, Any]:
    status, output, errors = guidebook(*arguments, "--json")
    expect(status == 0, f"guidebook {' '.join(arguments)} exits {status}: {errors}")
    return json.loads(output)


def main(engine: str) -> None:
    other = {"pyro": "numpyro", "numpyro": "pyro"}[engine]
    hide(LIBRARIES[other])
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        works("fit", "quickstart", *TINY, "--engine", engine, "--out", run)
        elbo = works("evaluate", run, "--particles", "4")["elbo"]
        works("reconstruct", run)
        works("interpolate", run)
        works("sample", run)
        works("diagnose", run)
        status, _, errors = guidebook("fit", "quickstart", *TINY, "--engine", other, "--out", f"{run}-other")
        expect(status == 2 and f"guidebook[{other}]" in errors, f"--engine {other} exits {status}: {errors}")
    loaded = {name.partition(".")[0] for name in sys.modules} & LIBRARIES[other]
    expect(not loaded, f"{', '.join(sorted(loaded))} loaded")
    print(f"isolation: {engine} fits, judges and samples without {other} (elbo {elbo:.1f} nats per sentence)")


if __name__ == "__main__":
    main(sys.argv[1])
