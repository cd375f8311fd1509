"""The files of a run folder. Writes are atomic: a reader finds the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..models.errors import BadInput, FailedRun

FORMAT = 1
"""Of a run folder: raised whenever an older reader would misread a newer one."""


def write(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`, or leaves it as it was.

    Raises:
        FailedRun: the disk is full or the folder is not writable.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise FailedRun(
            f"{path} could not be saved: {error.strerror or error}; what was saved before is untouched"
        ) from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any] | None = None) -> None:
    """Arrays by name, with a JSON object beside them in the header, in one safetensors file."""
    metadata = {"format": str(FORMAT), "about": json.dumps(about or {})}
    write(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `write_arrays` wrote.

    Raises:
        BadInput: missing, truncated, no safetensors file, or of a newer format.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if int(metadata.get("format", 0)) > FORMAT:
                raise BadInput(f"{path} was written by a newer guidebook (format {metadata['format']}): upgrade to read it")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata.get("about", "{}"))  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise BadInput(f"{path.parent} is no complete run: {path.name} is missing") from None
    except (SafetensorError, OSError, ValueError) as error:
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
    """The lines of a metrics file; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
