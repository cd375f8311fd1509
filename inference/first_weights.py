"""Weights that depend on the data when a run begins."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..data import ArrayBatches
from ..engines.seeds import derive
from ..guides import Pair
from ..models.errors import BadInput
from ..models.measures import LengthLaw
from ..models.priors import VampPrior
from .datasets import ArrayData, Dataset, TextData
from .recipe import Recipe


def first_weights(
    weights: Mapping[str, np.ndarray], recipe: Recipe, pair: Pair, dataset: Dataset
) -> dict[str, np.ndarray]:
    """Initial weights for these data: as the model says, the training sentences' lengths, and rows of the training split for
    a VampPrior of data.

    The same rows on both engines: sentences (K, length + 2) as ids; vectors (K, D) as a batch has them, so drawn where
    `data.binarise` draws them.

    Raises:
        BadInput: the data have fewer than K rows, or neither sentences nor an array x.
    """
    if of_model := getattr(recipe.model, "started", None):
        weights = of_model(weights, getattr(dataset, "features", None))
    networks = pair.realisable(recipe.model, recipe.guide, dataset.width) if pair.engine is None else {}
    lengths = {
        f"{name}.log_shares": net.spec.log_shares(dataset.corpus.train.lengths)
        for name, net in networks.items()
        if isinstance(net.spec, LengthLaw) and isinstance(dataset, TextData)
    }
    return (
        dict(weights)
        | lengths
        | {
            f"{name}.inputs": _rows(net.spec, dataset, derive(recipe.fit.seed, f"{name}.inputs"))
            for name, net in networks.items()
            if isinstance(net.spec, VampPrior) and net.spec.inputs == "data"
        }
    )


def _rows(spec: VampPrior, dataset: Dataset, seed: int) -> np.ndarray:
    if isinstance(dataset, TextData):
        sentences, width = dataset.corpus.train, spec.length + 1
        short = np.flatnonzero(sentences.lengths <= width)
        what = f"sentences of at most length = {spec.length} words"
        return sentences.rows(_chosen(short, spec, seed, what), width)
    if not isinstance(dataset, ArrayData) or "x" not in dataset.splits["train"]:
        raise BadInput(
            "the prior 'vamp' with inputs = 'data' draws sentences, or rows of an array x: the data have none"
        )
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
