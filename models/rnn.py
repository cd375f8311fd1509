"""The recurrent network without a latent, RNN-Gauss and RNN-GMM in Chung et al. (2015): the VRNN's baseline.

    x_t ~ p(x_t | f_t),   f_t = decoder(h_t)      Bernoulli, Gaussian or a mixture of Gaussians
    h_{t+1} = cell(φ_x(x_t), h_t)                 LSTM or GRU

Its likelihood is exact. To be run forward and filtered as the others are, its step has a latent of no dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from .batch import Batch
from .cells import Cell, LSTMCell
from .likelihoods import BernoulliLikelihood, Likelihood
from .mlp import MLP
from .ppl import PPL
from .sequence import State, Step, across, at_the_mean
from .spec import Network, Spec

SITES = {"x": ("x_dim",)}


class RNNModel(Spec):
    """The `[model]` table of an RNN; sizes come from the data and the cell."""

    inputs: MLP = Field(default=MLP(hidden=(32,), activation="relu", activate_outputs=True), description="φ_x")
    features: PositiveInt = Field(default=32, description="width of φ_x(x)")
    decoder: MLP = MLP(hidden=(32,), activation="relu")
    cell: Cell = LSTMCell(hidden=32)
    likelihood: Likelihood = BernoulliLikelihood()

    def networks(self, width: int) -> dict[str, Network]:
        hidden, outputs = self.cell.hidden, self.likelihood.features(width)
        return {
            "inputs": Network(self.inputs, {"inputs": width, "outputs": self.features}),
            "decoder": Network(self.decoder, {"inputs": hidden, "outputs": outputs}),
            "cell": Network(self.cell, {"inputs": self.features, "latent": 0}),
            "likelihood": Network(self.likelihood),
        }

    def started(self, weights: Mapping[str, np.ndarray], mean: np.ndarray) -> dict[str, np.ndarray]:
        """Initial weights for data of this mean (D,): φ_x starts as if it read x − mean, the decoder's bias at the mean."""
        emitted = f"decoder.bias_{len(self.decoder.hidden)}"
        return at_the_mean(weights, mean, self.likelihood, emitted=emitted, read=("inputs.weight_0", "inputs.bias_0"))


class RNNStep(Step):
    """`models.sequence.Step` of the RNN; h_t is what the cell carries, its first part the features."""

    dim = 0

    def __init__(self, ppl: PPL, nets: Mapping[str, Any]) -> None:
        self.ppl = ppl
        self.phi_x, self.decoder, self.cell, self.likelihood = (
            ppl.module(name, nets[name]) for name in ("inputs", "decoder", "cell", "likelihood")
        )
        self.advance = self.cell()

    def start(self, shape: tuple[int, ...]) -> State:
        return self.cell.start(shape)

    def inputs(self, x: Any, h: Any) -> Any:
        return self.cell.project(self.phi_x(x))

    def prior(self, h: State) -> Any:
        nothing = self.ppl.zeros((*h[0].shape[:-1], 0))
        return self.ppl.dist.Normal(nothing, nothing + 1).to_event(1)

    def emission(self, h: State, v: Any) -> Any:
        return self.likelihood(self.decoder(h[0]))

    def next(self, h: State, v: Any, inputs: Any) -> State:
        return self.advance(inputs, v, h)


def rnn(ppl: PPL, batch: Batch, nets: Mapping[str, Any]) -> None:
    """p(x), one row a sequence; batches hold x (B, T, D) and mask (B, T)."""
    step, x = RNNStep(ppl, nets), batch.x.swapaxes(0, 1)
    with across(ppl, batch):
        path = ppl.unroll(step, x)
        ppl.sample("x", step.emission(*path.along(ppl.zeros((*x.shape[:2], 0)))), obs=x)
