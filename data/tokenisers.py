"""Sentences to token ids and back. Ids 0 … 3 are pad, bos, eos, unk in every tokeniser."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from .errors import BadData

PAD, BOS, EOS, UNK = range(4)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")

_FORMAT = 1
_KINDS: dict[str, type[Tokeniser]] = {}


class Tokeniser(ABC):
    """What the models see of a language: `size` ids, and the unit that a perplexity is per."""

    unit: ClassVar[str]
    kind: str
    """As in the recipe; says which class reads a saved tokeniser."""

    def __init_subclass__(cls, kinds: Sequence[str], **rest) -> None:
        super().__init_subclass__(**rest)
        _KINDS.update(dict.fromkeys(kinds, cls))

    @property
    @abstractmethod
    def size(self) -> int:
        """V, the special tokens included."""

    @abstractmethod
    def encode(self, sentence: str) -> list[int]:
        """Ids of one sentence, without bos and eos. The sentence's blanks are taken as single ones."""

    @abstractmethod
    def encode_many(self, sentences: Sequence[str]) -> list[list[int]]:
        """`encode` of each sentence."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids among which there is no pad, bos or eos."""

    @abstractmethod
    def _contents(self) -> dict:
        """What `_restore` needs, as JSON."""

    @classmethod
    @abstractmethod
    def _restore(cls, contents: dict) -> Tokeniser: ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first eos; pad and bos leave no trace, unk is written `<unk>`."""
        kept = []
        for i in map(int, ids):
            if i == EOS:
                break
            if i not in (PAD, BOS):
                kept.append(i)
        return self._decode(kept)

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, "kind": self.kind, **self._contents()}, ensure_ascii=False)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides its ids."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write as JSON text; `Tokeniser.load` reads it back."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Tokeniser:
        """Any tokeniser that was saved. BadData if the file is missing, cut short or of a newer version."""
        try:
            contents = json.loads(Path(path).read_text(encoding="utf-8"))
            if contents["format"] > _FORMAT:
                raise BadData(
                    f"{path} is a tokeniser of a newer Guidebook (format {contents['format']}): upgrade to read it"
                )
            return _KINDS[contents["kind"]]._restore(contents)
        except OSError as error:
            raise BadData(
                f"the tokeniser {path} cannot be read ({error.strerror}): a saved one would be right"
            ) from error
        except BadData:
            raise
        except Exception as error:  # the Rust tokenisers raise bare Exception
            raise BadData(f"{path} is not a saved tokeniser: {type(error).__name__}: {error}") from error

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size:,} ids, unit {self.unit!r})"


def check_distinct(words: int) -> None:
    """BadData if there are fewer than 2 distinct words: nothing could be learned."""
    if words < 2:
        raise BadData(f"the training sentences have {words} distinct words beside <unk>: at least 2 would be right")
