"""The stochastic recurrent neural network (Fraccaro et al. 2016).

    d_{t+1} = GRU(x_t, d_t)                                 d_1 = 0: deterministic, over the data alone
    z_t ~ p(z_t | z_{t-1}, d_t)                             z_0 = 0
    x_t ~ p(x_t | f_t),   f_t = decoder([z_t; d_t])

No latent enters d, so that it is computed for all steps and once for all particles, before the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .cells import GRULayer
from .likelihoods import BernoulliLikelihood, Likelihood
from .mlp import MLP
from .ppl import PPL
from .priors import ConditionalNormal
from .sequence import Step, at_the_mean
from .spec import Network, Spec


class SRNNModel(Spec):
    """The `[model]` table of an SRNN; sizes come from the data, the prior and the recurrence."""

    prior: ConditionalNormal = ConditionalNormal(dim=32, hidden=(64,), activation="relu")
    recurrent: GRULayer = GRULayer(hidden=64)
    decoder: MLP = MLP(hidden=(64,), activation="relu")
    likelihood: Likelihood = BernoulliLikelihood()

    def networks(self, width: int) -> dict[str, Network]:
        both = self.recurrent.hidden + self.prior.dim
        return {
            "prior": Network(self.prior, {"condition": both}),
            "recurrent": Network(self.recurrent, {"inputs": width}),
            "decoder": Network(self.decoder, {"inputs": both, "outputs": self.likelihood.features(width)}),
            "likelihood": Network(self.likelihood),
        }

    def started(self, weights: Mapping[str, np.ndarray], mean: np.ndarray) -> dict[str, np.ndarray]:
        """Initial weights for data of this mean (D,): d starts as if it read x − mean, the decoder's bias at the mean."""
        emitted = f"decoder.bias_{len(self.decoder.hidden)}"
        return at_the_mean(
            weights, mean, self.likelihood, emitted=emitted, read=("recurrent.weight_ih", "recurrent.bias_ih")
        )


class SRNNStep(Step):
    """`models.sequence.Step` of the SRNN; h_t is [d_t; z_{t-1}], and what `next` reads of x_t is d_{t+1}."""

    def __init__(self, ppl: PPL, nets: Mapping[str, Any]) -> None:
        self.ppl = ppl
        self.law, self.recurrent, self.decoder, self.likelihood = (
            ppl.module(name, nets[name]) for name in ("prior", "recurrent", "decoder", "likelihood")
        )
        self.dim, self.hidden = nets["prior"].spec.dim, nets["recurrent"].spec.hidden
        self._run: tuple[Any, Any, Any] = (None, None, None)

    def start(self, shape: tuple[int, ...]) -> Any:
        return self.ppl.zeros((*shape, self.hidden + self.dim))

    def inputs(self, x: Any, h: Any) -> Any:
        if self._run[0] is not x or self._run[1] is not h:
            self._run = x, h, self.recurrent(x, self._first(x, h))
        return self._run[2]

    def past(self, x: Any, h: Any) -> Any:
        """d_1 … d_T (T, B, H), of x (T, B, D) and h_1: x before each step."""
        return self.ppl.concatenate((self._first(x, h)[None], self.inputs(x, h)[:-1]), axis=0)

    def _first(self, x: Any, h: Any) -> Any:
        """d_1, of one particle where all see the same x."""
        first = h[..., : self.hidden]
        return first if x.ndim > 3 else first.reshape(-1, *first.shape[-2:])[0]

    def prior(self, h: Any) -> Any:
        return self.law(h)

    def emission(self, h: Any, v: Any) -> Any:
        return self.likelihood(self.decoder(self.ppl.concatenate((v, h[..., : self.hidden]))))

    def next(self, h: Any, v: Any, inputs: Any) -> Any:
        return self.ppl.concatenate((inputs, v))
