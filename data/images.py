"""MNIST, from the four gzip files in IDX format that everyone has: digits as rows of 784 grey values in [0, 1]."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from .corpora import data_folder
from .errors import BadData

VALID = 10_000
"""The last so many of the 60,000 training images are for validation."""


def mnist() -> dict[str, dict[str, np.ndarray]]:
    """Split → {"x": (N, 784) float32}: 50,000 train, 10,000 valid, 10,000 test. Read from GUIDEBOOK_DATA/mnist.

    Raises:
        BadData: no such folder, or a file that is missing, damaged, or no IDX file of 28 × 28 bytes.
    """
    folder = data_folder()
    if folder is None:
        raise BadData(
            "the corpus 'mnist' is not shipped and GUIDEBOOK_DATA is not set: point it at a folder with mnist/"
        )
    train, test = (_images(folder / "mnist" / f"{name}-images-idx3-ubyte.gz") for name in ("train", "t10k"))
    splits = {"train": train[:-VALID], "valid": train[-VALID:], "test": test}
    return {split: {"x": images} for split, images in splits.items()}


def _images(path: Path) -> np.ndarray:
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise BadData(f"the corpus 'mnist' needs {path}, which is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path} is a damaged gzip file ({error}): copy it again") from error
    magic, count, *size = np.frombuffer(content[:16].ljust(16, b"\0"), ">u4").tolist()
    if magic != 2051 or size != [28, 28] or len(content) != 16 + 784 * count:
        raise BadData(f"{path} is no IDX file of 28 × 28 images")
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 784).astype(np.float32) / 255
