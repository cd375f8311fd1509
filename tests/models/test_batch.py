"""What a story sees of its data."""

import numpy as np
import pytest

from guidebook.models import Batch


def test_arrays_by_name():
    batch = Batch({"x": np.arange(3), "weight": np.array([1.0, 1.0, 0.0])}, data_size=10)
    assert batch.data_size == 10
    assert batch.x.tolist() == [0, 1, 2]
    assert batch.real.tolist() == [True, True, False]


def test_a_missing_array_is_named_with_those_there_are():
    batch = Batch({"x": np.arange(3), "weight": np.ones(3)}, data_size=3)
    with pytest.raises(AttributeError, match="no array 'y'; it has x, weight"):
        _ = batch.y
