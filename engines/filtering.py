"""What particle filters are told and what they find, on either engine.

Letters: S particles, T steps, B rows, Z dimensions of a latent.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from ..guides.pair import Pair, Steps
from ..models.errors import BadInput
from .draws import standard_normal, uniform
from .terms import Terms

Array = Any


class Filtering(NamedTuple):
    """How a filter resamples.

    resampling: how ancestors are drawn; "none" never draws any. threshold: a row is resampled after a step that leaves
    its effective sample size at or below this share of S; 1 is after every step. gradient: of what resampling does to
    the evidence. "biased" lets it pass through the ancestors that were drawn and leaves their score out, "reinforce"
    adds the score, "none" stops at every resampling.
    """

    resampling: Literal["multinomial", "systematic", "none"] = "multinomial"
    threshold: float = 0.5
    gradient: Literal["biased", "reinforce", "none"] = "biased"


def steps_of(pair: Pair) -> Steps:
    """
    Raises:
        BadInput: the pair is not made of steps.
    """
    if pair.steps is None:
        raise BadInput(
            f"particles are filtered step by step, and the pair {pair.name!r} has no steps: "
            f"use a pair of sequences, vrnn say, or another divergence"
        )
    return pair.steps


def common(seed: int, shape: tuple[int, int, int], dim: int) -> dict[str, np.ndarray]:
    """The noise of a filter of (T, S, B) that both engines share when judging."""
    return {"ancestors": uniform(seed, "ancestors", shape), "latents": standard_normal(seed, "z", (*shape, dim))}


class Filtered(NamedTuple):
    """What a filter finds, one row a sequence, in nats.

    log_evidence: (B,) log Ẑ, E[Ẑ] = p(x). score: (B,) zero in value; its gradient is the score of the ancestors.
    log_likelihood, log_prior, log_posterior: (S, B), sums over real steps of the particles' terms. log_weight: (S, B) of
    the last particles. latents: (T, S, B, Z) as they were drawn; ancestors: (T, S, B), whose index became each particle
    after the step. data: (T, S, B, D), what was observed, and draws where nothing was. resampled: (T, B).
    """

    log_evidence: Array
    score: Array
    log_likelihood: Array
    log_prior: Array
    log_posterior: Array
    log_weight: Array
    latents: Array
    ancestors: Array
    data: Array
    resampled: Array


def of_filter(found: Filtered, weight: Array) -> Terms:
    """`Terms` of a filter's particles and its evidence, whose gradient has the score of the ancestors in it."""
    return Terms(
        {"x": found.log_likelihood},
        {"z": found.log_prior},
        {"z": found.log_posterior},
        {},
        weight,
        evidence=found.log_evidence + found.score,
    )
