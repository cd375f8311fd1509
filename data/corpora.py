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
from .spec import Data
from .stdlib_docs import stdlib_docs_file
from .textfile import open_binary, sentences_of

SPLITS: tuple[str, ...] = ("train", "valid", "test")
NAMED = ("stdlib_docs", "ptb")

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A corpus as text. `files`: one per split, or a single file to be split by hash."""

    name: str
    files: tuple[Path, ...]
    lowercase: bool
    max_words: int
    max_sentences: int | None

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
        for path in self.files:
            digest.update(_file_digest(path))
        return digest.hexdigest()

    def _all(self) -> Iterator[tuple[str, str]]:
        for i, path in enumerate(self.files):
            for sentence in sentences_of(path, self.max_words):
                text = sentence.lower() if self.lowercase else sentence
                yield (SPLITS[i] if len(self.files) > 1 else split_of(text)), text


def split_of(sentence: str) -> str:
    """train, valid or test with probability 0.90, 0.05, 0.05, by a hash: equal sentences share a split."""
    part = int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=8).digest(), "little") % 100
    return "train" if part < 90 else "valid" if part < 95 else "test"


def source_of(spec: Data, cache: Path) -> Source:
    """The corpus that `spec` names. BadData if there is no such corpus or file."""
    return Source(spec.corpus, _files(spec, cache), spec.lowercase, spec.max_words, spec.max_sentences)


def _files(spec: Data, cache: Path) -> tuple[Path, ...]:
    if spec.corpus == "stdlib_docs":
        return (stdlib_docs_file(cache),)
    if spec.corpus == "ptb":
        return tuple(_ptb_file(split) for split in SPLITS)
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


def _ptb_file(split: str) -> Path:
    folder = data_folder()
    wanted = f"ptb/ptb.{split}.txt.gz"
    if folder is None:
        named = os.environ.get("GUIDEBOOK_DATA")
        why = f"GUIDEBOOK_DATA = {named} is no folder" if named else "GUIDEBOOK_DATA is not set"
        raise BadData(
            f"the corpus 'ptb' is not shipped (its licence forbids it) and {why}: point it at a folder with {wanted}"
        )
    if not (folder / wanted).is_file():
        raise BadData(
            f"the corpus 'ptb' needs {folder / wanted}, which is missing: one sentence a line, Mikolov's preprocessing"
        )
    return folder / wanted


def _file_digest(path: Path) -> bytes:
    open_binary(path).close()  # says what is wrong with it
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()
