"""`load`: from the `[data]` table of a recipe to three splits of token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .cache import built, cache_folder
from .corpora import SPLITS, Source, source_of
from .errors import BadData
from .sentences import Sentences
from .spec import Data, TokeniserSpec, Words
from .subwords import SubwordTokeniser
from .tokenised import Progress, write_tokenised
from .tokenisers import Tokeniser
from .words import WordTokeniser

_FORMAT = 1
"""Of the cached files: raised whenever they change, so that old ones are left alone."""


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """A tokenised corpus. Equal fingerprints mean equal splits and ids, on any machine."""

    name: str
    tokeniser: Tokeniser
    train: Sentences
    valid: Sentences
    test: Sentences
    fingerprint: str
    empty_lines: int
    """Lines without a word: no sentences, so they are skipped."""

    def __repr__(self) -> str:
        splits = ", ".join(f"{split} {len(getattr(self, split)):,}" for split in SPLITS)
        return f"Corpus({self.name!r}, {splits} sentences, {self.tokeniser!r})"


def load(
    spec: Data,
    *,
    cache: str | Path | None = None,
    tokeniser: str | Path | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """The corpus of `spec`, tokenised once into memory-mapped files and read from there.

    cache: folder for them, by default GUIDEBOOK_CACHE or the platform's cache folder. tokeniser: a saved
    tokeniser (that of a run) to use in place of training one on the training split. progress: called with
    what is going on and how many sentences are done. BadData for whatever is wrong with the text, the
    tokeniser or the cache folder.
    """
    folder = cache_folder(cache)
    source = source_of(spec, folder)
    content = source.digest()
    chosen = Tokeniser.load(tokeniser) if tokeniser else _trained(source, content, spec.tokeniser, folder, progress)
    fingerprint = _key(content, chosen.fingerprint)
    place = built(
        folder / f"corpus-{fingerprint}",
        lambda making: write_tokenised(source, chosen, making, progress),
        _is_whole,
    )
    splits = {split: Sentences.open(place / split, chosen) for split in SPLITS}
    about = json.loads((place / "corpus.json").read_text(encoding="utf-8"))
    return Corpus(source.name, chosen, **splits, fingerprint=fingerprint, empty_lines=about["empty_lines"])


def train_tokeniser(sentences: Iterable[str], spec: TokeniserSpec) -> Tokeniser:
    """The tokeniser that `spec` describes, from the training sentences."""
    if isinstance(spec, Words):
        return WordTokeniser.train(sentences, spec)
    return SubwordTokeniser.train(sentences, spec)


def _trained(source: Source, content: str, spec: TokeniserSpec, folder: Path, progress: Progress | None) -> Tokeniser:
    def build(making: Path) -> None:
        train_tokeniser(_Training(source, progress), spec).save(making / "tokeniser.json")

    place = folder / f"tokeniser-{_key(content, spec.model_dump_json())}"
    return Tokeniser.load(built(place, build, _has_tokeniser) / "tokeniser.json")


@dataclass(frozen=True)
class _Training:
    """The training sentences, as often as they are asked for."""

    source: Source
    progress: Progress | None

    def __iter__(self) -> Iterator[str]:
        for done, sentence in enumerate(self.source.train()):
            if self.progress and done % 10_000 == 0:
                self.progress("reading words", done)
            yield sentence


def _key(*parts: str) -> str:
    return hashlib.blake2b("\n".join((str(_FORMAT), *parts)).encode(), digest_size=16).hexdigest()


def _has_tokeniser(folder: Path) -> bool:
    try:
        Tokeniser.load(folder / "tokeniser.json")
    except BadData:
        return False
    return True


def _is_whole(folder: Path) -> bool:
    try:
        json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        for split in SPLITS:
            Sentences.open(folder / split, tokeniser=None)  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError):
        return False
    return True
