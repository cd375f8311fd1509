"""Ragged sequences of feature vectors, and their minibatches in a few padded widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from .arrays import read_npz
from .bucketed import Batch, BucketedBatches
from .errors import BadData


class Sequences(Sequence):
    """N sequences of D features a step, held flat.

    Attributes:
        steps: (S, D) the steps of all sequences, one sequence after the other; any real or integer dtype.
        lengths: (N,) int32, steps of each.
        offsets: (N + 1,) int64, sequence i is steps[offsets[i]:offsets[i + 1]].
        by_length, histogram: as `Ragged`.
    """

    def __init__(self, steps: np.ndarray, lengths: np.ndarray, where: str = "the data") -> None:
        """steps: (S,) or (S, features…), which are flattened. where: how messages call it.

        BadData, naming the sequence and the step, unless every sequence has a step, the lengths add up, and all is
        finite.
        """
        steps = np.asarray(steps)
        self.lengths = _checked_lengths(np.asarray(lengths), steps, where)
        self.steps = steps.reshape(len(steps), -1)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self.by_length = np.argsort(self.lengths, kind="stable")
        self.histogram = np.bincount(self.lengths)
        self._refuse_nan(where)

    @classmethod
    def of(cls, sequences: Iterable[np.ndarray], where: str = "the data") -> Sequences:
        """From one array (T, D) or (T,) for each sequence."""
        rows = [np.asarray(sequence) for sequence in sequences]
        if not rows:
            raise BadData(f"{where} has no sequence: at least one would be right")
        shapes = {row.shape[1:] for row in rows}
        if len(shapes) > 1:
            raise BadData(
                f"the sequences of {where} differ in the shape of a step ({', '.join(map(str, sorted(shapes)))}): "
                "the same features at every step would be right"
            )
        return cls(np.concatenate(rows), np.array([len(row) for row in rows], np.int32), where)

    @classmethod
    def from_npz(cls, path: str | Path, array: str, lengths: str) -> Sequences:
        """The flat form: `array` holds all steps, `lengths` the steps of each sequence. BadData if one is missing."""
        return cls.from_arrays(read_npz(path), array, lengths, str(path))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], array: str, lengths: str, where: str) -> Sequences:
        """The flat form among some arrays."""
        steps, counts = (needed(arrays, name, where) for name in (array, lengths))
        return cls(steps, counts, f"array {array!r} of {where}")

    @property
    def width(self) -> int:
        """D."""
        return self.steps.shape[1]

    @cached_property
    def mean(self) -> np.ndarray:
        """(D,) float32, the mean of each feature over all steps; of a piano roll, how often each note sounds."""
        return self.steps.mean(0, dtype=np.float64).astype(np.float32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:
        """(T, D) sequence i."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)}")
        i = int(i) % len(self)
        return self.steps[self.offsets[i] : self.offsets[i + 1]]

    def take(self, index: np.ndarray) -> Sequences:
        """The sequences at some positions, as a split of their own."""
        return Sequences.of([self[i] for i in index])

    def pieces(self, max_steps: int) -> Sequences:
        """Each sequence cut into consecutive pieces as equal as can be, none longer than `max_steps`.

        A piece is a sequence of its own: what came before it is forgotten.
        """
        lengths = []
        for length in self.lengths.tolist():
            share, longer = divmod(length, count := -(-length // max_steps))
            lengths += [share + 1] * longer + [share] * (count - longer)
        return Sequences(self.steps, np.array(lengths, np.int32))

    def _refuse_nan(self, where: str) -> None:
        if self.steps.dtype.kind != "f" or (finite := np.isfinite(self.steps).all(1)).all():
            return
        first = int(np.argmin(finite))
        number = int(np.searchsorted(self.offsets, first, side="right")) - 1
        raise BadData(
            f"{where} has values that are NaN or infinite, first in sequence {number} at step "
            f"{first - int(self.offsets[number])}, counted from 0: fill them or leave the sequence out"
        )

    def __repr__(self) -> str:
        return f"Sequences({len(self):,} sequences, {len(self.steps):,} steps of {self.width} features)"


def needed(arrays: Mapping[str, np.ndarray], name: str, where: str) -> np.ndarray:
    """One of some arrays, BadData if it is not there."""
    if name not in arrays:
        raise BadData(f"{where} has no array {name!r}: it has {', '.join(arrays) or 'none'}")
    return np.asarray(arrays[name])


def _checked_lengths(lengths: np.ndarray, steps: np.ndarray, where: str) -> np.ndarray:
    if steps.dtype.kind not in "fiub" or not steps.ndim or 0 in steps.shape[1:]:
        raise BadData(
            f"{where} is of type {steps.dtype} and shape {steps.shape}: numbers, steps × features, would be right"
        )
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not len(lengths):
        raise BadData(
            f"the lengths of {where} are of type {lengths.dtype} and shape {lengths.shape}: "
            "one whole number for each sequence would be right"
        )
    if (short := lengths < 1).any():
        first = int(np.argmax(short))
        raise BadData(
            f"sequence {first}, counted from 0, of {where} has length {int(lengths[first])}: "
            "at least one step would be right"
        )
    if (total := int(lengths.sum(dtype=np.int64))) != len(steps):
        raise BadData(f"the lengths of {where} add up to {total:,}, but it has {len(steps):,} steps")
    return lengths.astype(np.int32)


class SequenceBatches(BucketedBatches):
    """The minibatches of sequences, by length. Beside lengths (steps), weight and index:

    - x (B, T, D) float32, zero after the end of each sequence
    - mask (B, T) bool: True at the steps of a sequence
    """

    def __init__(
        self,
        sequences: Sequences,
        *,
        batch_size: int,
        seed: int = 0,
        buckets: int = 8,
        shuffle: bool = True,
        edges: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(sequences, batch_size=batch_size, seed=seed, buckets=buckets, shuffle=shuffle, edges=edges)
        self.sequences = sequences

    def _arrays(self, index: np.ndarray, width: int, step: int) -> Batch:
        x = np.zeros((len(index), width, self.sequences.width), np.float32)
        for row, i in zip(x, index, strict=True):
            row[: self.sequences.lengths[i]] = self.sequences[i]
        return {"x": x, "mask": np.arange(width) < self.sequences.lengths[index][:, None]}

    def __repr__(self) -> str:
        return self._described("sequences")
