"""Pseudo-random orders of n things that need no array of n numbers.

A Feistel network is a bijection of the b-bit numbers whatever its round function; with b the bit length
of n - 1 its domain is less than twice too large, and walking along the cycle until the number falls below
n makes it a bijection of 0 … n - 1 (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Indices = TypeVar("Indices", int, np.ndarray)

_ROUNDS = 8
_LOW = 0xFFFFFFFF  # products of 32-bit numbers fit NumPy's 64 bits and Python's any: one code for both


class Permutation:
    """A bijection of 0 … `size` - 1 drawn by `key` (any integers), in O(1) memory.

    Every place is equally likely for every index; for a handful of things not every order occurs.
    """

    def __init__(self, size: int, key: Sequence[int]) -> None:
        if not 0 < size <= 1 << 62:
            raise ValueError(f"a permutation of {size} things: between 1 and 2**62 would be right")
        bits = (size - 1).bit_length()
        self.size = size
        self._left, self._right = bits // 2, bits - bits // 2
        self._right_mask = (1 << self._right) - 1
        words = np.random.SeedSequence([entry & ((1 << 64) - 1) for entry in key]).generate_state(2 * _ROUNDS)
        keys = [(int(a), int(b) | 1) for a, b in words.reshape(_ROUNDS, 2)]
        self._rounds = list(zip(keys[::2], keys[1::2], strict=True))

    def __len__(self) -> int:
        return self.size

    def __call__(self, index: Indices) -> Indices:
        """Image of one index, or of an array of them (any integer dtype; int64 comes back)."""
        return self._many(index) if isinstance(index, np.ndarray) else self._one(int(index))

    def _one(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} of a permutation of {self.size}")
        index = self._encipher(index)
        while index >= self.size:
            index = self._encipher(index)
        return index

    def _many(self, index: np.ndarray) -> np.ndarray:
        if index.size and (index.min() < 0 or index.max() >= self.size):
            raise IndexError(f"an index outside a permutation of {self.size}")
        image = self._encipher(index.astype(np.uint64))
        while (outside := image >= self.size).any():
            image[outside] = self._encipher(image[outside])
        return image.astype(np.int64)

    def _encipher(self, x):
        # The halves take turns instead of swapping, so that they may differ in width.
        left, right = x >> self._right, x & self._right_mask
        for even, odd in self._rounds:
            left = left ^ _hash(right, even, 32 - self._left)
            right = right ^ _hash(left, odd, 32 - self._right)
        return (left << self._right) | right


def _hash(x, key: tuple[int, int], shift: int):
    """The 32 - `shift` high bits of a 32-bit product (multiply-shift hashing, Dietzfelbinger et al. 1997)."""
    return (((x ^ key[0]) * key[1]) & _LOW) >> shift
