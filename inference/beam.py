"""Beam search: at every step the K best prefixes of each sentence, ended ones among them."""

from __future__ import annotations

import numpy as np

from ..engines.protocol import Program, State
from .probabilities import log_softmax
from .strategies import Beam


def beam_search(
    program: Program,
    state: State,
    latents: np.ndarray | None,
    sentences: int,
    strategy: Beam,
    forbidden: list[int],
    max_words: int,
    bos: int,
    eos: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The best sentence found for each of N latents: words (N, T) with their eos, and log p(x | z) (N,).

    An ended prefix stays in the beam and competes with its score. Without a length penalty scores only fall,
    so a sentence is settled once its best prefix has ended; with a width that holds every prefix the search
    is exact.
    """
    width = strategy.width
    rows = sentences * width
    repeated = None if latents is None else np.repeat(latents, width, axis=0)
    cache = program.decode_start(state, repeated, rows, max_words + 1)
    words = np.empty((sentences, width, 0), np.int64)
    scores = np.full((sentences, width), -np.inf)
    scores[:, 0] = 0.0  # at first all K prefixes are the same empty one: only one of them counts
    ended, lengths = np.zeros((sentences, width), bool), np.zeros((sentences, width), np.int64)
    tokens = np.full((sentences, width), bos)
    for step in range(max_words + 1):
        cache, logits = program.decode_step(state, cache, tokens.reshape(rows))
        totals = scores[..., None] + _continuations(logits, ended, forbidden, eos, last=step == max_words)
        longer = lengths + ~ended
        ranked = totals / _penalty(longer, strategy.length_penalty)[..., None]
        parent, tokens = np.divmod(best(ranked.reshape(sentences, -1), width), logits.shape[-1])
        scores = totals[np.arange(sentences)[:, None], parent, tokens]
        lengths, ended = (np.take_along_axis(array, parent, 1) for array in (longer, ended))
        words = np.concatenate([np.take_along_axis(words, parent[..., None], 1), tokens[..., None]], -1)
        ended = ended | (tokens == eos)
        if _settled(scores, ended, strategy.length_penalty):
            break
        cache = program.decode_reorder(cache, (np.arange(sentences)[:, None] * width + parent).reshape(rows))
    return words[:, 0], scores[:, 0]


def _continuations(logits, ended, forbidden, eos, *, last: bool):
    """log p of every next word, (N, K, V) float64: none but eos after an end, where it is free, and at the
    last step."""
    log_probs = log_softmax(logits).reshape(*ended.shape, -1)
    ends = np.where(ended, 0.0, log_probs[..., eos])
    log_probs[..., forbidden] = -np.inf
    log_probs[np.ones_like(ended) if last else ended] = -np.inf
    log_probs[..., eos] = ends
    return log_probs


def _penalty(lengths: np.ndarray, power: float) -> np.ndarray:
    return ((5.0 + lengths) / 6.0) ** power


def _settled(scores: np.ndarray, ended: np.ndarray, power: float) -> bool:
    # A prefix of probability zero fills a beam wider than the choices: nothing can come of it.
    over = ended | np.isneginf(scores)
    return bool(over.all() if power else over[:, 0].all())


def best(values: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` largest entries of each row are, largest first, equal ones in order: (N, M) → (N,
    count)."""
    values, rows = values.copy(), np.arange(len(values))
    chosen = np.empty((len(values), count), np.int64)
    for place in range(count):
        chosen[:, place] = values.argmax(-1)
        values[rows, chosen[:, place]] = -np.inf
    return chosen
