"""Where sentences come from, and which split each is in."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import BadData
from .spec import NAMED, Data
from .stdlib_docs import stdlib_docs_file
from .textfile import open_binary, sentences_of
from .wikitext import wikitext_sentences

SPLITS: tuple[str, ...] = ("train", "valid", "test")

_SHARED = {
    "ptb": ("ptb/ptb.{}.txt.gz", "one sentence a line, Mikolov's preprocessing"),
    "wikitext2": ("wikitext2/wiki.{}.txt.gz", "one paragraph a line, as Merity et al. made it"),
}
"""Corpora that are not shipped: their files in the folder of benchmark data, and what these hold."""

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A corpus as text. `files`: one per split, or a single file to be split by hash. `paragraphs`: a line is one of
    WikiText, not a sentence."""

    name: str
    files: tuple[Path, ...]
    lowercase: bool
    max_words: int
    max_sentences: int | None
    paragraphs: bool = False

    def sentences(self) -> Iterator[tuple[str, str]]:
        """(split, sentence) in order of the files; the sentence is "" for an empty line. BadData as
        `sentences_of`."""
        counts: Counter[str] = Counter()
        for split, sentence in self._all():
            if sentence and self.max_sentences is not None:
                if counts[split] >= self.max_sentences:
                    if len(counts) == len(SPLITS) and min(counts.values()) >= self.max_sentences:
                        return
                    continue
                counts[split] += 1
            yield split, sentence

    def train(self) -> Iterator[str]:
        """The training sentences: all that a tokeniser may see."""
        return (sentence for split, sentence in self.sentences() if split == "train" and sentence)

    def digest(self) -> str:
        """Hash of the files' bytes and of how they are read: equal ones mean equal sentences and splits."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{len(self.files)} {self.lowercase} {self.max_words} {self.max_sentences}".encode())
        if self.paragraphs:
            digest.update(b" paragraphs")
        for path in self.files:
            digest.update(_file_digest(path))
        return digest.hexdigest()

    def _all(self) -> Iterator[tuple[str, str]]:
        read = wikitext_sentences if self.paragraphs else sentences_of
        for i, path in enumerate(self.files):
            for sentence in read(path, self.max_words):
                text = sentence.lower() if self.lowercase else sentence
                yield (SPLITS[i] if len(self.files) > 1 else split_of(text)), text


def split_of(sentence: str) -> str:
    """train, valid or test with probability 0.90, 0.05, 0.05, by a hash: equal sentences share a split."""
    part = int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=8).digest(), "little") % 100
    return "train" if part < 90 else "valid" if part < 95 else "test"


def source_of(spec: Data, cache: Path) -> Source:
    """The corpus that `spec` names. BadData if there is no such corpus or file."""
    wikitext = spec.corpus == "wikitext2"
    files = _files(spec, cache)
    return Source(spec.corpus, files, spec.lowercase or wikitext, spec.max_words, spec.max_sentences, wikitext)


def _files(spec: Data, cache: Path) -> tuple[Path, ...]:
    if spec.corpus == "stdlib_docs":
        return (stdlib_docs_file(cache),)
    if spec.corpus in _SHARED:
        return tuple(_shared_file(spec.corpus, split) for split in SPLITS)
    paths = [Path(p).expanduser() for p in (spec.corpus, spec.valid, spec.test) if p is not None]
    if not paths[0].exists():
        raise BadData(_no_corpus(spec.corpus, paths[0]))
    if paths[0].suffix == ".npz":
        raise BadData(
            f"{paths[0]} holds arrays, not sentences: "
            "it is for a native pair (guidebook fit my_pair.py:PAIR --data FILE)"
        )
    return tuple(paths)


def _no_corpus(corpus: str, path: Path) -> str:
    near = difflib.get_close_matches(corpus, NAMED, n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"{' or '.join(map(repr, NAMED))} or the path of a text file would be right"
    )
    return f"data.corpus = {corpus!r} is no known corpus and there is no file {path.absolute()}: {hint}"


def data_folder() -> Path | None:
    """Where benchmark data lie: GUIDEBOOK_DATA, else `../shared/data` beside the project, else None."""
    named = os.environ.get("GUIDEBOOK_DATA")
    folder = Path(named).expanduser() if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


def _shared_file(corpus: str, split: str) -> Path:
    folder, (pattern, about) = data_folder(), _SHARED[corpus]
    wanted = pattern.format(split)
    if folder is None:
        named = os.environ.get("GUIDEBOOK_DATA")
        why = f"GUIDEBOOK_DATA = {named} is no folder" if named else "GUIDEBOOK_DATA is not set"
        raise BadData(f"the corpus {corpus!r} is not shipped and {why}: point it at a folder with {wanted}")
    if not (folder / wanted).is_file():
        raise BadData(f"the corpus {corpus!r} needs {folder / wanted}, which is missing: {about}")
    return folder / wanted


def _file_digest(path: Path) -> bytes:
    open_binary(path).close()  # says what is wrong with it
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()
