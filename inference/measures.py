"""Measures as NumPy arrays: what a decoder attends to, drawn, pruned, mixed, and counted.

A measure is (K, W): first the logarithm of each component's weight, or 0 of a plain vector, `NEVER` where there is none; then
its location, and its variances if it is the mean of a random measure. Several are (N, K, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..engines.seeds import derive
from ..models.errors import BadInput
from ..models.measures import NEVER, MeasurePriorSpec
from .accounting import each, real

KEPT_FROM = 0.1
"""The pseudo-count above which a vector counts as retained (Henderson & Fehr 2023)."""


def prior_of(run: Any) -> MeasurePriorSpec | None:
    """The prior of a run whose decoder attends to a measure."""
    prior = getattr(run.recipe.model, "prior", None)
    return prior if isinstance(prior, MeasurePriorSpec) else None


def prior_draws(run: Any, count: int, seed: int, words: int | None = None) -> np.ndarray:
    """(N, K, p + 1) from p(n) p(F | n). words: n, in place of a draw from p(n)."""
    if prior_of(run).by_length:  # pyright: ignore[reportOptionalMemberAccess]
        log_shares = run.weights["length.log_shares"].astype(np.float64)
        whole = isinstance(words, Integral) and not isinstance(words, bool)
        if words is not None and not (whole and 1 <= words < len(log_shares)):
            raise BadInput(
                f"a sentence of {words!r} words: a whole number from 1 to {len(log_shares) - 1} (model.longest) would be right"
            )
        shares = np.exp(log_shares - log_shares.max())
        rng = np.random.default_rng([seed, count])
        lengths = rng.choice(len(shares), count, p=shares / shares.sum()) if words is None else np.full(count, words)
    else:
        if words is not None:
            raise BadInput("the prior of this run does not hang on the number of words: leave it out")
        lengths = np.ones(count, int)
    return run.program.prior_draws(run.state, seed=derive(seed, "prior"), rows=count, lengths=lengths)


def stacked(measures: Sequence[np.ndarray]) -> np.ndarray:
    """(N, K, W) of measures (k, W), filled up to the largest."""
    largest = max(map(len, measures))
    return np.stack([np.concatenate((one, _none(largest - len(one), one.shape[-1]))) for one in measures])


def _none(count: int, width: int) -> np.ndarray:
    found = np.zeros((count, width))
    found[:, :1] = NEVER
    return found


def pruned(measures: np.ndarray, keep: float) -> np.ndarray:
    """The heaviest components of each, as many as hold the share `keep` of its weight: (N, k, W), k the most of them.

    A decoder then attends to k components in place of K.
    """
    if not (isinstance(keep, Real) and 0 < keep <= 1):
        raise BadInput(f"keep = {keep!r} is the share of the weight to keep: above 0 and up to 1 would be right")
    order = np.argsort(-measures[..., 0], axis=-1, kind="stable")
    sorted_ = np.take_along_axis(measures, order[..., None], axis=-2)
    weight = np.exp(sorted_[..., 0] - sorted_[..., :1, 0])
    before = (weight.cumsum(-1) - weight) / weight.sum(-1, keepdims=True)
    kept = (before < keep) & (sorted_[..., 0] > NEVER)
    sorted_[~kept] = _none(1, measures.shape[-1])
    return sorted_[:, : max(1, int(kept.sum(-1).max()))]


def line(start: np.ndarray, stop: np.ndarray, weights: np.ndarray, weighted: bool) -> np.ndarray:
    """The measures (1 − t) F_1 + t F_2 at each t of `weights`, (N, K, W): all components of both, reweighted.

    Each side counts as a probability measure, whatever its total weight. Of plain vectors, without weights, the straight
    line place by place, the vectors of the shorter side continued by zeros.
    """
    start, stop = (side[side[:, 0] > NEVER] for side in (start, stop))
    if not weighted:
        start, stop = stacked([start, stop])
        start[:, 0] = stop[:, 0] = 0
        t = weights[:, None, None]
        return (1 - t) * start + t * stop
    sides = []
    for side, shares in ((start, 1 - weights), (stop, weights)):
        log_weight = side[:, 0] - np.logaddexp.reduce(side[:, 0])
        found = np.repeat(side[None], len(weights), 0)
        with np.errstate(divide="ignore"):
            found[..., 0] = np.maximum(log_weight + np.log(shares)[:, None], NEVER)
        found[shares == 0] = _none(1, side.shape[-1])
        sides.append(found)
    return np.concatenate(sides, 1)


@dataclass(frozen=True)
class Retained:
    """How many vectors a bottleneck keeps, averaged over sentences.

    vectors: the share of the words' vectors with a pseudo-count above 0.1. with_prior: the same with the prior component
    counted, which is always kept. Both None under an empirical prior, where all pseudo-counts share a factor that changes
    nothing. pseudo_count: the total, the prior's included. prior_share: of it, the prior component's. below: the same of the
    bottlenecks in the encoder's self-attention, from the lowest on.
    """

    vectors: float | None
    with_prior: float | None
    pseudo_count: float
    prior_share: float
    below: tuple[Retained, ...] = ()


def retained(run: Any, split: str = "test", batches: Any = None) -> Retained:
    """Of a split of a run with a Dirichlet process for its posterior."""
    found: dict[str, list[np.ndarray]] = {}
    for batch in each(run.batches(split) if batches is None else batches):
        for site, measures in run.program.mean_measures(run.state, batch).items():
            found.setdefault(site, []).append(_shares(measures[real(batch)][..., 0]))
    counted = not run.recipe.model.prior.empirical
    kept = {site: _retained(np.concatenate(shares, 1).mean(1), counted) for site, shares in found.items()}
    return replace(kept["F"], below=tuple(kept[f"F_{layer}"] for layer in range(1, len(kept))))


def _shares(log_alpha: np.ndarray) -> np.ndarray:
    """(4, N) of (N, M): the first four fields of `Retained`."""
    alpha, there = np.exp(log_alpha), log_alpha > NEVER
    kept = (alpha > KEPT_FROM) & there
    kept[:, 0] = True
    total = alpha.sum(-1)
    shares = kept[:, 1:].sum(-1) / there[:, 1:].sum(-1), kept.sum(-1) / there.sum(-1)
    return np.stack((*shares, total, alpha[:, 0] / total))


def _retained(means: np.ndarray, counted: bool) -> Retained:
    vectors, with_prior, *others = means.tolist()
    return Retained(*(vectors, with_prior) if counted else (None, None), *others)
