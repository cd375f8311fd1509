"""Minibatches of a few fixed shapes, for any step, in an order that the seed and the step alone decide."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .buckets import bucket_edges
from .errors import BadData
from .permutation import Permutation
from .prefetch import prefetched
from .sentences import Sentences
from .tokenisers import EOS, UNK

Batch = dict[str, np.ndarray]

# Streams of the seed: what shuffles sentences and what shuffles batches must not agree.
_ROWS, _SLOTS = 0, 1
_KEY = (1 << 64) - 1


@dataclass(frozen=True)
class Bucket:
    """The sentences `start` … `start + count - 1` by length, padded to `width` predicted tokens."""

    width: int
    start: int
    count: int


class Batches:
    """The minibatches of a split: `batch(step)` for any step; each epoch has every sentence once.

    Every batch is a dict of arrays with B = `batch_size` rows and one of a few T, `shapes`:

    - tokens (B, T + 1) int32: bos, words, eos, pad …
    - inputs (B, T) int32: `tokens[:, :-1]`, each word replaced by unk with probability 1 - `word_keep`
    - targets (B, T) int32: `tokens[:, 1:]`
    - lengths (B,) int32: predicted tokens, words + 1
    - weight (B,) float32: 1, or 0 in the rows that fill up the last batch of a bucket
      (copies of its first row, so that no row is degenerate)
    - index (B,) int32: position in the split

    Memory does not grow with the number of sentences: shuffling is by keyed permutations of the sentences
    of a bucket and of the batches of an epoch. A batch depends on the seed and the step alone, so a
    resumed run sees what an uninterrupted one would have seen.
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
        """buckets: at most this many `shapes`, chosen by `bucket_edges`. edges: widths to use instead, say
        the `shapes` of the training batches; one is added for longer sentences.

        BadData if a split to be shuffled has fewer than `batch_size` sentences.
        """
        check_batch_size(batch_size, len(sentences), shuffle)
        if not 0.0 <= word_keep <= 1.0:
            raise BadData(f"word_keep = {word_keep} is no probability: between 0 and 1 would be right")
        self.sentences, self.batch_size, self.seed = sentences, batch_size, seed
        self.shuffle, self.word_keep = shuffle, word_keep
        widths = edges or bucket_edges(sentences.histogram, buckets, batch_size)
        self._buckets = _cut(sentences.histogram, widths)
        steps = [-(-bucket.count // batch_size) for bucket in self._buckets]
        self._first_slots = np.concatenate([[0], np.cumsum(steps)])

    @property
    def shapes(self) -> tuple[int, ...]:
        """The distinct T, ascending: an engine compiles once for each."""
        return tuple(bucket.width for bucket in self._buckets)

    @property
    def steps_per_epoch(self) -> int:
        return int(self._first_slots[-1])

    @property
    def data_size(self) -> int:
        """Sentences in the split: what a subsampled plate scales to."""
        return len(self.sentences)

    @property
    def padding(self) -> float:
        """Share of the token slots of an epoch that hold no token of a sentence."""
        steps = np.diff(self._first_slots)
        return 1.0 - self.sentences.tokens / float(steps @ np.array(self.shapes) * self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of a global step: epoch `step // steps_per_epoch`."""
        bucket, position, weight = self._rows(step)
        index = self.sentences.by_length[bucket.start + position].astype(np.int32)
        tokens = self.sentences.rows(index, bucket.width)
        return {
            "tokens": tokens,
            "inputs": self._with_unknowns(tokens[:, :-1], step),
            "targets": np.ascontiguousarray(tokens[:, 1:]),
            "lengths": self.sentences.lengths[index],
            "weight": weight,
            "index": index,
        }

    def stream(self, start: int, stop: int | None = None) -> Iterator[Batch]:
        """Batches of the steps `start` … `stop` - 1 (without end if None), made ahead in a thread."""
        return prefetched(self.batch, steps_between(start, stop))

    def _rows(self, step: int) -> tuple[Bucket, np.ndarray, np.ndarray]:
        """Bucket of a step, positions within it (B,) and weights (B,)."""
        epoch, slot = epoch_of(step, self.steps_per_epoch)
        if self.shuffle:
            slot = shuffled(self.steps_per_epoch, self.seed, epoch, _SLOTS)(slot)
        number = int(np.searchsorted(self._first_slots, slot, side="right")) - 1
        bucket = self._buckets[number]
        position, weight = rows_of(slot - int(self._first_slots[number]), self.batch_size, bucket.count)
        if self.shuffle:
            position = shuffled(bucket.count, self.seed, epoch, _ROWS, number)(position)
        return bucket, position, weight

    def _with_unknowns(self, inputs: np.ndarray, step: int) -> np.ndarray:
        if self.word_keep == 1.0:
            return np.ascontiguousarray(inputs)
        draws = uniform(self.seed, step, inputs.shape)
        word = (inputs > EOS) & (draws >= self.word_keep)
        return np.where(word, np.int32(UNK), inputs)

    def __repr__(self) -> str:
        shapes = ", ".join(map(str, self.shapes))
        return (
            f"Batches({self.data_size:,} sentences, {self.steps_per_epoch:,} steps an epoch of "
            f"{self.batch_size} × ({shapes}), {self.padding:.1%} padding)"
        )


def uniform(seed: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in [0, 1): the noise of one batch, a function of seed and step."""
    key = np.array([seed & _KEY, step], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(shape, np.float32)


def check_batch_size(batch_size: int, data_size: int, shuffle: bool) -> None:
    """BadData unless batches can be drawn. A split that is read in order may be smaller than one batch."""
    if batch_size < 1:
        raise BadData(f"batch_size = {batch_size}: at least 1 would be right")
    if not data_size:
        raise BadData("there is nothing to make batches of: a split with at least one row would be right")
    if shuffle and batch_size > data_size:
        raise BadData(
            f"batch_size = {batch_size} is larger than the training split, which has {data_size}: "
            f"at most {data_size} would be right"
        )


def epoch_of(step: int, steps_per_epoch: int) -> tuple[int, int]:
    """Epoch of a global step and its place in the epoch."""
    if step < 0:
        raise ValueError(f"step {step}: 0 or more would be right")
    return divmod(int(step), steps_per_epoch)


def steps_between(start: int, stop: int | None) -> Iterable[int]:
    """start, start + 1, … below `stop`, or for ever."""
    return itertools.count(start) if stop is None else range(start, stop)


def rows_of(number: int, batch_size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (B,) int64 of batch `number` of `count` rows, and their weights (B,) float32.

    A row past the end is the batch's first again, with weight 0.
    """
    first = number * batch_size
    rows = np.arange(first, first + batch_size)
    real = rows < count
    return np.where(real, rows, first), real.astype(np.float32)


@lru_cache(maxsize=256)
def shuffled(size: int, *key: int) -> Permutation:
    """The order of `size` things that `key` draws."""
    return Permutation(size, key)


def _cut(histogram: np.ndarray, widths: tuple[int, ...]) -> tuple[Bucket, ...]:
    longest = len(histogram) - 1
    last = min((width for width in widths if width >= longest), default=longest)
    edges = [*(width for width in sorted(set(widths)) if width < longest), last]
    below = np.concatenate([[0], np.cumsum(histogram)])
    buckets, shorter = [], 0
    for edge in edges:
        upto = int(below[min(edge, longest) + 1])
        if upto > shorter:
            buckets.append(Bucket(edge, shorter, upto - shorter))
        shorter = upto
    return tuple(buckets)
