"""Next-word probabilities: from logits to the set a strategy draws from. N rows, V words, float64."""

from __future__ import annotations

import numpy as np

from .strategies import Sample


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis; −inf stays −inf."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def word_probabilities(log_probs: np.ndarray, strategy: Sample) -> np.ndarray:
    """What `strategy` samples from: log-probabilities (N, V) → probabilities (N, V), zero outside its set."""
    scaled = log_probs / strategy.temperature
    if strategy.top_k is not None and strategy.top_k < scaled.shape[-1]:
        scaled = np.where(_ranks(scaled) < strategy.top_k, scaled, -np.inf)
    probabilities = np.exp(log_softmax(scaled))
    if strategy.top_p is not None and strategy.top_p < 1.0:
        probabilities = _nucleus(probabilities, strategy.top_p)
    return probabilities


def _ranks(values: np.ndarray) -> np.ndarray:
    """Position of every entry when its row is sorted downwards, (N, V); equal ones in the order of their
    ids."""
    ranks = np.empty(values.shape, np.int64)
    order = np.argsort(-values, axis=-1, kind="stable")
    np.put_along_axis(ranks, order, np.arange(values.shape[-1])[None], axis=-1)
    return ranks


def _nucleus(probabilities: np.ndarray, mass: float) -> np.ndarray:
    """The most probable words, as few as hold `mass`, renormalised."""
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, -1)
    before = np.cumsum(ordered, -1) - ordered
    kept = np.zeros_like(probabilities)
    np.put_along_axis(kept, order, np.where(before < mass, ordered, 0.0), -1)
    return kept / kept.sum(-1, keepdims=True)


def inverse_cdf(probabilities: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """The word whose stretch of the unit interval holds each uniform: (N, V), (N,) in [0, 1) → (N,)."""
    cumulative = np.cumsum(probabilities, -1)
    # Scaling by the last sum keeps a uniform close to 1 from falling past it into a word of probability zero.
    return (cumulative <= (uniforms * cumulative[:, -1])[:, None]).sum(-1)
