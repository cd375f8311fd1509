"""The files of a run folder. Writes are atomic: a reader finds the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..models.errors import BadInput, FailedRun

_UMASK = os.umask(0)
os.umask(_UMASK)

FORMAT = 1
"""Of a run folder: raised whenever an older reader would misread a newer one."""


def write(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`, or leaves it as it was.

    Raises:
        FailedRun: the disk is full or the folder is not writable.
    """
    partial = path.with_name(f".{path.name}.partial")  # always the same: what a kill leaves, the next write takes over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise FailedRun(
            f"{path} could not be saved: {error.strerror or error}; what was saved before is untouched"
        ) from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any] | None = None) -> None:
    """Arrays by name, with a JSON object beside them in the header, in one safetensors file."""
    metadata = {"format": str(FORMAT), "about": json.dumps(about or {})}
    write(path, save({name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata))


def read_arrays(path: Path, *, arrays: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `write_arrays` wrote; without `arrays`, only what stands beside them.

    Raises:
        BadInput: missing, truncated, no safetensors file, or of a newer format.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if "format" not in metadata:
                raise BadInput(f"{path} was not written by guidebook: it names no format")
            if int(metadata["format"]) > FORMAT:
                raise BadInput(
                    f"{path} was written by a newer guidebook (format {metadata['format']}): upgrade to read it"
                )
            names = file.keys() if arrays else ()
            about = json.loads(metadata["about"])
            if not isinstance(about, dict):
                raise BadInput(f"{path} is damaged: its header says {about!r} of the arrays")
            return {name: file.get_tensor(name) for name in names}, about
    except FileNotFoundError:
        raise BadInput(f"{path.parent} is no complete run: {path.name} is missing") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is truncated or not a safetensors file: {error}") from None


class Metrics:
    """`metrics.jsonl`: one JSON object a line, appended; on resume, lines past the checkpoint are dropped."""

    def __init__(self, path: Path, *, keep_until: int = 0) -> None:
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] <= keep_until]
        write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def append(self, line: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise FailedRun(f"{self.path} could not be written: {error.strerror or error}") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a line cut off by a kill ends it."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or "kind" not in line or not isinstance(line.get("step"), int):
            break
        found.append(line)
    return found
