"""Sequences that a run has drawn, as files: what `guidebook sample` and `guidebook forecast` write and say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .completed import Completed
from .sequence_files import write_sequences
from .sequences import forecast, generate
from .tables import text_table


@dataclass(frozen=True, repr=False)
class Drawn:
    """Sequences from the model. steps: of each."""

    samples: int
    steps: int
    files: list[Path]
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        files = [str(path) for path in self.files]
        return {**self.about, "samples": self.samples, "steps": self.steps, "files": files}

    def __repr__(self) -> str:
        return f"{self.samples} sequences of {self.steps} steps from the model\n{_listed(self.files)}"


@dataclass(frozen=True, repr=False)
class Forecast:
    """A forecast, and its files: the picture, and what was given with one continuation, drawn by the weights."""

    found: Completed
    files: list[Path]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return self.found.to_dict() | {"files": [str(path) for path in self.files]}

    def __repr__(self) -> str:
        return f"{self.found}\n{_listed(self.files)}"


def sample_files(
    run: Any, count: int = 10, steps: int | None = None, *, out: Path | None = None, seed: int = 0
) -> Drawn:
    """`generate`, written into `out`, by default the folder `samples` of the run."""
    found = generate(run, count, steps, seed)
    files = write_sequences(found, run.dataset.about, out or run.folder / "samples")
    about = {"pair": run.pair.name, "engine": run.recipe.engine, "seed": seed}
    return Drawn(len(found), len(found[0]), files, about)


def forecast_files(
    run: Any, row: int = 0, *, split: str = "test", out: Path | None = None, seed: int = 0, **settings: Any
) -> Forecast:
    """`forecast` of a row of a split, written into `out`, by default the folder `forecasts` of the run."""
    found = forecast(run, row, split=split, seed=seed, **settings)
    picture = found.picture(f"row {row} of the {split} split, and what may follow step {found.about['given']}")
    drawn = found.draws(1, seed)
    name = f"{split}-{row}"
    return Forecast(
        found, write_sequences(list(drawn), run.dataset.about, out or run.folder / "forecasts", name, picture)
    )


def _listed(files: list[Path]) -> str:
    return text_table([(path.suffix.removeprefix("."), str(path)) for path in files], right=())
