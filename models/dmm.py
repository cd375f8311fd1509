"""The deep Markov model (Krishnan et al. 2017).

    z_t ~ p(z_t | z_{t-1})     a gated transition, z_0 learned
    x_t ~ p(x_t | f_t),   f_t = emitter(z_t)

Nothing deterministic carries the past: all of it is in z.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .likelihoods import BernoulliLikelihood, Likelihood
from .mlp import MLP
from .ppl import PPL
from .priors import GatedTransition
from .sequence import Step, at_the_mean
from .spec import Network, Spec


class DMMModel(Spec):
    """The `[model]` table of a deep Markov model; sizes come from the data and the prior."""

    prior: GatedTransition = GatedTransition(dim=100)
    emitter: MLP = MLP(hidden=(100, 100), activation="relu")
    likelihood: Likelihood = BernoulliLikelihood()

    def networks(self, width: int) -> dict[str, Network]:
        sizes = {"inputs": self.prior.dim, "outputs": self.likelihood.features(width)}
        return {
            "prior": Network(self.prior),
            "emitter": Network(self.emitter, sizes),
            "likelihood": Network(self.likelihood),
        }

    def started(self, weights: Mapping[str, np.ndarray], mean: np.ndarray) -> dict[str, np.ndarray]:
        """Initial weights for data of this mean (D,), where the emitter's bias starts."""
        emitted = f"emitter.bias_{len(self.emitter.hidden)}"
        return at_the_mean(weights, mean, self.likelihood, emitted=emitted)


class DMMStep(Step):
    """`models.sequence.Step` of the deep Markov model; h_t is z_{t-1}."""

    def __init__(self, ppl: PPL, nets: Mapping[str, Any]) -> None:
        self.law, self.emitter, self.likelihood = (
            ppl.module(name, nets[name]) for name in ("prior", "emitter", "likelihood")
        )
        self.dim = nets["prior"].spec.dim

    def start(self, shape: tuple[int, ...]) -> Any:
        return self.law.start(shape)

    def prior(self, h: Any) -> Any:
        return self.law(h)

    def emission(self, h: Any, v: Any) -> Any:
        return self.likelihood(self.emitter(v))

    def next(self, h: Any, v: Any, inputs: None) -> Any:
        return v
