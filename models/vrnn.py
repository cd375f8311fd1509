"""The variational recurrent neural network (Chung et al. 2015).

    z_t ~ p(z_t | h_t)                                     learned from h_t; N(0, I) in VRNN-I
    x_t ~ p(x_t | f_t),   f_t = decoder([φ_z(z_t); h_t])   Bernoulli, Gaussian or a mixture of Gaussians
    h_{t+1} = cell([φ_x(x_t); φ_z(z_t)], h_t)              LSTM or GRU

Outside the loop over time stand φ_x and its product with the cell's weights, which need no latent, and the prior, the
decoder and the likelihood, which need all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, PositiveInt

from .cells import Cell, LSTMCell
from .likelihoods import BernoulliLikelihood, Likelihood
from .mlp import MLP
from .ppl import PPL
from .priors import ConditionalNormal, LearnedNormal, StandardNormal
from .sequence import State, Step, at_the_mean
from .spec import Network, Spec

StepPrior = Annotated[
    ConditionalNormal | StandardNormal | LearnedNormal,
    Field(discriminator="kind"),
    BeforeValidator(lambda value: {"kind": "conditional_normal", **value} if isinstance(value, dict) else value),
]
"""p(z_t | h_t), or the same law at every step."""


class VRNNModel(Spec):
    """The `[model]` table of a VRNN; sizes come from the data, the prior and the cell."""

    prior: StepPrior = ConditionalNormal(dim=32, hidden=(32,), activation="relu")
    inputs: MLP = Field(default=MLP(hidden=(32,), activation="relu", activate_outputs=True), description="φ_x")
    latents: MLP = Field(default=MLP(hidden=(32,), activation="relu", activate_outputs=True), description="φ_z")
    features: PositiveInt = Field(default=32, description="width of φ_x(x) and of φ_z(z)")
    decoder: MLP = MLP(hidden=(32,), activation="relu")
    cell: Cell = LSTMCell(hidden=32)
    likelihood: Likelihood = BernoulliLikelihood()

    def networks(self, width: int) -> dict[str, Network]:
        features, hidden = self.features, self.cell.hidden
        outputs = self.likelihood.features(width)
        conditional = isinstance(self.prior, ConditionalNormal)
        return {
            "prior": Network(self.prior, {"condition": hidden} if conditional else {}),
            "inputs": Network(self.inputs, {"inputs": width, "outputs": features}),
            "latents": Network(self.latents, {"inputs": self.prior.dim, "outputs": features}),
            "decoder": Network(self.decoder, {"inputs": features + hidden, "outputs": outputs}),
            "cell": Network(self.cell, {"inputs": features, "latent": features}),
            "likelihood": Network(self.likelihood),
        }

    def started(self, weights: Mapping[str, np.ndarray], mean: np.ndarray) -> dict[str, np.ndarray]:
        """Initial weights for data of this mean (D,): φ_x starts as if it read x − mean, the decoder's bias at the mean."""
        emitted = f"decoder.bias_{len(self.decoder.hidden)}"
        return at_the_mean(weights, mean, self.likelihood, emitted=emitted, read=("inputs.weight_0", "inputs.bias_0"))


class VRNNStep(Step):
    """`models.sequence.Step` of the VRNN; h_t is what the cell carries, its first part the features."""

    def __init__(self, ppl: PPL, nets: Mapping[str, Any]) -> None:
        self.ppl = ppl
        self.law, self.phi_x, self.phi_z, self.decoder, self.cell, self.likelihood = (
            ppl.module(name, nets[name]) for name in ("prior", "inputs", "latents", "decoder", "cell", "likelihood")
        )
        self.advance = self.cell()
        self.spec = nets["prior"].spec
        self.dim = self.spec.dim
        self._seen: tuple[Any, Any] = (None, None)

    def start(self, shape: tuple[int, ...]) -> State:
        return self.cell.start(shape)

    def inputs(self, x: Any, h: Any) -> Any:
        return self.cell.project(self.features(x))

    def features(self, x: Any) -> Any:
        """φ_x(x), which the guide reads too."""
        if self._seen[0] is not x:
            self._seen = x, self.phi_x(x)
        return self._seen[1]

    def prior(self, h: State) -> Any:
        return self.law(h[0]) if isinstance(self.spec, ConditionalNormal) else self.law()

    def read(self, z: Any) -> Any:
        return self.phi_z(z)

    def emission(self, h: State, v: Any) -> Any:
        return self.likelihood(self.decoder(self.ppl.concatenate((v, h[0]))))

    def next(self, h: State, v: Any, inputs: Any) -> State:
        return self.advance(inputs, v, h)
