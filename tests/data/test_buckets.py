from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from guidebook.data import bucket_edges

HISTOGRAMS = st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any)


def cost(histogram, edges, batch_size):
    """Token slots of an epoch, bucket by bucket."""
    total, above = 0, -1
    for edge in edges:
        count = sum(histogram[above + 1 : edge + 1])
        total += -(-count // batch_size) * batch_size * edge
        above = edge
    return total


@given(HISTOGRAMS, st.integers(1, 5), st.integers(1, 16))
@settings(max_examples=200)
def test_no_other_edges_cost_less(histogram, buckets, batch_size):
    histogram = [0, *histogram]  # no sentence is shorter than its eos
    edges = bucket_edges(np.array(histogram), buckets, batch_size)
    lengths = [length for length, count in enumerate(histogram) if count]
    others = [
        (*inner, lengths[-1]) for k in range(min(buckets, len(lengths))) for inner in combinations(lengths[:-1], k)
    ]
    assert edges in others
    assert cost(histogram, edges, batch_size) == min(cost(histogram, other, batch_size) for other in others)


def test_enough_buckets_pad_nothing():
    assert bucket_edges(np.array([0, 3, 0, 5, 1]), 8) == (1, 3, 4)


def test_a_bucket_that_saves_nothing_is_not_opened():
    # 3 + 3 sentences fill one batch of 8: two buckets would compute 8 · 4 + 8 · 5 slots in place of 8 · 5.
    assert bucket_edges(np.array([0, 0, 0, 0, 3, 3]), 8, batch_size=8) == (5,)
