"""What the filters of a fitted pair of sequences have found, for people (`repr`, `picture`) and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from .tables import html_table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray

BAND = (0.05, 0.95)
"""Quantiles between which nine tenths of the weight lie."""
ENOUGH = 30
"""Distinct ancestors that a standard deviation needs: of so many it is known to an eighth."""
_ROWS, _FEATURES, _DRAWINGS = 20, 3, 6


@dataclass(frozen=True, repr=False)
class Completed:
    """A sequence of which some steps were observed, and the paths that particles took through the others.

    Attributes:
        x: (S, T, D) the paths, in the model's units; each is what was observed where something was.
        weights: (S,) of the paths, 1 in all.
        observed: (T,) bool.
        truth: (T, D) what the model did not see, where it is known, else NaN.
        log_evidence: log p of the observed steps by the filter, nats.
        data: `SequenceData.about`.
    """

    x: Array
    weights: Array
    observed: Array
    truth: Array
    log_evidence: float
    data: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> Array:
        """(T, D); of music the probability of each key."""
        return np.einsum("s,std->td", self.weights, self.x)

    def quantile(self, share: float) -> Array:
        """(T, D) the smallest value at or below which this share of the weight lies."""
        order = np.argsort(self.x, 0)
        below = np.cumsum(self.weights[order], 0)
        place = np.minimum((below < share - 1e-12).sum(0), len(self.x) - 1)
        return np.take_along_axis(np.take_along_axis(self.x, order, 0), place[None], 0)[0]

    @property
    def effective(self) -> float:
        """Effective number of paths, 1 / Σ w²."""
        return float(1 / (self.weights**2).sum())

    def draws(self, count: int, seed: int = 0) -> Array:
        """(count, T, D) paths drawn by their weights."""
        return self.x[np.random.default_rng(seed).choice(len(self.x), count, p=self.weights)]

    @property
    def hidden(self) -> Array:
        """Positions of the steps that were not observed."""
        return np.flatnonzero(~self.observed)

    @property
    def title(self) -> str:
        count, hidden = int(self.observed.sum()), len(self.hidden)
        what = "after" if self.observed[:count].all() else "among"
        return f"{hidden} steps {what} {count} that were observed, {len(self.x)} particles ({self.effective:.0f} effective)"

    def picture(self, title: str = "") -> Figure:
        """What was observed and what is expected: a roll of music, waves of sound, drawings, else bands."""
        from . import sequence_figures as figures
        from .sequence_files import restored

        kind, known = self.data["kind"], np.isfinite(self.truth).all(1) & ~self.observed
        if kind == "music":
            truth = np.where(known[:, None], self.truth, 0.0)
            return figures.completion(self.mean, self.observed, truth, self.data["steps_per_beat"], title)
        if kind == "strokes":
            return figures.drawings([restored(path, self.data) for path in self.draws(_DRAWINGS)])
        low, high = map(self.quantile, BAND)
        parts = self.mean, low, high, self.truth
        if kind == "sound":
            frame = self.x.shape[-1]
            mean, low, high, truth = (restored(part, self.data)[:, None] for part in parts)
            seen, rate = np.repeat(self.observed, frame), self.data["sample_rate"]
            return figures.bands(mean, low, high, truth, seen, rate, title)
        mean, low, high, truth = (part[:, :_FEATURES] for part in parts)
        return figures.bands(mean, low, high, truth, self.observed, None, title)

    @property
    def header(self) -> tuple[str, ...]:
        if self.data["kind"] == "music":
            return "step", "keys, and the probability of each", "what was played"
        shown = min(self.x.shape[-1], _FEATURES)
        return "step", *(f"x[{i}], mean ({BAND[0]:.0%} … {BAND[1]:.0%})" for i in range(shown)), "what it was"

    def rows(self) -> list[tuple[str, ...]]:
        """One for each step that was not observed, the first twenty."""
        from .sequence_figures import pitch_name

        mean, low, high = self.mean, *map(self.quantile, BAND)
        found = []
        for step in self.hidden[:_ROWS]:
            truth = self.truth[step]
            known = bool(np.isfinite(truth).all())
            if self.data["kind"] == "music":
                likely = [key for key in np.argsort(-mean[step])[:6] if mean[step, key] >= 0.05]
                cells = ["  ".join(f"{pitch_name(int(key))} {mean[step, key]:.2f}" for key in sorted(likely))]
                played = " ".join(pitch_name(int(key)) for key in np.flatnonzero(truth > 0.5))
                cells.append((played or "rest") if known else "")
            else:
                shown = range(min(self.x.shape[-1], _FEATURES))
                cells = [f"{mean[step, i]:.3f} ({low[step, i]:.3f} … {high[step, i]:.3f})" for i in shown]
                cells.append("  ".join(f"{truth[i]:.3f}" for i in shown) if known else "")
            found.append((str(step), *cells))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, of the steps that were not observed: D numbers each."""
        found = {"mean": self.mean, "truth": self.truth}
        if self.data["kind"] != "music":
            found |= {"low": self.quantile(BAND[0]), "high": self.quantile(BAND[1])}
        return {
            **self.about,
            "particles": len(self.x),
            "effective_particles": self.effective,
            "log_evidence": self.log_evidence,
            "steps": self.hidden.tolist(),
            **{name: values[self.hidden].tolist() for name, values in found.items()},
        }

    def __repr__(self) -> str:
        more = len(self.hidden) - _ROWS
        rest = f"\n  and {more} more" if more > 0 else ""
        return f"{self.title}\n{text_table([self.header, *self.rows()], right=(0,))}{rest}"

    def _repr_html_(self) -> str:
        return f"<p><b>{escape(self.title)}</b></p>{html_table(self.rows(), self.header, numbers=(0,))}"


@dataclass(frozen=True, repr=False)
class Smoothed:
    """p(z_1 … z_T | x) of one sequence, by the lines of descent of some independent particle filters.

    Attributes:
        z: (R, S, T, Z) paths of R filters. weights: (R, S), 1 in each filter.
        distinct: (T,) particles of each step that any path goes through, over all filters.
        log_evidence: the mean of log Ẑ, nats; below log p(x) on average. log_evidence_standard_error: Monte Carlo, from
            the spread over the filters; None for one filter.
        warning: where the paths have met in too few ancestors.
    """

    z: Array
    weights: Array
    distinct: Array
    log_evidence: float
    log_evidence_standard_error: float | None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def _means(self) -> Array:
        """(R, T, Z), of each filter."""
        return np.einsum("rs,rstz->rtz", self.weights, self.z)

    @property
    def mean(self) -> Array:
        """(T, Z), each filter counting alike."""
        return self._means.mean(0)

    @property
    def mean_standard_error(self) -> Array | None:
        """(T, Z) Monte Carlo error of `mean`, from the spread over the filters; None for one filter."""
        return None if len(self.z) < 2 else self._means.std(0, ddof=1) / np.sqrt(len(self.z))

    @property
    def sd(self) -> Array:
        """(T, Z) standard deviation of p(z_t | x)."""
        return np.sqrt(np.einsum("rs,rstz->tz", self.weights, (self.z - self.mean) ** 2) / len(self.z))

    @property
    def warning(self) -> str | None:
        if self.distinct[0] >= ENOUGH:
            return None
        bad = int((self.distinct < ENOUGH).sum())
        return (
            f"{self.z.shape[0] * self.z.shape[1]:,} paths share {self.distinct[0]} ancestors at the first step and fewer "
            f"than {ENOUGH} at {bad} of {len(self.distinct)}: the sd there is too small, more particles would be right"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **self.about,
            "particles": self.z.shape[1],
            "repeats": self.z.shape[0],
            "log_evidence": self.log_evidence,
            "log_evidence_standard_error": self.log_evidence_standard_error,
            "distinct": self.distinct.tolist(),
            "warning": self.warning,
            "mean": self.mean.tolist(),
            "sd": self.sd.tolist(),
        }

    def __repr__(self) -> str:
        repeats, particles, steps, dim = self.z.shape
        error = self.log_evidence_standard_error
        rows = [
            ("log-evidence", f"{self.log_evidence:.3f}" + ("" if error is None else f" ± {error:.3f}"), "nats"),
            ("sd of z", f"{self.sd.mean():.3f}", "mean over steps and dimensions"),
            ("ancestors", str(self.distinct[0]), "distinct, at the first step"),
        ]
        head = f"Smoothed: {steps} steps of {dim} dimensions, {repeats} filters of {particles} particles"
        return f"{head}\n{text_table(rows)}" + (f"\n  {self.warning}" if self.warning else "")
