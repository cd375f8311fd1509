"""What a person sees of a fit: a live display on a terminal, one plain line per epoch elsewhere; on standard error."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..data import Data
from .tables import number

SHOWN = 12
"""Epochs of the table that stay in sight."""


class Display:
    """Says nothing. The two that do are below. kept: whether the folder stays, and is worth naming."""

    kept: bool = True

    def note(self, text: str) -> None: ...

    def count(self, what: str, done: int) -> None: ...

    def start(self, recipe: Any, batches: Any, steps: int, done: int, folder: Path) -> None: ...

    def step(self, step: int) -> None: ...

    def metrics(self, line: dict[str, Any]) -> None: ...

    def epoch(self, line: dict[str, Any], better: bool) -> None: ...

    def end(self, why: str, folder: Path) -> None: ...


class Plain(Display):
    """One line per epoch."""

    def start(self, recipe: Any, batches: Any, steps: int, done: int, folder: Path) -> None:
        print(_headline(recipe, batches, steps, done, folder if self.kept else None), file=sys.stderr, flush=True)

    def epoch(self, line: dict[str, Any], better: bool) -> None:
        names = (("objective", "objective"), ("elbo", "ELBO"), ("reconstruction", "rec"), ("kl", "KL"))
        values = "  ".join(f"{label} {number(line[key], 2)}" for key, label in names)
        active = f"  AU {line['active_units']}" if line.get("active_units") is not None else ""
        mark = "  *" if better else ""
        print(
            f"epoch {line['epoch']}  {line['seconds']:.0f} s  valid: {values}{active}{mark}",
            file=sys.stderr,
            flush=True,
        )

    def end(self, why: str, folder: Path) -> None:
        print(_ending(why, folder if self.kept else None), file=sys.stderr, flush=True)


class Terminal(Display):
    """A bar, what the last steps averaged, and a table of epochs."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
        )
        self.task = self.progress.add_task("fit", total=None, now="")
        self.rows: list[tuple[str, ...]] = []
        self.title = ""
        self._draw()

    def note(self, text: str) -> None:
        self.progress.update(self.task, now=text)
        self._draw()

    def count(self, what: str, done: int) -> None:
        self.progress.update(self.task, now=f"{what}: {done:,}")

    def start(self, recipe: Any, batches: Any, steps: int, done: int, folder: Path) -> None:
        self.title = f"validation, nats per {_datum(recipe)}"
        headline = _headline(recipe, batches, steps, done, folder if self.kept else None)
        self.live.console.print(headline, markup=False, highlight=False)
        self.progress.update(self.task, total=steps, completed=done, now="")

    def step(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def metrics(self, line: dict[str, Any]) -> None:
        names = (("elbo", "ELBO"), ("reconstruction", "rec"), ("kl", "KL"), ("weight", "β"))
        now = "  ".join(f"{label} {number(line[key], 2)}" for key, label in names)
        self.progress.update(self.task, now=now)

    def epoch(self, line: dict[str, Any], better: bool) -> None:
        values = [number(line[key], 2) for key in ("objective", "elbo", "reconstruction", "kl")]
        active = line.get("active_units")
        self.rows.append(
            (
                str(line["epoch"]),
                f"{line['seconds']:.0f} s",
                *values,
                "–" if active is None else str(active),
                "★" if better else "",
            )
        )
        self._draw()

    def end(self, why: str, folder: Path) -> None:
        self.progress.update(self.task, now=why)
        self._draw()
        self.live.console.print(_ending(why, folder if self.kept else None), markup=False, highlight=False)

    def _draw(self) -> None:
        table = Table(title=self.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("epoch", "time", "objective", "ELBO", "reconstruction", "KL", "active units", "best"):
            table.add_column(column, justify="right")
        for row in self.rows[-SHOWN:]:
            table.add_row(*row)
        self.live.update(Group(table, self.progress) if self.rows else Group(self.progress))


@contextmanager
def display(live: bool | None, kept: bool = True) -> Iterator[Display]:
    """The display for standard error. live: None is live on a terminal and plain lines elsewhere; False is silent. kept: as
    `Display` has it.
    """
    console = Console(stderr=True)
    lively = console.is_terminal if live is None else live
    with Live(console=console, refresh_per_second=4) if lively else nullcontext() as area:
        shown = Terminal(area) if area else Display() if live is False else Plain()
        shown.kept = kept
        yield shown


def _headline(recipe: Any, batches: Any, steps: int, done: int, folder: Path | None) -> str:
    data, going = _datum(recipe) + "s", f", from step {done:,}" if done else ""
    return (
        f"{recipe.pair} on {recipe.engine}: {batches.data_size:,} {data}, batches of {recipe.fit.batch_size} in "
        f"{len(batches.shapes)} shapes, {steps:,} steps{going}{f' → {folder}' if folder else ''}{_unfinished(recipe, steps)}"
    )


def _ending(why: str, folder: Path | None) -> str:
    return f"{why}; the run is in {folder}" if folder else why


def _unfinished(recipe: Any, steps: int) -> str:
    """A warning where the run ends before the schedule of the KL weight does."""
    weight = recipe.divergence.weight
    last, final = weight.at(steps - 1), weight.at(math.inf)
    if abs(last - final) <= 0.01 * max(1.0, abs(final)):
        return ""
    return f"\nwarning: training ends with divergence.weight at {last:.2g}, before its schedule reaches {final:.2g}"


def _datum(recipe: Any) -> str:
    return "sentence" if isinstance(recipe.data, Data) else "row"
