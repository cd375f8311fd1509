"""The pseudo-inputs of a VampPrior that are data: drawn when a run begins, and kept in its weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..data import ArrayBatches
from ..engines.seeds import derive
from ..models.errors import BadInput
from ..models.priors import VampPrior
from ..models.spec import Network
from .datasets import ArrayData, Dataset, TextData


def pseudo_inputs(networks: Mapping[str, Network], dataset: Dataset, seed: int) -> dict[str, np.ndarray]:
    """Weight → rows of the training data, for every VampPrior that asks for such: the same on both engines.

    Sentences (K, length + 2) as ids; vectors (K, D) as a batch has them, so drawn where `data.binarise` draws them.

    Raises:
        BadInput: the data have fewer rows than that, or neither sentences nor an array x.
    """
    return {
        f"{name}.inputs": _rows(net.spec, dataset, derive(seed, f"{name}.inputs"))
        for name, net in networks.items()
        if isinstance(net.spec, VampPrior) and net.spec.inputs == "data"
    }


def _rows(spec: VampPrior, dataset: Dataset, seed: int) -> np.ndarray:
    if isinstance(dataset, TextData):
        sentences, width = dataset.corpus.train, spec.length + 1
        short = np.flatnonzero(sentences.lengths <= width)
        what = f"sentences of at most length = {spec.length} words"
        return sentences.rows(_chosen(short, spec, seed, what), width)
    if not isinstance(dataset, ArrayData) or "x" not in dataset.splits["train"]:
        raise BadInput("the prior 'vamp' with inputs = 'data' draws sentences, or rows of an array x: the data have none")
    x = dataset.splits["train"]["x"]
    x = x[_chosen(np.arange(len(x)), spec, seed, "rows")]
    return ArrayBatches({"x": x}, batch_size=len(x), seed=seed, shuffle=False, binarise=dataset.binarise).batch(0)["x"]


def _chosen(rows: np.ndarray, spec: VampPrior, seed: int, what: str) -> np.ndarray:
    if spec.components > len(rows):
        raise BadInput(
            f"the prior 'vamp' with inputs = 'data' draws components = {spec.components} different rows, and the training "
            f"data have {len(rows)} {what}: no more components than that would be right"
        )
    return np.sort(np.random.default_rng(seed).choice(rows, spec.components, replace=False))
