"""Minibatches of plain arrays, for native pairs: the same interface as `Batches`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from .bucketed import Batch, check_batch_size, epoch_of, rows_of, shuffled, steps_between, uniform
from .errors import BadData
from .prefetch import prefetched

_RESERVED = ("weight", "index")


class ArrayBatches:
    """The minibatches of some arrays whose first axis is the datum: `batch(step)` for any step, each
    datum once an epoch.

    Every batch is a dict of B = `batch_size` rows of each array, and weight (B,) float32 and index (B,)
    int32 as in `Batches`: weight 0 marks the copies that fill up the last batch. BadData as
    `check_arrays`, or if there are fewer data than B. binarise: the array `x` holds probabilities, and a batch has
    draws from them: others in every epoch when shuffled, else always the same.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        binarise: bool = False,
    ) -> None:
        self.arrays = check_arrays(arrays)
        self.data_size = len(next(iter(self.arrays.values())))
        check_batch_size(batch_size, self.data_size, shuffle)
        self.batch_size, self.seed, self.shuffle, self.binarise = batch_size, seed, shuffle, binarise

    @property
    def shapes(self) -> tuple[int, ...]:
        """One entry, as all batches have the same shapes: an engine compiles once."""
        return (self.batch_size,)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.data_size // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of a global step: epoch `step // steps_per_epoch`."""
        epoch, number = epoch_of(step, self.steps_per_epoch)
        rows, weight = rows_of(number, self.batch_size, self.data_size)
        if self.shuffle:
            rows = shuffled(self.data_size, self.seed, epoch)(rows)
        batch = {name: array[rows] for name, array in self.arrays.items()}
        if self.binarise:
            draws = uniform(self.seed, step if self.shuffle else number, batch["x"].shape)
            batch["x"] = (draws < batch["x"]).astype(np.float32)
        return {**batch, "weight": weight, "index": rows.astype(np.int32)}

    def stream(self, start: int, stop: int | None = None) -> Iterator[Batch]:
        """Batches of the steps `start` … `stop` - 1 (without end if None), made ahead in a thread."""
        return prefetched(self.batch, steps_between(start, stop))

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {array.shape}" for name, array in self.arrays.items())
        return f"ArrayBatches({arrays}; {self.steps_per_epoch:,} steps an epoch of {self.batch_size})"


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, by name. BadData as `check_arrays`, or if it is no such file."""
    return check_arrays(read_npz(path), str(path))


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, whatever their shapes. BadData if it is no such file, or holds objects."""
    try:
        with Path(path).open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise BadData(f"{path} is one unnamed array: an .npz file of named arrays would be right")
            with arrays:
                return {name: _member(arrays, name, path) for name in arrays.files}
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error.strerror or error}): an .npz file would be right") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, BadData):
            raise
        raise BadData(f"{path} is no .npz file of plain arrays: np.savez writes one") from error


def check_arrays(arrays: Mapping[str, np.ndarray], where: str = "the data") -> dict[str, np.ndarray]:
    """The arrays, if batches can be made of them.

    BadData, naming the array, if there is none, if one is a scalar, empty, of objects or not finite, if
    one takes a name that batches use, or if the first axes differ.
    """
    checked = {name: np.asarray(array) for name, array in arrays.items()}
    if not checked:
        raise BadData(f"{where} has no arrays: at least one, with the datum axis first, would be right")
    for name, array in checked.items():
        if fault := _fault(name, array):
            raise BadData(f"array {name!r} of {where} {fault}")
    sizes = {name: len(array) for name, array in checked.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise BadData(f"the arrays of {where} differ in rows: {listed}; the first axis counts the data in each")
    return checked


def _fault(name: str, array: np.ndarray) -> str | None:
    if name in _RESERVED:
        return f"takes a name that batches use ({' and '.join(_RESERVED)}): rename it"
    if array.dtype.hasobject:
        return "holds Python objects: numbers or fixed-width strings would be right"
    if array.ndim == 0:
        return "is a single number: the datum axis comes first"
    if array.size == 0:
        return f"is empty (shape {array.shape}): at least one row would be right"
    if array.dtype.kind in "fc" and not (finite := np.isfinite(array)).all():
        first = int(np.argwhere(~finite)[0][0])
        count = int((~finite).sum())
        return f"has {count} values that are NaN or infinite (first in row {first}): fill them and pass a mask"
    return None


def _member(file, name: str, path: str | Path) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:  # what NumPy says when only pickle could read it
        raise BadData(f"array {name!r} of {path} holds Python objects: numbers or strings would be right") from error
