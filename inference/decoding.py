"""From latents to sentences, one cached decoder step at a time, many sentences at once.

Every sentence ends: one that has reached `max_words` words gets its end mark there, scored like any other. A
score is therefore the log-probability log p(x | z) of a whole sentence under the model itself, before
temperature, restrictions and penalties, in nats: scores of different strategies compare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..data.tokenisers import BOS, EOS, PAD, UNK
from ..engines.protocol import Program, State
from ..models.errors import BadInput
from .beam import beam_search
from .probabilities import inverse_cdf, log_softmax, word_probabilities
from .strategies import Beam, Greedy, Sample

Choose = Callable[[np.ndarray, int], np.ndarray]


class Decoded(NamedTuple):
    """Sentences as token ids without bos and eos, and their log p(x | z) in nats, (N,)."""

    sentences: list[list[int]]
    scores: np.ndarray


def decode(
    program: Program,
    state: State,
    latents: np.ndarray | None,
    strategy: Greedy | Sample | Beam,
    *,
    max_words: int,
    seed: int = 0,
    rows_per_call: int = 128,
    count: int | None = None,
) -> list[list[int]]:
    """The sentences of `decode_scored`, without their scores."""
    return decode_scored(
        program,
        state,
        latents,
        strategy,
        max_words=max_words,
        seed=seed,
        rows_per_call=rows_per_call,
        count=count,
    ).sentences


def decode_scored(
    program: Program,
    state: State,
    latents: np.ndarray | None,
    strategy: Greedy | Sample | Beam,
    *,
    max_words: int,
    seed: int = 0,
    rows_per_call: int = 128,
    count: int | None = None,
) -> Decoded:
    """One sentence for each row of `latents` (N, Z), or of measures (N, K, …); without latents, `count` sentences.

    Sentence n depends on the seed, on n and on its latent alone, not on how many are decoded together.

    Args:
        max_words: no sentence gets more words than this.
        rows_per_call: the decoder runs on at most this many rows at once (a beam takes `width` of them).
    """
    if max_words < 1:
        raise BadInput(f"max_words is {max_words}: a sentence needs room for one word at least")
    total = _sentences(latents, count)
    width = strategy.width if isinstance(strategy, Beam) else 1
    size = min(max(rows_per_call // width, 1), max(total, 1))
    parts = []
    for start in range(0, total, size):
        # Every call has the same number of rows, so that an engine that compiles does so once.
        index = np.minimum(np.arange(start, start + size), total - 1)
        rows = None if latents is None else np.asarray(latents)[index]
        sentences, scores = _decode_rows(program, state, rows, index, strategy, max_words, seed)
        parts.append(Decoded(sentences[: total - start], scores[: total - start]))
    scores = np.concatenate([part.scores for part in parts]) if parts else np.zeros(0)
    return Decoded([words for part in parts for words in part.sentences], scores)


def _sentences(latents: np.ndarray | None, count: int | None) -> int:
    if latents is None:
        if count is None:
            raise BadInput("decoding without latents needs count, the number of sentences")
        return count
    if np.ndim(latents) not in (2, 3):
        raise BadInput(f"latents have shape {np.shape(latents)}: decoding takes (sentences, Z), or measures of 3 axes")
    return len(latents)


def _decode_rows(program, state, latents, index, strategy, max_words, seed) -> Decoded:
    forbidden = _forbidden(strategy)
    if isinstance(strategy, Beam):
        words, scores = beam_search(program, state, latents, len(index), strategy, forbidden, max_words, BOS, EOS)
    else:
        choose = _chooser(strategy, index, seed, max_words)
        words, scores = _one_path(program, state, latents, len(index), choose, forbidden, max_words)
    return Decoded([_until_end(row) for row in words], scores)


def _one_path(program, state, latents, rows, choose: Choose, forbidden, max_words):
    """Follows one path per row: words (rows, max_words + 1) with their eos, and log p (rows,)."""
    cache = program.decode_start(state, latents, rows, max_words + 1)
    tokens, ended = np.full(rows, BOS), np.zeros(rows, bool)
    words, scores = np.full((rows, max_words + 1), EOS), np.zeros(rows)
    for step in range(max_words + 1):
        cache, logits = program.decode_step(state, cache, tokens)
        log_probs = log_softmax(logits)
        if step < max_words:
            allowed = log_probs.copy()
            allowed[:, forbidden] = -np.inf
            tokens = np.where(ended, EOS, choose(allowed, step))
        else:
            tokens = np.full(rows, EOS)
        scores += np.where(ended, 0.0, log_probs[np.arange(rows), tokens])
        words[:, step] = tokens
        ended |= tokens == EOS
        if ended.all():
            break
    return words, scores


def _chooser(strategy: Greedy | Sample, index: np.ndarray, seed: int, max_words: int) -> Choose:
    if isinstance(strategy, Greedy):
        return lambda log_probs, step: log_probs.argmax(-1)
    uniforms = np.stack([np.random.default_rng([seed, n]).random(max_words) for n in index])
    return lambda log_probs, step: inverse_cdf(word_probabilities(log_probs, strategy), uniforms[:, step])


def _forbidden(strategy: Greedy | Sample | Beam) -> list[int]:
    return [PAD, BOS] if strategy.allow_unknown else [PAD, BOS, UNK]


def _until_end(tokens: np.ndarray) -> list[int]:
    ends = np.flatnonzero(tokens == EOS)
    return tokens[: ends[0] if len(ends) else len(tokens)].tolist()
