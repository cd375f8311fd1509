"""What a pair is fitted to: sentences of a corpus, sequences, or a user's arrays, behind one face."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field, NonNegativeFloat

from ..data import (
    ArrayBatches,
    Batches,
    Corpus,
    Data,
    SequenceBatches,
    SequenceCorpus,
    Tokeniser,
    check_arrays,
    load,
    load_arrays,
    mnist,
    named_sequences,
    sequences_from,
    sequences_in,
)
from ..guides.pair import Pair
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


class SequenceSpec(Spec):
    """The `[data]` table of a pair whose data are sequences: music, sound, drawings or a user's own.

    A corpus, and a file with splits, has its own; else sequences are split at random, always the same way.
    """

    corpus: Literal["jsb", "nottingham", "musedata", "spoken_digits", "kanji", "omniglot", "sheep"] | None = Field(
        default=None, description="a corpus of the folder GUIDEBOOK_DATA"
    )
    file: str | None = Field(
        default=None, description="an .npz of NAME and NAME_lengths, or a folder of MIDI or of WAV files"
    )
    valid: NonNegativeFloat = Field(
        default=0.1, lt=0.5, description="share of sequences for validation; 0: the training sequences"
    )
    test: NonNegativeFloat = Field(
        default=0.1, lt=0.5, description="share of sequences for the test; 0: the training sequences"
    )
    buckets: int = Field(default=8, ge=1, description="at most this many padded lengths: JAX compiles once for each")
    max_steps: int | None = Field(
        default=None, ge=2, description="cut longer training sequences into pieces; the others stay whole"
    )
    frame: int = Field(default=200, ge=1, description="samples of sound in a step")
    steps_per_beat: int = Field(default=2, ge=1, description="steps in a quarter note of a folder of MIDI files")


class Dataset(Protocol):
    """Three splits as batches of a few fixed shapes."""

    fingerprint: str

    @property
    def width(self) -> int:
        """V of sentences; D of an array `x` (N, D) and of the steps of sequences; else 0."""
        ...

    def batches(
        self, split: str, *, batch_size: int, seed: int = 0, shuffle: bool = False, word_keep: float = 1.0
    ) -> Any:
        """`data.Batches`, `data.ArrayBatches` or `data.SequenceBatches` of one split."""
        ...


class TextData:
    """A tokenised corpus: the one that `spec` names, or `corpus`, batched as `spec` says."""

    def __init__(
        self,
        spec: Data,
        *,
        tokeniser: Path | None = None,
        progress: Callable[[str, int], None] | None = None,
        corpus: Corpus | None = None,
    ) -> None:
        self.spec = spec
        self.corpus = corpus or load(spec, tokeniser=tokeniser, progress=progress)
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
        cut = _shares(len(next(iter(found.values()))), spec.valid, spec.test)
        return {split: {name: array[cut[split]] for name, array in found.items()} for split in SPLITS}

    def batches(
        self, split: str, *, batch_size: int, seed: int = 0, shuffle: bool = False, word_keep: float = 1.0
    ) -> ArrayBatches:
        if word_keep < 1.0:
            raise BadInput("fit.word_dropout hides words of sentences; the data of this pair are arrays: leave it at 0")
        if not shuffle:  # a plate of all rows cannot hold a larger batch
            batch_size = min(batch_size, self.rows)
        arrays = self.splits[_split(split)]
        return ArrayBatches(arrays, batch_size=batch_size, seed=seed, shuffle=shuffle, binarise=self.binarise)


class SequenceData:
    """Sequences in three splits, standardised as `SequenceCorpus.standardised` says.

    Attributes:
        splits: "train" (cut into pieces where the spec says so), "valid", "test".
        features: (D,) float32, the mean of each feature over all training steps: how often each note sounds.
        about: what turns drawn steps back into music, sound or a drawing, as JSON: `kind` ("music", "sound",
            "strokes" or "array"), `sample_rate`, `steps_per_beat` (None where there is none), `mean` and `std`.
    """

    def __init__(self, spec: SequenceSpec, arrays: Mapping[str, Any] | None = None) -> None:
        """arrays: those that the pair brings, in the flat form of `data.sequences_in`."""
        raw = _whole(_source(spec, arrays), spec)
        self.fingerprint = _digest(
            {
                f"{split}/{name}": array
                for split, sequences in raw.splits.items()
                for name, array in (("steps", sequences.steps), ("lengths", sequences.lengths))
            }
        )
        corpus, mean, std = raw.standardised()
        self.spec, self.splits = spec, dict(corpus.splits)
        self.features = self.splits["train"].mean
        if spec.max_steps is not None:
            self.splits["train"] = self.splits["train"].pieces(spec.max_steps)
        self.about: dict[str, Any] = {
            "kind": corpus.kind,
            "sample_rate": corpus.sample_rate,
            "steps_per_beat": corpus.steps_per_beat,
            "mean": mean,
            "std": std,
        }

    @property
    def width(self) -> int:
        return self.splits["train"].width

    def batches(
        self, split: str, *, batch_size: int, seed: int = 0, shuffle: bool = False, word_keep: float = 1.0
    ) -> SequenceBatches:
        if word_keep < 1.0:
            raise BadInput("fit.word_dropout hides words of sentences; the data of this pair are sequences of numbers")
        if not shuffle:  # a plate of all training data cannot hold a larger batch
            batch_size = min(batch_size, len(self.splits["train"]))
        sequences = self.splits[_split(split)]
        return SequenceBatches(sequences, batch_size=batch_size, seed=seed, buckets=self.spec.buckets, shuffle=shuffle)


def data_spec(pair: Pair) -> type[Data] | type[Arrays] | type[SequenceSpec]:
    """The class of a pair's `[data]` table."""
    return Data if pair.text else SequenceSpec if pair.steps else Arrays


def _source(spec: SequenceSpec, arrays: Mapping[str, Any] | None) -> SequenceCorpus:
    if spec.corpus is not None and spec.file is not None:
        raise BadInput(f"data.corpus = {spec.corpus!r} and data.file are both given: one of them would be right")
    if spec.corpus is not None:
        return named_sequences(spec.corpus, frame=spec.frame)
    if spec.file is not None:
        return sequences_from(spec.file, frame=spec.frame, steps_per_beat=spec.steps_per_beat)
    if not arrays:
        raise BadInput(
            "the pair brings no data: say data.corpus, or data.file, an .npz or a folder of MIDI or WAV files"
        )
    return sequences_in({name: np.asarray(array) for name, array in arrays.items()}, "the pair's data")


def _whole(corpus: SequenceCorpus, spec: SequenceSpec) -> SequenceCorpus:
    """With three splits, and with something to learn about time."""
    if (every := corpus.splits.get("all")) is not None:
        cut = _shares(len(every), spec.valid, spec.test)
        corpus = replace(corpus, splits={split: every.take(rows) for split, rows in cut.items()})
    if corpus.splits["train"].lengths.max() < 2:
        raise BadInput("every training sequence is a single step: sequences of 2 steps or more would be right")
    return corpus


def _shares(rows: int, valid: float, test: float) -> dict[str, np.ndarray]:
    """Rows of each split, drawn at random, always the same way; the training rows stand in for an empty split."""
    order = np.random.default_rng(0).permutation(rows)
    first, second = round(valid * rows), round(valid * rows) + round(test * rows)
    cut = {"train": np.sort(order[second:]), "valid": order[:first], "test": order[first:second]}
    return {split: cut[split] if len(cut[split]) else cut["train"] for split in SPLITS}


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
