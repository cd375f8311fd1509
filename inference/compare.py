"""`compare`: one recipe fitted with several values of one setting, from the same seeds, in one table and one picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.errors import BadInput
from .evaluate import evaluate
from .evaluation import Evaluation
from .files import write
from .fit import fit
from .resolve import resolve
from .run import Run
from .sequence_evaluation import SequenceEvaluation
from .tables import html_table, number, text_table

HEADER = ("", "ELBO", "IW-NLL", "KL", "MI", "active units", "seconds")
SEQUENCE_HEADER = ("", "ELBO", "IWAE", "FIVO", "KL", "seconds")


@dataclass(frozen=True, repr=False)
class Comparison:
    """One run for each value: its evaluation, on the same split with the same particles, and its training time.

    Attributes:
        setting: the key that was varied. runs, evaluations: value → what came of it. picture: the file.
    """

    setting: str
    runs: dict[str, Run]
    evaluations: dict[str, Evaluation | SequenceEvaluation]
    picture: Path

    @property
    def header(self) -> tuple[str, ...]:
        return SEQUENCE_HEADER if isinstance(self._first, SequenceEvaluation) else HEADER

    def rows(self) -> list[tuple[str, ...]]:
        return [(value, *_numbers(found), number(self._seconds(value), 1)) for value, found in self.evaluations.items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "setting": self.setting,
            "picture": str(self.picture),
            "runs": {
                value: {"run": str(self.runs[value].folder), "seconds": self._seconds(value), **found.to_dict()}
                for value, found in self.evaluations.items()
            },
        }

    @property
    def _first(self) -> Evaluation | SequenceEvaluation:
        return next(iter(self.evaluations.values()))

    def _seconds(self, value: str) -> float:
        return self.runs[value].lines[-1]["seconds"]

    def __repr__(self) -> str:
        first = self._first
        table = text_table([self.header, *self.rows()], right=range(1, len(self.header)))
        return f"{self.setting} · {first.title}, {first.unit}\n{table}\n  picture  {self.picture}"

    def _repr_html_(self) -> str:
        return html_table(self.rows(), self.header, numbers=range(1, len(self.header)))


def _numbers(found: Evaluation | SequenceEvaluation) -> list[str]:
    """The cells of one run, but for its seconds."""
    if isinstance(found, SequenceEvaluation):
        bounds = found.elbo, found.iw, found.filtered
        return [*(number(bound.total_step, 4) for bound in bounds), number(found.kl, 4)]
    return [number(value) for value in (found.elbo, found.iw_nll, found.kl, found.mi, found.active_units)]


def compare(
    recipe: Any,
    variation: str,
    *settings: str,
    out: str | Path | None = None,
    engine: str | None = None,
    device: str = "cpu",
    seed: int | None = None,
    split: str = "test",
    particles: int = 100,
    data: Any = None,
    progress: bool | None = None,
) -> Comparison:
    """Fits `recipe` once for each value of `variation`, "KEY=VALUE,VALUE,…", and judges all runs alike.

    A value is what `fit` takes after `KEY=`, as `iwae:8` and `renyi:0.5` after `divergence=`. The runs are folders in
    `out` (by default runs/compare-RECIPE), and one that is there already is gone on with.

    Raises:
        BadInput: as `fit`, before anything is trained.
    """
    key, values = _variation(variation)
    changes = {value: [*settings, f"{key}={value}"] for value in values}
    name = ""
    for change in changes.values():
        _, _, name = resolve(recipe, change, engine=engine, seed=seed, data=data)
    folder = Path(out) if out is not None else Path("runs") / f"compare-{name}"
    runs = {
        value: fit(
            recipe,
            *change,
            out=folder / re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-"),
            engine=engine,
            device=device,
            seed=seed,
            resume=True,
            data=data,
            progress=progress,
        )
        for value, change in changes.items()
    }
    found = {value: evaluate(run, split=split, particles=particles) for value, run in runs.items()}
    return Comparison(key, runs, found, _picture(runs, found, folder / "comparison.png"))


def _picture(runs: dict[str, Run], found: dict[str, Evaluation | SequenceEvaluation], path: Path) -> Path:
    from .figures import comparison, png

    first = next(iter(found.values()))
    unit = "nats per sequence" if isinstance(first, SequenceEvaluation) else first.unit
    write(path, png(comparison({value: run.history("valid") for value, run in runs.items()}, unit)))
    return path


def _variation(text: str) -> tuple[str, Sequence[str]]:
    key, equals, values = text.partition("=")
    parts = _split(values)
    if not equals or not key or "" in parts:
        raise BadInput(f"{text!r} is no variation: write KEY=VALUE,VALUE, e.g. divergence=kl,iwae:8,renyi:0.5")
    if len(set(parts)) < len(parts):
        raise BadInput(f"{text!r} names a value twice: each once would be right")
    return key, parts


def _split(values: str) -> list[str]:
    """At the commas outside every table, list and string."""
    parts, depth, quote = [""], 0, ""
    for letter in values:
        if letter == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "{[") - (letter in "}]")
    return [part.strip() for part in parts]
