"""A plain attention layer as denoising attention (Fehr & Henderson, COLM 2024): empirical prior, identity initialisation.

Over the vectors x_i that the layer attends to, of width p, with H heads of width d and r = √d. The projections W_Q, W_K,
W_V stay as they are; new are those that make of each x_i a component, beside which the prior stands as one more:

    μ = W_μ x + b_μ,    log σ² = W_σ x + b_σ,    log α = w₂ · x² + w₁ · x + b_α

At w₂ = 1 / (2 r) log α undoes the norms that denoising attention subtracts, and plain attention is left, but for the
prior's share. The same arrays serve both engines.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..models.errors import BadInput
from .arrays import namespace

TINY = float(np.finfo(np.float32).tiny)
"""Added to a variance of which the logarithm is taken."""


class EmpiricalPrior(NamedTuple):
    """Means and variances (p,) of the vectors, and mean and standard deviation of |x|² / (2 r), which is their log α."""

    loc: Any
    variance: Any
    log_alpha: Any
    log_alpha_scale: Any


class Posterior(NamedTuple):
    """W_μ (p, p), b_μ (p,), W_σ (p, p), b_σ (p,), w₂ (p,), w₁ (p,) and b_α ()."""

    loc: Any
    loc_bias: Any
    log_variance: Any
    log_variance_bias: Any
    square: Any
    linear: Any
    bias: Any


class Moments:
    """Of a stream of vectors of width p, for layers with heads of this width: count, means, sums of squared differences.

    In float64, by the pairwise update of Chan et al. (1979) of Welford's moments; variances over N − 1.
    """

    def __init__(self, width: int) -> None:
        self.width, self.count = width, 0
        self.mean, self.squares = np.zeros(()), np.zeros(())

    def add(self, x: np.ndarray) -> None:
        """Vectors x (n, p) more."""
        if not len(x):
            return
        x = x.astype(np.float64)
        rows = np.concatenate((x, (x**2).sum(-1, keepdims=True) / (2 * self.width**0.5)), -1)
        new, total = rows.mean(0), self.count + len(rows)
        moved = new - self.mean
        self.squares = self.squares + ((rows - new) ** 2).sum(0) + moved**2 * (self.count * len(rows) / total)
        self.mean = self.mean + moved * (len(rows) / total)
        self.count = total

    def prior(self) -> EmpiricalPrior:
        """BadInput if there is no variance, or one that is not finite."""
        if self.count < 2:
            raise BadInput(f"an empirical prior needs two vectors or more to have a variance, not {self.count}")
        if not np.isfinite(self.squares).all():
            raise BadInput(f"an empirical prior needs finite vectors, which these {self.count} are not")
        variance = self.squares / (self.count - 1)
        return EmpiricalPrior(self.mean[:-1], variance[:-1], self.mean[-1], variance[-1] ** 0.5)


def empirical_prior(batches: Iterable[tuple[np.ndarray, np.ndarray]], width: int) -> EmpiricalPrior:
    """Of vectors x (…, n, p) with masks (…, n), False where there is none; width: of a head.

    One pass that holds one batch at a time.
    """
    moments = Moments(width)
    for x, mask in batches:
        moments.add(np.asarray(x)[np.asarray(mask)])
    return moments.prior()


def identity(
    prior: EmpiricalPrior, width: int, tau_alpha: float = 10.0, tau_sigma: float = 0.0, tau_mu: float = 1.0
) -> Posterior:
    """The projections with which a layer with heads of this width does what it did, or less of it.

    tau_alpha: by how many standard deviations of log α a vector outweighs the prior; any number, the more the nearer to
    the plain layer. tau_sigma: the standard deviations as a share of the prior's; 0 is the plain layer's. tau_mu: 1 is
    the vector itself, 0 the prior's mean.
    """
    if not (0 <= tau_sigma <= 1 and 0 <= tau_mu <= 1):
        raise BadInput(f"tau_sigma and tau_mu are shares, from 0 to 1, not {tau_sigma} and {tau_mu}")
    p = len(prior.loc)
    return Posterior(
        loc=tau_mu * np.eye(p),
        loc_bias=(1 - tau_mu) * prior.loc,
        log_variance=np.zeros((p, p)),
        log_variance_bias=np.log(tau_sigma**2 * prior.variance + TINY),
        square=np.full(p, 1 / (2 * width**0.5)),
        linear=np.zeros(p),
        bias=np.asarray(tau_alpha * prior.log_alpha_scale),
    )


def components(x: Any, posterior: Posterior, prior: EmpiricalPrior) -> tuple[Any, Any, Any]:
    """log α (…, n + 1), μ and σ² (…, n + 1, p) of vectors x (…, n, p), the prior's first; all arrays of one library."""
    xp = namespace(x)
    loc = x @ posterior.loc.T + posterior.loc_bias
    variance = xp.exp(x @ posterior.log_variance.T + posterior.log_variance_bias)
    log_alpha = x**2 @ posterior.square + x @ posterior.linear + posterior.bias
    first = 0 * x[..., :1, :]
    return (
        xp.concatenate([first[..., 0] + prior.log_alpha, log_alpha], -1),
        xp.concatenate([first + prior.loc, loc], -2),
        xp.concatenate([first + prior.variance, variance], -2),
    )
