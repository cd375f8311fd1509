"""MNIST's format, its splits, and binarised batches."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from guidebook.data import ArrayBatches, BadData, mnist


def idx(images: np.ndarray) -> bytes:
    return gzip.compress(np.array([2051, len(images), 28, 28], ">u4").tobytes() + images.tobytes(), mtime=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    for name, count in (("train", 10_020), ("t10k", 7)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (tmp_path / "mnist" / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(images))
    return tmp_path / "mnist"


def test_splits_are_grey_values(folder):
    splits = mnist()
    assert {split: table["x"].shape for split, table in splits.items()} == {
        "train": (20, 784),
        "valid": (10_000, 784),
        "test": (7, 784),
    }
    x = splits["train"]["x"]
    assert (x.dtype, x.min() >= 0, x.max() <= 1) == (np.float32, True, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing"),
        (b"no gzip", "damaged"),
        (gzip.compress(b"short", mtime=0), "no IDX"),
        (idx(np.zeros((2, 28, 27), np.uint8)), "no IDX"),
    ],
)
def test_what_is_no_mnist_is_named(folder, content, message):
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadData, match=message):
        mnist()


def test_binarised_batches_are_draws_by_seed_and_step():
    x = np.tile(np.array([[0.0, 0.3, 1.0]], np.float32), (4000, 1))
    batches = ArrayBatches({"x": x}, batch_size=2000, seed=1, binarise=True)
    first, again, later = batches.batch(0)["x"], batches.batch(0)["x"], batches.batch(2)["x"]
    assert set(np.unique(first)) == {0.0, 1.0}
    np.testing.assert_array_equal(first, again)
    assert (first != later).any()
    assert (first[:, 0] == 0).all()
    assert (first[:, 2] == 1).all()
    assert abs(first[:, 1].mean() - 0.3) < 4.5 * np.sqrt(0.21 / 2000)
    still = ArrayBatches({"x": x}, batch_size=2000, seed=1, shuffle=False, binarise=True)
    np.testing.assert_array_equal(still.batch(0)["x"], still.batch(2)["x"])
