"""The one argument every story gets besides its networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Batch:
    """Rows of a data set, as a story reads them: `batch.targets`, `batch.lengths`, …

    Attributes:
        data_size: N, rows of the whole data set; with the plate's `subsample` it gives the scale N / B.
        index: (B,) position of each row in the data set.
        real: (B,) False for the filler rows that complete a batch; a story masks its plate with it.
    """

    def __init__(self, arrays: Mapping[str, Any], data_size: int) -> None:
        self.arrays = dict(arrays)
        self.data_size = data_size

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["arrays"][name]
        except KeyError:
            raise AttributeError(f"the batch has no array {name!r}; it has {', '.join(self.arrays)}") from None

    @property
    def real(self) -> Any:
        return self.arrays["weight"] > 0
