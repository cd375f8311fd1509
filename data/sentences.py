"""One split of a tokenised corpus, read from memory-mapped files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .tokenisers import BOS, EOS, PAD, Tokeniser


@dataclass(frozen=True, eq=False, repr=False)
class Sentences(Sequence):
    """N sentences of token ids, without bos and eos. What it holds in memory does not grow with N when
    mapped.

    ids: (all tokens,) uint16 or uint32, sentence after sentence; offsets: (N + 1,) int64, sentence i is
    ids[offsets[i]:offsets[i + 1]]; lengths: (N,) int32, predicted tokens of each (words + 1, for eos);
    by_length: (N,) the positions 0 … N - 1 sorted by length, ties in order; histogram: (L + 1,) int64,
    how many sentences have each length.
    """

    ids: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    by_length: np.ndarray
    histogram: np.ndarray
    tokeniser: Tokeniser

    @classmethod
    def of(cls, sentences: Iterable[Sequence[int]], tokeniser: Tokeniser) -> Sentences:
        """A split held in memory, from lists of ids."""
        rows = [np.asarray(row, np.uint32) for row in sentences]
        lengths = np.array([len(row) + 1 for row in rows], np.int32)
        return cls(
            ids=np.concatenate([*rows, np.zeros(0, np.uint32)]),
            offsets=np.concatenate([[0], np.cumsum(lengths - 1, dtype=np.int64)]),
            lengths=lengths,
            by_length=np.argsort(lengths, kind="stable").astype(np.uint32),
            histogram=np.bincount(lengths),
            tokeniser=tokeniser,
        )

    @classmethod
    def open(cls, folder: Path, tokeniser: Tokeniser) -> Sentences:
        """A split that `TokenWriter` wrote. ValueError or OSError if a file is missing or of another size."""
        about = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        n = about["sentences"]
        return cls(
            ids=_mapped(folder / "ids", about["dtype"], about["words"]),
            offsets=_mapped(folder / "offsets", "int64", n + 1),
            lengths=_mapped(folder / "lengths", "int32", n),
            by_length=_mapped(folder / "by_length", "uint32", n),
            histogram=np.array(about["histogram"], np.int64),
            tokeniser=tokeniser,
        )

    @property
    def tokens(self) -> int:
        """Predicted tokens, the eos of every sentence included."""
        return len(self.ids) + len(self)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:
        """Ids of sentence i, int32."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"sentence {i} of {len(self)}")
        i = int(i) % len(self)
        return self.ids[self.offsets[i] : self.offsets[i + 1]].astype(np.int32)

    def text(self, i: int) -> str:
        """Sentence i as the models see it: words outside the vocabulary are `<unk>`."""
        return self.tokeniser.decode(self[i])

    def rows(self, index: np.ndarray, width: int) -> np.ndarray:
        """(B, `width` + 1) int32 for sentences `index` (B,) of at most `width`: bos, words, eos, pad …"""
        column = np.arange(width + 1)
        lengths = self.lengths[index][:, None]
        # bos stands in column 0, so that word t of a sentence is in column t + 1.
        place = np.minimum(self.offsets[index][:, None] + (column - 1), len(self.ids) - 1)
        words = self.ids[place].astype(np.int32) if len(self.ids) else PAD  # all sentences are empty
        rows = np.where(column < lengths, words, PAD)
        rows[:, 0] = BOS
        rows[column == lengths] = EOS
        return rows

    def __repr__(self) -> str:
        return f"Sentences({len(self):,} sentences, {self.tokens:,} tokens with eos)"


def _mapped(path: Path, dtype: str, count: int) -> np.ndarray:
    if path.stat().st_size != count * np.dtype(dtype).itemsize:
        raise ValueError(f"{path} is not {count} numbers of {dtype}")
    # A plain view of the map: the subclass costs microseconds at every look-up.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))
