"""What a text VAE is judged by, as plain functions of NumPy arrays in float64 and nats.

N sentences, M encodings, D dimensions of the latent, S particles. A sentence of T predicted tokens counts its
words and its end mark.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5.2
CROSS_LIMIT = 1 << 21  # entries of a cross-density block: 16 MiB


def log_mean_exp(log_values: np.ndarray, axis: int = 0) -> np.ndarray:
    """log of the mean of exp, without overflow."""
    log_values = np.asarray(log_values, np.float64)
    return logsumexp(log_values, axis=axis) - np.log(log_values.shape[axis])


class ImportanceBound(NamedTuple):
    """Importance-weighted bounds per datum (Burda et al. 2016, equation 8).

    Attributes:
        log_evidence: (B,) log 1/S Σ_s w_s, in expectation below log p(x) and rising with S.
        variance: (B,) Monte Carlo variance of it, by the delta method; nan for S = 1.
        effective: (B,) effective particles (Σ w)² / Σ w².
    """

    log_evidence: np.ndarray
    variance: np.ndarray
    effective: np.ndarray


def importance_bound(log_weights: np.ndarray) -> ImportanceBound:
    """The bound from log p(x, z_s) − log q(z_s | x), (S, B)."""
    log_weights = np.asarray(log_weights, np.float64)
    particles = len(log_weights)
    log_evidence = log_mean_exp(log_weights)
    relative = np.exp(log_weights - log_evidence)
    variance = relative.var(0, ddof=1) / particles if particles > 1 else np.full(log_evidence.shape, np.nan)
    return ImportanceBound(log_evidence, variance, relative.sum(0) ** 2 / (relative**2).sum(0))


def perplexity(nll: float, sentences: int, tokens: int) -> float:
    """exp(N · NLL / W) from an NLL in nats per sentence; W tokens in N sentences, end marks counted."""
    with np.errstate(over="ignore"):
        return float(np.exp(sentences * nll / tokens))


def active_dimensions(means: np.ndarray, threshold: float = ACTIVE_VARIANCE) -> np.ndarray:
    """(D,) whether the unbiased variance over the data of E[z_d | x], (N, D), is above the threshold."""
    means = np.asarray(means, np.float64)
    if len(means) < 2:
        return np.zeros(means.shape[1:], bool)
    return means.var(0, ddof=1) > threshold


def normal_log_density(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """log N(z; loc, diag scale²), (…, D) → (…)."""
    standardised = (z - loc) / scale
    return -0.5 * (standardised**2 + np.log(2 * np.pi)).sum(-1) - np.log(scale).sum(-1)


def aggregate_log_density(
    z: np.ndarray,
    loc: np.ndarray,
    scale: np.ndarray,
    *,
    own: np.ndarray | None = None,
    limit: int = CROSS_LIMIT,
) -> np.ndarray:
    """log 1/M Σ_m N(z_n; loc_m, diag scale_m²), the aggregate posterior at N points: (N,).

    The N × M log-densities are a quadratic form in z, so one matrix product of inner width 2D gives a block
    of them. Expanding the square costs digits where scales are tiny beside the distances; when z_n was drawn
    from component n, `own` puts that largest term right.

    Args:
        z: (N, D). loc, scale: (M, D). limit: entries of the largest block held at once.
        own: (N,) log N(z_n; loc_n, diag scale_n²), when N = M.
    """
    z, loc, scale = (np.asarray(array, np.float64) for array in (z, loc, scale))
    centre = loc.mean(0)
    z, loc = z - centre, loc - centre
    precision = scale**-2.0
    quadratic = np.concatenate([-0.5 * precision, loc * precision], -1).T
    constant = -0.5 * (loc**2 * precision + np.log(2 * np.pi)).sum(-1) - np.log(scale).sum(-1)
    block = max(1, limit // len(loc))
    result = np.empty(len(z))
    for start in range(0, len(z), block):
        rows = z[start : start + block]
        cross = np.concatenate([rows**2, rows], -1) @ quadratic + constant
        if own is not None:
            here = np.arange(start, start + len(rows))
            cross[here - start, here] = own[here]
        result[start : start + len(rows)] = _log_mean_exp_in_place(cross)
    return result


def _log_mean_exp_in_place(values: np.ndarray) -> np.ndarray:
    """`log_mean_exp` over the last axis of finite values, without a second array of their size."""
    top = values.max(-1, keepdims=True)
    np.subtract(values, top, out=values)
    return np.log(np.exp(values, out=values).mean(-1)) + top[:, 0]


class Information(NamedTuple):
    """How much the latent says about the sentence, in nats; `ceiling` is log M, the most an M-sample
    estimate can be."""

    mutual_information: float
    ceiling: float


def mutual_information(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> Information:
    """I_q(x; z) = E_x KL(q(z | x) ‖ p(z)) − KL(q(z) ‖ p(z)) for diagonal normals, from one z per sentence,
    all (N, D).

    mean_n [ log q(z_n | x_n) − log 1/M Σ_m q(z_n | x_m) ] with M = N, the whole set (Hoffman & Johnson 2016;
    He et al. 2019). He et al. put the exact mean of the first term, minus the entropy, in place of its value
    at z_n; the expectation is the same, but then the noise of the two terms no longer cancels and an estimate
    can pass log M, as published ones do. Here it never does. Near collapse it can be slightly negative.
    """
    z, loc, scale = (np.asarray(array, np.float64) for array in (z, loc, scale))
    own = normal_log_density(z, loc, scale)
    aggregate = aggregate_log_density(z, loc, scale, own=own)
    return Information(float((own - aggregate).mean()), float(np.log(len(loc))))
