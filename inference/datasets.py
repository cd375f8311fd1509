"""What a pair is fitted to: sentences of a corpus, or a user's arrays, behind one face."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field, NonNegativeFloat

from ..data import ArrayBatches, Batches, Corpus, Data, Tokeniser, check_arrays, load, load_arrays, mnist
from ..models.errors import BadInput
from ..models.spec import Spec

SPLITS = ("train", "valid", "test")


class Arrays(Spec):
    """The `[data]` table of a pair whose data are arrays: rows are split at random, always the same way.

    A corpus has its own splits.
    """

    corpus: Literal["mnist"] | None = Field(default=None, description="images as rows of grey values, an array x")
    file: str | None = Field(
        default=None, description="path of an .npz, datum axis first; None: the pair brings its own"
    )
    valid: NonNegativeFloat = Field(
        default=0.1, lt=0.5, description="share of rows for validation; 0: the training rows"
    )
    test: NonNegativeFloat = Field(default=0.1, lt=0.5, description="share of rows for the test; 0: the training rows")
    binarise: bool = Field(default=False, description="x holds probabilities: draw 0 or 1, anew in every epoch")


class Dataset(Protocol):
    """Three splits as batches of a few fixed shapes."""

    fingerprint: str

    @property
    def width(self) -> int:
        """V of sentences; D of an array `x` (N, D); else 0."""
        ...

    def batches(
        self, split: str, *, batch_size: int, seed: int = 0, shuffle: bool = False, word_keep: float = 1.0
    ) -> Any:
        """`data.Batches` or `data.ArrayBatches` of one split."""
        ...


class TextData:
    """A tokenised corpus."""

    def __init__(
        self, spec: Data, *, tokeniser: Path | None = None, progress: Callable[[str, int], None] | None = None
    ) -> None:
        self.spec = spec
        self.corpus: Corpus = load(spec, tokeniser=tokeniser, progress=progress)
        self.fingerprint = self.corpus.fingerprint

    @property
    def tokeniser(self) -> Tokeniser:
        return self.corpus.tokeniser

    @property
    def width(self) -> int:
        return self.tokeniser.size

    def batches(
        self, split: str, *, batch_size: int, seed: int = 0, shuffle: bool = False, word_keep: float = 1.0
    ) -> Batches:
        sentences = getattr(self.corpus, _split(split))
        return Batches(
            sentences,
            batch_size=batch_size,
            seed=seed,
            buckets=self.spec.buckets,
            shuffle=shuffle,
            word_keep=word_keep,
        )


class ArrayData:
    """A user's arrays, split by rows."""

    @property
    def width(self) -> int:
        x = self.splits["train"].get("x")
        return x.shape[1] if x is not None and x.ndim == 2 else 0

    def __init__(self, spec: Arrays, arrays: Mapping[str, Any] | None) -> None:
        self.binarise = spec.binarise
        if spec.corpus is not None:
            if spec.file is not None:
                raise BadInput(
                    f"data.corpus = {spec.corpus!r} and data.file are both given: one of them would be right"
                )
            self.splits = mnist()
        else:
            self.splits = self._cut(spec, load_arrays(spec.file) if spec.file is not None else arrays)
        self.rows = len(next(iter(self.splits["train"].values())))
        self.fingerprint = _digest({f"{s}/{name}": a for s, table in self.splits.items() for name, a in table.items()})
        if spec.binarise:
            _refuse_no_probabilities(self.splits["train"].get("x"))

    @staticmethod
    def _cut(spec: Arrays, arrays: Mapping[str, Any] | None) -> dict[str, dict[str, np.ndarray]]:
        if not arrays:
            raise BadInput("the pair brings no data: give it with --data FILE.npz, or as Pair(..., data=...)")
        found = {name: np.asarray(array) for name, array in arrays.items()}
        check_arrays(found, "the pair's data")
        rows = len(next(iter(found.values())))
        order = np.random.default_rng(0).permutation(rows)
        valid, test = round(spec.valid * rows), round(spec.test * rows)
        cut = {"valid": order[:valid], "test": order[valid : valid + test], "train": np.sort(order[valid + test :])}
        return {
            split: {name: array[cut[split] if len(cut[split]) else cut["train"]] for name, array in found.items()}
            for split in SPLITS
        }

    def batches(
        self, split: str, *, batch_size: int, seed: int = 0, shuffle: bool = False, word_keep: float = 1.0
    ) -> ArrayBatches:
        if word_keep < 1.0:
            raise BadInput("fit.word_dropout hides words of sentences; the data of this pair are arrays: leave it at 0")
        if not shuffle:  # a plate of all rows cannot hold a larger batch
            batch_size = min(batch_size, self.rows)
        arrays = self.splits[_split(split)]
        return ArrayBatches(arrays, batch_size=batch_size, seed=seed, shuffle=shuffle, binarise=self.binarise)


def _refuse_no_probabilities(x: np.ndarray | None) -> None:
    if x is None or x.dtype.kind not in "fiub" or x.min() < 0 or x.max() > 1:
        raise BadInput("data.binarise = true needs an array x of probabilities: numbers from 0 to 1")


def _split(name: str) -> str:
    if name not in SPLITS:
        raise BadInput(f"there is no split {name!r}: choose one of {', '.join(SPLITS)}")
    return name


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
