"""A fitted pair of sequences judged on one split: the ELBO, importance weights and a particle filter, per step.

The average that is reported is the total-step one, Σ bounds / Σ steps over the split, as in Maddison et al. 2017;
beside it stands the mean over sequences of bound / steps, which is another number on ragged data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, NamedTuple

import numpy as np

from ..engines.filtering import Filtering
from ..engines.seeds import derive
from .accounting import Account, Progress, account, each, real
from .divergences import KL
from .metrics import importance_bound
from .particles import in_parts, refuse_too_many
from .tables import html_table, number, text_table

ELBO_DRAWS = 10
"""Draws per sequence for the ELBO."""

TRUSTED = 5.0
"""Effective paths of every sequence from which on the delta method says how far its importance-weighted bound is off."""


class Average(NamedTuple):
    """Of one bound, in nats per step.

    total_step: Σ bounds / Σ steps. per_sequence: the mean over sequences of bound / steps. standard_error: of
    total_step, Monte Carlo; None where nothing was repeated, or where a single path holds most of the weight.
    """

    total_step: float
    per_sequence: float
    standard_error: float | None = None

    @classmethod
    def of(cls, bounds: np.ndarray, lengths: np.ndarray, variance: np.ndarray | None = None) -> Average:
        """bounds, lengths, variance of each bound: (N,)."""
        error = None if variance is None else float(np.sqrt(variance.sum()) / lengths.sum())
        return cls(float(bounds.sum() / lengths.sum()), float((bounds / lengths).mean()), error)


@dataclass(frozen=True, repr=False)
class SequenceEvaluation:
    """Bounds on log p(x) of a split, in nats per step.

    Attributes:
        sequences: N. steps: real steps in all.
        elbo: with analytic KL where there is one; its standard error is that without one, and so not too small.
        iw: importance-weighted by `particles` whole paths.
        filtered: by a particle filter of `particles`, resampled as `filtering` says: log Ẑ, from below.
        particles: 0 where there is no latent: elbo, iw and filtered are then all the exact log p(x).
        log_evidence: log Ẑ of the whole split by the filter, nats, and its Monte Carlo standard error over `repeats`. That
            is of E log Ẑ, which lies below log p(x) by Jensen's gap: more particles say how far.
        reconstruction, kl: the two parts of the ELBO, nats per step. resampled: share of steps after which a row was.
    """

    sequences: int
    steps: int
    particles: int
    repeats: int
    elbo: Average
    iw: Average
    filtered: Average
    log_evidence: float
    log_evidence_standard_error: float | None
    reconstruction: float
    kl: float
    resampled: float
    filtering: Filtering
    unit: str = "nats per step"
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what `about` holds stands first."""
        found = asdict(self)
        parts = {name: found[name]._asdict() for name in ("elbo", "iw", "filtered", "filtering")}
        return {**found.pop("about"), **found, **parts}

    def rows(self) -> list[tuple[str, str, str]]:
        """What, how much, in which unit: the table for people."""

        def row(name: str, average: Average, what: str) -> tuple[str, str, str]:
            error = "" if average.standard_error is None else f" ± {average.standard_error:.4f}"
            other = number(average.per_sequence, 4)
            return name, number(average.total_step, 4), f"{self.unit}{error}, {what} (mean over sequences: {other})"

        if not self.particles:
            return [row("log p(x)", self.elbo, "exact")]
        return [
            row("ELBO", self.elbo, "analytic KL"),
            row("IWAE", self.iw, f"{self.particles} paths"),
            row("FIVO", self.filtered, f"{self.particles} particles, {self.filtering.resampling} resampling"),
            ("reconstruction", number(self.reconstruction, 4), f"{self.unit}, −E log p(x | z)"),
            ("KL", number(self.kl, 4), self.unit),
            ("resampled", number(100 * self.resampled, 1), "% of the steps"),
        ]

    @property
    def title(self) -> str:
        about = " · ".join(str(self.about[key]) for key in ("pair", "engine", "split") if key in self.about)
        return f"{about + ': ' if about else ''}{self.sequences:,} sequences, {self.steps:,} steps"

    @property
    def used(self) -> bool | None:
        """Whether the guide differs from the prior; None where there is no latent."""
        return self.kl > 0.1 if self.particles else None

    @property
    def verdict(self) -> str:
        """One sentence: how far the bounds are apart says how far the guide is from the posterior."""
        if not self.particles:
            return "There is no latent: the log-likelihood is exact."
        gap = self.filtered.total_step - self.elbo.total_step
        used = "is used" if self.used else "is hardly used"
        return f"The latent {used} (KL {self.kl:.2f}); FIVO lies {gap:.3f} nats per step above the ELBO."

    def __repr__(self) -> str:
        return f"Evaluation of {self.title}\n{text_table(self.rows())}\n  {self.verdict}"

    def _repr_html_(self) -> str:
        table = html_table(self.rows(), ("", "value", "unit"), numbers=(1,))
        return f"<p><b>{escape(self.title)}</b></p>{table}<p>{escape(self.verdict)}</p>"


def evaluate_sequences(
    run: Any,
    batches: Any,
    *,
    particles: int,
    seed: int,
    rows: int,
    filtering: Filtering,
    repeats: int,
    about: Mapping[str, Any],
    progress: Progress | None = None,
) -> SequenceEvaluation:
    """`inference.evaluate` for a pair made of steps. repeats: runs of the filter, whose spread is the standard error."""
    run = run.judged_by(KL())
    program, state = run.program, run.state
    batches = batches if hasattr(batches, "steps_per_epoch") else list(batches)
    largest = max((batch["mask"].shape for batch in each(batches)), key=np.prod)
    if run.pair.guide is None:
        return _exact(account(program, state, batches, seed=seed), batches, filtering, about)
    refuse_too_many(run, rows=1, steps=largest[1], particles=particles)
    draws = min(particles, ELBO_DRAWS)
    of_draws = (part for batch in each(batches) for part in in_parts(run, batch, draws))
    found = account(program, state, of_draws, seed=seed, particles=draws)
    lengths, weighted, variances, spread, effective, filtered, resampled = [], [], [], [], [], [], []
    parts = ((whole, part) for whole, batch in enumerate(each(batches), 1) for part in in_parts(run, batch, particles))
    for number_, (whole, batch) in enumerate(parts):
        keep = real(batch)
        lengths.append(batch["lengths"][keep])
        one = derive(seed, "particles", number_)
        log_weights = program.log_weights(state, batch, seed=one, particles=particles, rows=rows)[:, keep]
        bound = importance_bound(log_weights)
        weighted.append(bound.log_evidence)
        variances.append(bound.variance)
        effective.append(bound.effective)
        spread.append(log_weights.var(0, ddof=1) / draws if particles > 1 else np.full(keep.sum(), np.nan))
        runs = [
            program.filter(
                state,
                batch,
                seed=derive(seed, "filter", number_ * repeats + n),
                particles=particles,
                filtering=filtering,
            )
            for n in range(repeats)
        ]
        filtered.append(np.stack([one.log_evidence[keep] for one in runs]))
        resampled.append(sum(one.resampled[:, keep].sum() for one in runs) / repeats)
        if progress:
            progress(whole, getattr(batches, "steps_per_epoch", 0) or len(batches))
    steps = np.concatenate(lengths).astype(np.float64)
    by_filter = np.concatenate(filtered, 1)
    variance = by_filter.var(0, ddof=1) / repeats if repeats > 1 else None
    elbo = -(found.reconstruction + found.total_kl)
    trusted = particles > 1 and np.concatenate(effective).min() >= TRUSTED
    total = Average.of(by_filter.mean(0), steps, variance)
    return SequenceEvaluation(
        sequences=len(steps),
        steps=int(steps.sum()),
        particles=particles,
        repeats=repeats,
        elbo=Average.of(elbo, steps, np.concatenate(spread) if particles > 1 else None),
        iw=Average.of(np.concatenate(weighted), steps, np.concatenate(variances) if trusted else None),
        filtered=total,
        log_evidence=float(by_filter.mean(0).sum()),
        log_evidence_standard_error=None if variance is None else float(np.sqrt(variance.sum())),
        reconstruction=float(found.reconstruction.sum() / steps.sum()),
        kl=float(found.total_kl.sum() / steps.sum()),
        resampled=float(sum(resampled) / steps.sum()),
        filtering=filtering,
        about=dict(about),
    )


def _exact(found: Account, batches: Any, filtering: Filtering, about: Mapping[str, Any]) -> SequenceEvaluation:
    """Of a pair without a latent."""
    lengths = np.concatenate([batch["lengths"][real(batch)] for batch in each(batches)]).astype(np.float64)
    evidence = -found.reconstruction
    average = Average.of(evidence, lengths)
    return SequenceEvaluation(
        sequences=len(lengths),
        steps=int(lengths.sum()),
        particles=0,
        repeats=0,
        elbo=average,
        iw=average,
        filtered=average,
        log_evidence=float(evidence.sum()),
        log_evidence_standard_error=None,
        reconstruction=-average.total_step,
        kl=0.0,
        resampled=0.0,
        filtering=filtering,
        about=dict(about),
    )
