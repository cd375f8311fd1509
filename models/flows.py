"""Normalising flows: layers that are invertible, with a Jacobian determinant that costs no more than the layer.

Size from the surroundings: `latent` Z, and `features` H of a context h that every layer reads (0: none). The networks
of coupling and inverse-autoregressive layers have one hidden layer; where weights are zero is `masks`:

    [t, s] = W_out tanh(W_in z + C h + b_in) + b_out
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from .spec import Spec, Weight


class FlowSpec(Spec):
    """What every flow has."""

    kind: str
    layers: PositiveInt = Field(default=2, description="layers, one after the other")
    initial_scale: PositiveFloat = Field(default=0.01, description="weights start uniform in ± this")


class PlanarFlow(FlowSpec):
    """z + u tanh(wᵀz + b), wᵀu kept above −1 (Rezende & Mohamed 2015, §4.1 and A.1); [u, w, b] = C h + c."""

    kind: Literal["planar"] = "planar"

    def layout(self, *, latent: int, features: int = 0) -> dict[str, Weight]:
        weights = {}
        for layer in range(self.layers):
            weights[f"bias_{layer}"] = Weight((2 * latent + 1,), self.initial_scale)
            if features:
                weights[f"context_{layer}"] = Weight((2 * latent + 1, features), self.initial_scale)
        return weights


class MaskedFlow(FlowSpec):
    """What flows with a masked network have."""

    triangular: ClassVar[bool]
    """Whether each dimension reads those before it; else the even ones read the odd ones, and in turn."""

    hidden: PositiveInt = Field(default=64, description="M, units of the hidden layer")

    def layout(self, *, latent: int, features: int = 0) -> dict[str, Weight]:
        weights = {}
        for layer in range(self.layers):
            weights[f"input_{layer}"] = Weight((self.hidden, latent), self.initial_scale)
            weights[f"bias_{layer}"] = Weight((self.hidden,), self.initial_scale)
            if features:
                weights[f"context_{layer}"] = Weight((self.hidden, features), self.initial_scale)
            weights[f"output_{layer}"] = Weight((2 * latent, self.hidden), self.initial_scale)
            weights[f"offset_{layer}"] = Weight((2 * latent,), self.initial_scale)
        return weights

    def masks(self, layer: int, latent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Zeros and ones for W_in (M, Z) and W_out (2 Z, M), and (2 Z,) which outputs there are at all."""
        order = np.arange(latent) if layer % 2 == 0 else np.arange(latent)[::-1]
        if self.triangular:
            reads = np.arange(self.hidden) % latent  # how many dimensions, in their order, each unit may see
            inputs = reads[:, None] > order
            outputs, given = order[:, None] >= reads, np.ones(latent)
        else:
            given = (np.arange(latent) + layer) % 2
            inputs = np.broadcast_to(given == 0, (self.hidden, latent))
            outputs = np.broadcast_to(given[:, None] == 1, (latent, self.hidden))
        return inputs.astype(float), np.tile(outputs, (2, 1)).astype(float), np.tile(given, 2).astype(float)


class CouplingFlow(MaskedFlow):
    """z exp(tanh s) + t in every second dimension, [t, s] a network of the others (Dinh et al. 2017, eq. 7)."""

    triangular: ClassVar[bool] = False

    kind: Literal["coupling"] = "coupling"


class InverseAutoregressiveFlow(MaskedFlow):
    """g z + (1 − g) t, g = sigmoid(s + 2), [t, s] of each dimension from those before it (Kingma et al. 2016, eq. 14).

    The order is reversed from layer to layer. Its inverse takes Z passes of the network.
    """

    triangular: ClassVar[bool] = True

    kind: Literal["inverse_autoregressive"] = "inverse_autoregressive"


Flow = Annotated[PlanarFlow | CouplingFlow | InverseAutoregressiveFlow, Field(discriminator="kind")]
