import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidebook.data import ArrayBatches, BadData, load_arrays


@given(st.integers(1, 50), st.integers(1, 50), st.booleans(), st.integers(0, 3))
def test_an_epoch_has_every_row_once(count, batch_size, shuffle, epoch):
    batch_size = min(batch_size, count)
    arrays = {"x": np.arange(count * 3).reshape(count, 3), "y": -np.arange(count)}
    source = ArrayBatches(arrays, batch_size=batch_size, shuffle=shuffle)
    seen = []
    for step in range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch):
        batch = source.batch(step)
        assert batch["x"].shape == (batch_size, 3)
        assert np.array_equal(batch["x"], arrays["x"][batch["index"]])
        assert np.array_equal(batch["y"], -batch["index"])
        assert batch["weight"].dtype == np.float32
        seen += batch["index"][batch["weight"] == 1].tolist()
    assert sorted(seen) == list(range(count))
    if not shuffle:
        assert seen == list(range(count))


def test_the_interface_is_that_of_sentences():
    source = ArrayBatches({"x": np.zeros((10, 2))}, batch_size=4, seed=3)
    assert (source.data_size, source.steps_per_epoch, len(source.shapes)) == (10, 3, 1)
    streamed = list(source.stream(1, 7))
    assert all(np.array_equal(b["index"], source.batch(s)["index"]) for s, b in enumerate(streamed, 1))
    assert "x (10, 2)" in repr(source)


def test_arrays_are_read_back(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.eye(3), names=np.array(["a", "bc", "d"]))
    arrays = load_arrays(tmp_path / "data.npz")
    assert arrays["x"].shape == (3, 3)
    assert arrays["names"].tolist() == ["a", "bc", "d"]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({}, "has no arrays"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, "differ in rows: x has 3, y has 4"),
        ({"x": np.zeros((0, 4))}, "'x' .* is empty"),
        ({"x": np.array(3.0)}, "'x' .* is a single number"),
        ({"x": np.array([{}, "text"])}, "'x' .* holds Python objects"),
        ({"x": np.ones(2), "y": np.array([1, np.nan])}, "'y' .* 1 values that are NaN or infinite .*row 1"),
        ({"weight": np.ones(2)}, "'weight' .* takes a name that batches use"),
    ],
)
def test_arrays_that_make_no_batch_are_refused(arrays, says, tmp_path):
    with pytest.raises(BadData, match=says):
        ArrayBatches(arrays, batch_size=1)
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(BadData, match=says):
        load_arrays(tmp_path / "data.npz")


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\3\4 cut short"])
def test_a_file_that_is_no_archive_is_refused(content, tmp_path):
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadData, match=r"data\.npz .*would be right|data\.npz .*savez"):
        load_arrays(path)


def test_one_array_alone_has_no_name(tmp_path):
    np.save(tmp_path / "data.npy", np.ones(3))
    with pytest.raises(BadData, match="one unnamed array"):
        load_arrays(tmp_path / "data.npy")


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(BadData, match="batch_size = 5 is larger than the training split, which has 3"):
        ArrayBatches({"x": np.ones(3)}, batch_size=5)
    assert ArrayBatches({"x": np.ones(3)}, batch_size=5, shuffle=False).batch(0)["weight"].sum() == 3
