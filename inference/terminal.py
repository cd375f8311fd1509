"""What the commands share: their options, the run they are on, and how they print what they found."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from .resolve import pair_in_file

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
PairOption = Annotated[
    str | None,
    typer.Option("--pair", metavar="FILE.py:NAME", help="The programs of a run of your own pair; this runs the file."),
]
EngineOption = Annotated[str | None, typer.Option("--engine", help="pyro or numpyro; default: the run's own.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0)]
DecodingKind = Literal["greedy", "sample", "beam"]
StrategyOption = Annotated[DecodingKind | None, typer.Option("--strategy", help="How words are chosen.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="Of --strategy sample.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Of --strategy sample: only so many words.")]
TopPOption = Annotated[float | None, typer.Option("--top-p", help="Of --strategy sample: only words of this mass.")]
BeamOption = Annotated[int, typer.Option("--width", help="Of --strategy beam.")]
LengthOption = Annotated[
    int | None, typer.Option("--max-words", min=1, help="Longest sentence; default 60, or as --words says.")
]


def loaded_run(folder: Path, pair: str | None, device: str, engine: str | None) -> Any:
    from .run import load

    return load(folder, pair=pair_in_file(pair) if pair else None, device=device, engine=engine)


def show(found: Any, as_json: bool) -> None:
    if as_json:
        print_json(found.to_dict())
    else:
        print(found)


def print_json(found: dict[str, Any]) -> None:
    print(json.dumps(_finite(found), allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def working(what: str) -> Any:
    return Console(stderr=True).status(what)


class counting:
    """A line on a terminal that counts batches; silent elsewhere."""

    def __init__(self, what: str) -> None:
        self.what, self.console = what, Console(stderr=True)

    def __enter__(self) -> Any:
        self.status = self.console.status(self.what)
        self.status.__enter__()
        return self._count

    def __exit__(self, *error: Any) -> None:
        self.status.__exit__(*error)

    def _count(self, done: int, total: int) -> None:
        self.status.update(f"{self.what}: batch {done} of {total}" if total else f"{self.what}: batch {done}")
