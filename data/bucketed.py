"""Minibatches of ragged data in a few padded widths, for any step, in an order that seed and step alone decide."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from .buckets import bucket_edges
from .errors import BadData
from .permutation import Permutation
from .prefetch import prefetched

Batch = dict[str, np.ndarray]

# Streams of the seed: what shuffles sentences and what shuffles batches must not agree.
_ROWS, _SLOTS = 0, 1
_KEY = (1 << 64) - 1


@dataclass(frozen=True)
class Bucket:
    """The data `start` … `start + count - 1` by length, padded to `width`."""

    width: int
    start: int
    count: int


class Ragged(Protocol):
    """N data of differing lengths, as `BucketedBatches` reads them.

    lengths: (N,) int32; by_length: (N,) the positions 0 … N - 1 sorted by length, ties in order; histogram: (L + 1,)
    how many data have each length.
    """

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def by_length(self) -> np.ndarray: ...

    @property
    def histogram(self) -> np.ndarray: ...

    def __len__(self) -> int: ...


class BucketedBatches(ABC):
    """The minibatches of a ragged split: `batch(step)` for any step; each epoch has every datum once.

    Every batch is a dict of arrays with B = `batch_size` rows, padded to one of a few T, `shapes`. A kind of data adds
    its own arrays to these:

    - lengths (B,) int32
    - weight (B,) float32: 1, or 0 in the rows that fill up the last batch of a bucket
      (copies of its first row, so that no row is degenerate)
    - index (B,) int32: position in the split

    Memory does not grow with the number of data: shuffling is by keyed permutations of the data of a bucket and of
    the batches of an epoch. A batch depends on the seed and the step alone, so a resumed run sees what an
    uninterrupted one would have seen.
    """

    def __init__(
        self,
        split: Ragged,
        *,
        batch_size: int,
        seed: int = 0,
        buckets: int = 8,
        shuffle: bool = True,
        edges: tuple[int, ...] | None = None,
    ) -> None:
        """buckets: at most this many `shapes`, chosen by `bucket_edges`. edges: widths to use instead, say
        the `shapes` of the training batches; one is added for longer data.

        BadData if a split to be shuffled has fewer than `batch_size` data.
        """
        check_batch_size(batch_size, len(split), shuffle)
        self._split = split
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self._buckets = _cut(split.histogram, edges or bucket_edges(split.histogram, buckets, batch_size))
        steps = [-(-bucket.count // batch_size) for bucket in self._buckets]
        self._first_slots = np.concatenate([[0], np.cumsum(steps)])

    @abstractmethod
    def _arrays(self, index: np.ndarray, width: int, step: int) -> Batch:
        """What this kind of data adds to a batch of the data `index` (B,), padded to `width`."""

    @property
    def shapes(self) -> tuple[int, ...]:
        """The distinct T, ascending: an engine compiles once for each."""
        return tuple(bucket.width for bucket in self._buckets)

    @property
    def steps_per_epoch(self) -> int:
        return int(self._first_slots[-1])

    @property
    def data_size(self) -> int:
        """Data in the split: what a subsampled plate scales to."""
        return len(self._split)

    @property
    def padding(self) -> float:
        """Share of the slots of an epoch that hold nothing of a datum."""
        histogram = np.asarray(self._split.histogram)
        slots = float(np.diff(self._first_slots) @ np.array(self.shapes) * self.batch_size)
        return 1.0 - float(histogram @ np.arange(len(histogram))) / slots

    def batch(self, step: int) -> Batch:
        """The batch of a global step: epoch `step // steps_per_epoch`."""
        bucket, position, weight = self._rows(step)
        index = self._split.by_length[bucket.start + position].astype(np.int32)
        arrays = self._arrays(index, bucket.width, step)
        return {**arrays, "lengths": self._split.lengths[index], "weight": weight, "index": index}

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

    def _described(self, data: str) -> str:
        shapes = ", ".join(map(str, self.shapes))
        return (
            f"{type(self).__name__}({self.data_size:,} {data}, {self.steps_per_epoch:,} steps an epoch of "
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
