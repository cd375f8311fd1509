"""Minibatches of sentences, in a few fixed shapes."""

from __future__ import annotations

import numpy as np

from .bucketed import Batch, BucketedBatches, uniform
from .errors import BadData
from .sentences import Sentences
from .tokenisers import EOS, UNK


class Batches(BucketedBatches):
    """The minibatches of sentences, by length. Beside lengths (predicted tokens, words + 1), weight and index:

    - tokens (B, T + 1) int32: bos, words, eos, pad …
    - inputs (B, T) int32: `tokens[:, :-1]`, each word replaced by unk with probability 1 - `word_keep`
    - targets (B, T) int32: `tokens[:, 1:]`
    """

    def __init__(
        self,
        sentences: Sentences,
        *,
        batch_size: int,
        seed: int = 0,
        buckets: int = 8,
        shuffle: bool = True,
        word_keep: float = 1.0,
        edges: tuple[int, ...] | None = None,
    ) -> None:
        """As `BucketedBatches`; BadData also if `word_keep` is no probability."""
        super().__init__(sentences, batch_size=batch_size, seed=seed, buckets=buckets, shuffle=shuffle, edges=edges)
        if not 0.0 <= word_keep <= 1.0:
            raise BadData(f"word_keep = {word_keep} is no probability: between 0 and 1 would be right")
        self.sentences, self.word_keep = sentences, word_keep

    def _arrays(self, index: np.ndarray, width: int, step: int) -> Batch:
        tokens = self.sentences.rows(index, width)
        return {
            "tokens": tokens,
            "inputs": self._with_unknowns(tokens[:, :-1], step),
            "targets": np.ascontiguousarray(tokens[:, 1:]),
        }

    def _with_unknowns(self, inputs: np.ndarray, step: int) -> np.ndarray:
        if self.word_keep == 1.0:
            return np.ascontiguousarray(inputs)
        draws = uniform(self.seed, step, inputs.shape)
        word = (inputs > EOS) & (draws >= self.word_keep)
        return np.where(word, np.int32(UNK), inputs)

    def __repr__(self) -> str:
        return self._described("sentences")
