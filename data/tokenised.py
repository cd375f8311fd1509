"""A corpus as ids on disk: written in one pass, in chunks, with memory bounded by the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .corpora import SPLITS, Source
from .errors import BadData
from .tokenisers import Tokeniser

Progress = Callable[[str, int], None]
"""Called now and then with what is going on and how many sentences are done."""

_CHUNK = 1024  # sentences encoded at once
_CHUNK_CHARACTERS = 1 << 20
_SORTED_AT_ONCE = 1 << 13


def write_tokenised(source: Source, tokeniser: Tokeniser, folder: Path, progress: Progress | None = None) -> None:
    """Fill `folder` with one folder per split (see `Sentences.open`) and `corpus.json`.

    BadData if a split would be empty.
    """
    writers = {split: TokenWriter(folder / split, tokeniser) for split in SPLITS}
    empty_lines = done = 0
    try:
        for split, chunk in _chunks(source.sentences()):
            sentences = [sentence for sentence in chunk if sentence]
            empty_lines += len(chunk) - len(sentences)
            writers[split].add(sentences)
            done += len(sentences)
            if progress:
                progress("tokenising", done)
    finally:
        for writer in writers.values():
            writer.close()
    for split, writer in writers.items():
        if not writer.sentences:
            raise BadData(_empty_split(source, split, {s: w.sentences for s, w in writers.items()}))
        writer.finish()
    about = {"corpus": source.name, "empty_lines": empty_lines}
    (folder / "corpus.json").write_text(json.dumps(about), encoding="utf-8")


def _empty_split(source: Source, split: str, counts: dict[str, int]) -> str:
    if len(source.files) > 1:
        return f"the {split} split of {source.name} has no sentence: one a line would be right"
    return (
        f"the {split} split of {source.name} would be empty "
        f"({sum(counts.values())} sentences, split 90/5/5 by hash): "
        "take a longer file, or give data.valid and data.test"
    )


def _chunks(sentences: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    waiting: dict[str, list[str]] = {split: [] for split in SPLITS}
    characters = dict.fromkeys(SPLITS, 0)
    for split, sentence in sentences:
        waiting[split].append(sentence)
        characters[split] += len(sentence)
        if len(waiting[split]) >= _CHUNK or characters[split] >= _CHUNK_CHARACTERS:
            yield split, waiting[split]
            waiting[split], characters[split] = [], 0
    yield from waiting.items()


class TokenWriter:
    """Appends sentences to the files of one split."""

    def __init__(self, folder: Path, tokeniser: Tokeniser) -> None:
        folder.mkdir(parents=True)
        self._folder, self._tokeniser = folder, tokeniser
        self._dtype = np.dtype(np.uint16 if tokeniser.size <= 1 << 16 else np.uint32)
        self._files: dict[str, BinaryIO] = {name: (folder / name).open("wb") for name in ("ids", "offsets", "lengths")}
        self._histogram = np.zeros(2, np.int64)
        self.sentences = self.words = 0
        self._files["offsets"].write(np.zeros(1, np.int64).tobytes())

    def add(self, sentences: list[str]) -> None:
        """Encode and append. A sentence of which the tokeniser leaves nothing stays, as an eos alone."""
        rows = self._tokeniser.encode_many(sentences)
        words = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.fromiter((i for row in rows for i in row), self._dtype, int(words.sum()))
        self._files["ids"].write(ids.tobytes())
        self._files["offsets"].write((self.words + np.cumsum(words)).tobytes())
        self._files["lengths"].write((words + 1).astype(np.int32).tobytes())
        self._count(words + 1)
        self.sentences += len(rows)
        self.words += len(ids)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def finish(self) -> None:
        """Sort the positions by length and describe the split, after the last `add`."""
        self.close()
        self._sort()
        about = {
            "dtype": self._dtype.name,
            "sentences": self.sentences,
            "words": self.words,
            "histogram": self._histogram.tolist(),
        }
        (self._folder / "split.json").write_text(json.dumps(about), encoding="utf-8")

    def _count(self, lengths: np.ndarray) -> None:
        counts = np.bincount(lengths, minlength=len(self._histogram))
        counts[: len(self._histogram)] += self._histogram
        self._histogram = counts

    def _sort(self) -> None:
        """A counting sort of the positions by length, stable, part by part between memory maps."""
        shape = (self.sentences,)
        lengths = np.memmap(self._folder / "lengths", np.int32, "r", shape=shape)
        sorted_ = np.memmap(self._folder / "by_length", np.uint32, "w+", shape=shape)
        free = np.cumsum(self._histogram) - self._histogram  # where the next position of each length goes
        for start in range(0, self.sentences, _SORTED_AT_ONCE):
            part = np.asarray(lengths[start : start + _SORTED_AT_ONCE])
            order = np.argsort(part, kind="stable")
            counts = np.bincount(part, minlength=len(free))
            before = np.cumsum(counts) - counts  # how many of this part are shorter
            ranks = np.arange(len(part)) - before[part[order]]
            sorted_[free[part[order]] + ranks] = start + order
            free += counts
        sorted_.flush()
