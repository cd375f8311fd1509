"""English sentences from the documentation inside the running Python: the embedded default corpus.

Docstrings of the standard library, parsed with `ast` (nothing is imported or executed), and the language
topics of `pydoc_data`. What reads as prose is kept, lower-cased, with blanks around punctuation; code,
doctests, parameter lists, tables and addresses are left out. The sentences depend on the Python version
only: not on the machine, the order of its files or the hash seed.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from .cache import built
from .errors import BadData

MIN_WORDS, MAX_WORDS = 4, 32

_VERSION = 1
"""Of the filters: raised whenever they change, so that sentences kept by older ones are left alone."""

_FEWEST = 1000  # far below any complete standard library


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Distributions of the same Python version differ in whether they ship these.
_ABSENT_SOMEWHERE = _set(
    "site-packages dist-packages lib-dynload __pycache__ test tests idlelib tkinter turtle.py turtledemo "
    "lib2to3 distutils ensurepip msilib sitecustomize.py usercustomize.py"
)

_PARAGRAPH = re.compile(r"\n\s*\n")
_CODE = re.compile(r"\s*(>>>|\.\.\.|\$ |\.\. |#|@|\||\+[-=]|[-=~^*_]{3,}|:\w+)")
_BULLET = re.compile(r"\s*([-*+o•]|\(?\d+[.)]|\(?[a-z]\))\s+")
_FIELD = re.compile(r"\s*(?!Note\b|Example)[\w.*\[\]()\"',|<>/-]+(\s[\w.*]+)?\s*(--|:|=|=>|->)\s+\S")
_TABLE = re.compile(r"[^\s.!?:;] {2,}\S")  # wide blanks elsewhere than after a stop

_ROLE = re.compile(r":[\w:+-]+:`~?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")
_QUOTED = re.compile(r"``([^`]*)``|`([^`]*)`_{0,2}|\*\*([^*\s][^*]*)\*\*|(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|cf|resp|a\.k\.a)\.(,?)", re.IGNORECASE)
_DOTTED = re.compile(r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\.([A-Za-z_]\w*)")
_UNDERSCORES_AROUND = re.compile(r"(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])")
_DASH = re.compile(r"\s+-{1,3}\s+")
_ASIDE = re.compile(r"(\w*)\s*[(\[]([^()\[\]]*)[)\]]")
_TAKES_A_VALUE = re.compile(
    r"(?i)a|an|the|of|to|as|is|are|be|by|or|and|in|with|than|like|from|for|"
    r"returns?|tuples?|lists?|pairs?|form|format|named"
)
_CUT = "\0"  # stands where a sentence lost something it needs

_BREAK = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z])")
_QUOTE = re.compile(r"[\"“”]|(?<!\w)['‘]|['’](?!\w)")
_TOKEN = re.compile(r"I/O|[A-Za-z0-9]+(?:[-'][A-Za-z0-9]+)*|[.,;:!?]|\S")
_WORD = re.compile(
    r"I/O|[A-Za-z]+\d{0,3}(?:[-'][A-Za-z]+)*|\d{1,4}(?:st|nd|rd|th)?(?:-[a-z]+)*|[a-z]+(?:-[a-z]+)*-\d{1,2}"
)
_STOPS = frozenset(".!?")
_MARKS = frozenset(",;:.!?")

# A sentence without any of these is a title, a list of names or a fragment …
_GLUE = _set(
    "a an the this that these those it its is are was be been can may will must should do does not no if "
    "when to of in on for with from by as at or and all any each which you"
)
# … and one that ends on these, or on a colon, went on in code.
_DANGLING = _set("a an the of to in on for with from by as or and is are be if that which eg ie vs return returns")


def stdlib_docs_file(cache: Path) -> Path:
    """A text file of `stdlib_sentences()`, made once for this Python. BadData if it has no sources."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = list(_sources(root))
    listing = "\n".join(f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in paths)
    version = f"{_VERSION} {platform.python_implementation()} {platform.python_version()}\n"
    key = hashlib.blake2b((version + listing).encode(), digest_size=8).hexdigest()
    name = "sentences.txt"

    def build(making: Path) -> None:
        sentences = stdlib_sentences(paths)
        if len(sentences) < _FEWEST:
            raise BadData(
                f"the corpus 'stdlib_docs' found only {len(sentences)} sentences in {root}: this Python "
                "comes without the source of its standard library; give data.corpus the path of a text file"
            )
        (making / name).write_text("\n".join(sentences) + "\n", encoding="utf-8", newline="\n")

    return built(cache / f"stdlib_docs-{key}", build, lambda folder: (folder / name).exists()) / name


def stdlib_sentences(paths: Iterable[Path] | None = None) -> list[str]:
    """The unique sentences in the source files `paths` (None: the standard library), ordered by hash."""
    if paths is None:
        paths = _sources(Path(sysconfig.get_path("stdlib")))
    found = {sentence for path in paths for text in _texts(path) for sentence in sentences_in(text)}
    return sorted(found, key=lambda sentence: hashlib.blake2b(sentence.encode(), digest_size=8).digest())


def sentences_in(text: str) -> Iterator[str]:
    """The sentences of one docstring or topic that read as English."""
    for number, block in enumerate(_PARAGRAPH.split(text)):
        for item in _items(block):
            # The line that says what a thing does often goes without its full stop.
            whole = number == 0 and "\n" not in block and item[-1:].isalnum()
            for piece in _BREAK.split(_plain(item + "." if whole else item)):
                if tokens := _tokens(piece.strip()):
                    yield " ".join(tokens).lower()


def _sources(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name for name in folders if name not in _ABSENT_SOMEWHERE and not name.startswith("config-")
        )
        for name in sorted(files):
            listed = name not in _ABSENT_SOMEWHERE and not name.startswith("_sysconfigdata")
            if name.endswith(".py") and listed and (path := Path(folder, name)).is_file():
                yield path


def _texts(path: Path) -> Iterator[str]:
    """The docstrings of a source file, or the topics of a file of topics."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    topics = path.parent.name == "pydoc_data"
    for node in ast.walk(tree):
        if topics and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _items(block: str) -> Iterator[str]:
    """The running text of a paragraph, its list items one by one, without code, fields and tables."""
    item: list[str] = []
    for line in block.split("\n"):
        bullet = _BULLET.match(line)
        skipped = _CODE.match(line) or _FIELD.match(line) or _TABLE.search(line.strip())
        if (bullet or skipped) and item:
            yield " ".join(item)
            item = []
        if not skipped:
            item.append(line[bullet.end() if bullet else 0 :].strip())
    if item:
        yield " ".join(item)


def _plain(text: str) -> str:
    """Without markup and asides, names as words: ``os.path.is_file()`` is "is file", __len__ is "len"."""
    text = _ROLE.sub(r"\1", text)
    text = _QUOTED.sub(lambda match: next(group for group in match.groups() if group is not None), text)
    text = _ABBREVIATION.sub(lambda match: match[1].replace(".", "") + match[2], text)
    for _ in range(2):  # asides in asides
        text = _ASIDE.sub(_without_aside, text)
    text = _UNDERSCORES_AROUND.sub("", _DOTTED.sub(r"\1", text)).replace("_", " ")
    return _DASH.sub(" , ", text.replace("—", " - "))


def _without_aside(match: re.Match) -> str:
    """The word before an aside. If it needs one, as in "return a tuple (a, b)", the sentence is cut."""
    word, aside = match.groups()
    return word + _CUT if aside.strip() and _TAKES_A_VALUE.fullmatch(word) else word


def _tokens(piece: str) -> list[str]:
    """Words and marks of a piece of text if it is a sentence of fair length, else none."""
    if not piece or piece[-1] not in _STOPS or not piece[0].isupper() or _CUT in piece:
        return []
    tokens = _TOKEN.findall(_QUOTE.sub("", piece))
    words = [token.lower() for token in tokens if token not in _MARKS]
    inner = itertools.pairwise(tokens)
    good = (
        MIN_WORDS <= len(words) <= MAX_WORDS
        and all(_WORD.fullmatch(token) for token in tokens if token not in _MARKS)
        and not _GLUE.isdisjoint(words)
        and words[-1] not in _DANGLING
        and not any(a in _STOPS or (a in _MARKS and b in _MARKS) for a, b in inner)
    )
    return tokens if good else []
