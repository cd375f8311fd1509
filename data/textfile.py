"""Reading a text file line by line: whatever its size, and refusing what is not one."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import BadData

_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BYTES_PER_WORD = 64  # a longer average over a whole line is no language


def sentences_of(path: Path, max_words: int) -> Iterator[str]:
    """One sentence a line, blanks made single; an empty line gives "".

    Memory is bounded by `max_words`, not by the file nor by its longest line. BadData for what cannot be
    opened, is no UTF-8 or no gzip, has a line of more than `max_words` words, or no sentence.
    """
    number, found = 0, False
    for number, line in enumerate(_lines(path, max_words), 1):
        words = _decoded(line, path, number).split()
        if len(words) > max_words:
            raise _too_long(path, number, f"{len(words):,} words", max_words)
        found = found or bool(words)
        yield " ".join(words)
    if not found:
        what = f"only empty lines ({number})" if number else "nothing in it"
        raise BadData(f"{path} has {what}: a text file with one sentence a line would be right")


def open_binary(path: Path) -> BinaryIO:
    """The file's bytes, unpacked if it is a gzip file. BadData if it cannot be opened."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise BadData(f"{path} is no ordinary file, and it is read more than once: save it to one first")
    try:
        with path.open("rb") as file:
            head = file.read(2)
        packed = head == _GZIP
        if path.suffix == ".gz" and not packed:
            raise BadData(f"{path} is named .gz but is no gzip file: gzip it, or drop the .gz if it is plain text")
        if head in _UTF16:
            raise BadData(f"{path} is UTF-16 text: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
        return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]
    except FileNotFoundError as error:
        raise BadData(f"there is no file {path}: the path of a UTF-8 text file would be right") from error
    except IsADirectoryError as error:
        raise BadData(f"{path} is a folder: a text file with one sentence a line would be right") from error
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error.strerror}): a readable text file would be right") from error


def _lines(path: Path, max_words: int) -> Iterator[bytes]:
    limit = max(1 << 16, _BYTES_PER_WORD * max_words)
    number = 0
    try:
        with open_binary(path) as file:
            while line := file.readline(limit):
                number += 1
                if len(line) == limit and not line.endswith(b"\n"):
                    _decoded(line[: limit - 4], path, number, whole=False)
                    raise _too_long(
                        path,
                        number,
                        f"over {max(len(line.split()) - 1, 1):,} words or {limit:,} bytes",
                        max_words,
                    )
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadData(f"{path} is a damaged gzip file after line {number} ({error}): copy or pack it again") from error


def _decoded(line: bytes, path: Path, number: int, whole: bool = True) -> str:
    if b"\0" in line:
        raise BadData(f"line {number} of {path} has a NUL byte, so it is binary: a UTF-8 text file would be right")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        if not whole and error.end >= len(line) - 3:  # a character cut by the limit, no fault of the file
            return ""
        byte = f"byte {error.start + 1} of line {number} of {path} (0x{line[error.start]:02x})"
        raise BadData(f"{byte} is not UTF-8: convert the file, say from Latin-1 with iconv -f L1 -t UTF-8") from error


def _too_long(path: Path, number: int, size: str, max_words: int) -> BadData:
    return BadData(
        f"line {number} of {path} has {size}, more than data.max_words = {max_words:,}: "
        "put one sentence on a line, or raise data.max_words"
    )
