import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guidebook.data import Permutation

KEYS = st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4)


@given(st.integers(1, 3000), KEYS)
@settings(max_examples=60)
def test_it_is_a_bijection(size, key):
    image = Permutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(image), np.arange(size))


@given(st.integers(1, 2**62), KEYS, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8))
@settings(max_examples=60)
def test_one_index_and_many_agree_at_any_size(size, key, places):
    permutation = Permutation(size, key)
    index = [int(place * size) % size for place in places]
    image = permutation(np.array(index))
    assert [permutation(i) for i in index] == image.tolist()
    assert image.min() >= 0
    assert image.max() < size
    assert len(set(image.tolist())) == len(set(index))


def test_every_order_of_three_is_as_likely():
    orders = np.array([Permutation(3, (k,))(np.arange(3)) for k in range(6000)])
    counts = np.unique(orders @ [9, 3, 1], return_counts=True)[1]
    assert len(counts) == 6
    # Chi-square with 5 degrees of freedom: 26 is exceeded once in ten thousand keys.
    assert ((counts - 1000) ** 2 / 1000).sum() < 26


@pytest.mark.parametrize("size", [10, 97])
def test_every_place_is_as_likely(size):
    keys = 200 * size
    first = np.array([Permutation(size, (k, 5))(0) for k in range(keys)])
    error = (np.bincount(first, minlength=size) - keys / size) / np.sqrt(keys / size)
    assert np.abs(error).max() < 5


def test_neighbours_part():
    image = Permutation(100_000, (1,))(np.arange(100_000))
    assert (np.abs(np.diff(image)) == 1).mean() < 1e-4
    assert abs(np.corrcoef(image, np.arange(100_000))[0, 1]) < 5 / np.sqrt(100_000)


@pytest.mark.parametrize("index", [-1, 7])
def test_an_index_outside_is_refused(index):
    with pytest.raises(IndexError):
        Permutation(7, (0,))(index)
    with pytest.raises(IndexError):
        Permutation(7, (0,))(np.array([0, index]))
    with pytest.raises(ValueError, match="0 things"):
        Permutation(0, (0,))
