"""Which padded lengths to use: few shapes to compile, little padding to compute."""

from __future__ import annotations

import numpy as np


def bucket_edges(histogram: np.ndarray, buckets: int, batch_size: int = 1) -> tuple[int, ...]:
    """The at most `buckets` padded lengths that minimise the token slots of an epoch, ascending.

    histogram: (L + 1,) how many sentences have each length 0 … L. A bucket holds the lengths above the
    edge before it and up to its own; n sentences padded to T cost ceil(n / batch_size) · batch_size · T
    slots, which counts the empty rows of the last batch. Exact, by dynamic programming over the M lengths
    that occur: O(buckets · M²) time, O(M) memory.
    """
    lengths = np.flatnonzero(histogram)
    upto = np.concatenate([[0], np.cumsum(np.asarray(histogram, np.int64)[lengths])])
    best = np.full(len(lengths) + 1, np.inf)  # best[j]: cheapest cover of the j shortest lengths
    best[0] = 0.0
    cuts, totals = [], []
    for _ in range(min(buckets, len(lengths))):
        best, cut = _one_more_bucket(best, lengths, upto, batch_size)
        cuts.append(cut)
        totals.append(best[-1])
    return _trace(lengths, cuts[: int(np.argmin(totals)) + 1])


def _one_more_bucket(best, lengths, upto, batch_size):
    """best'[j] = min over i < j of best[i] + cost of a bucket for lengths i … j - 1, and the minimal i."""
    after, cut = np.full_like(best, np.inf), np.zeros(len(best), np.int64)
    for j in range(1, len(best)):
        rows = -(-(upto[j] - upto[:j]) // batch_size) * batch_size
        cost = best[:j] + rows * lengths[j - 1]
        cut[j] = np.argmin(cost)
        after[j] = cost[cut[j]]
    return after, cut


def _trace(lengths, cuts) -> tuple[int, ...]:
    edges, j = [], len(lengths)
    for cut in reversed(cuts):
        edges.append(int(lengths[j - 1]))
        j = cut[j]
    return tuple(reversed(edges))
