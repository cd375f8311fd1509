"""Posterior families q(z | x): their parameters are W h, without a bias, h the encoder's features of x."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from scipy.special import lambertw

from ..models.flows import Flow, InverseAutoregressiveFlow
from ..models.spec import Box, Spec, Support, Weight, kind_unless_said

Charge = Literal["kl", "bound", "penalty"]
"""KL(q ‖ p), or an upper bound of it, or a penalty, with which nothing bounds log p(x)."""


class PosteriorSpec(Spec):
    """What every posterior says of itself. Sizes from the surroundings: `features` H, `latent` Z."""

    support: ClassVar[Support] = "real"
    """Where its draws lie."""
    pathwise: ClassVar[bool] = True
    """Whether a draw is a differentiable function of the parameters."""
    factorised: ClassVar[bool] = True
    """Whether the dimensions of a draw are independent given x."""
    fixed_support: ClassVar[bool] = True
    """Whether the support is the same for all parameters, so that E ∇ log q = 0."""
    by_datum: ClassVar[bool] = True
    """Whether q(z | x) depends on x alone in training too, not on its batch."""
    charge: ClassVar[Charge] = "kl"
    """What is charged for the latent."""

    kind: str
    initial_scale: PositiveFloat = Field(default=0.01, description="W starts uniform in ± this (Li et al.: 0.01)")

    def outputs(self, latent: int) -> int:
        """Numbers that W h holds for each datum."""
        return 2 * latent

    def layout(self, *, features: int, latent: int) -> dict[str, Weight]:
        return {"weight": Weight((self.outputs(latent), features), self.initial_scale)}


class DiagonalNormal(PosteriorSpec):
    """q(z | x) = N(μ, diag σ²), [μ, log σ²] = W h."""

    kind: Literal["diagonal_normal"] = "diagonal_normal"


class LowRankNormal(PosteriorSpec):
    """q(z | x) = N(μ, F Fᵀ + diag σ²), [μ, log σ², F] = W h, F (Z, rank) (Ong et al. 2018)."""

    factorised: ClassVar[bool] = False

    kind: Literal["low_rank_normal"] = "low_rank_normal"
    rank: PositiveInt = Field(default=4, description="columns of F")

    def outputs(self, latent: int) -> int:
        return (2 + self.rank) * latent


class FullNormal(PosteriorSpec):
    """q(z | x) = N(μ, L Lᵀ), [μ, 2 log diag L, rows of L below the diagonal] = W h (Kingma & Welling 2019, §2.5.1)."""

    factorised: ClassVar[bool] = False

    kind: Literal["full_normal"] = "full_normal"

    def outputs(self, latent: int) -> int:
        return 2 * latent + latent * (latent - 1) // 2


class BatchNormalisedNormal(PosteriorSpec):
    """The BN-VAE's diagonal normal (Zhu et al. 2020), [m, log σ²] = W h:

    μ = shift + gain · (m − mean m) / sd m,   over the rows of the batch (fillers too), shift learned, gain fixed.

    Beside a standard normal prior a batch's mean KL is at least Σ_j (gain² + shift_j²) / 2. Evaluation takes running
    moments, which every batch moves once by `momentum` towards its own: those of x as it is and of m before any
    refinement, however many particles, refinements, views or dreams the step has beside.
    """

    by_datum: ClassVar[bool] = False

    kind: Literal["batch_normalised_normal"] = "batch_normalised_normal"
    gain: PositiveFloat = Field(default=0.6, description="γ, the standard deviation of μ over the data")
    momentum: float = Field(default=0.1, gt=0, le=1)

    def layout(self, *, features: int, latent: int) -> dict[str, Weight]:
        return super().layout(features=features, latent=latent) | {
            "shift": Weight((latent,), 0.0),
            "mean": Weight((latent,), 0.0, momentum=self.momentum),
            "variance": Weight((latent,), 0.0, start=1.0, momentum=self.momentum),
        }


class DeltaNormal(PosteriorSpec):
    """The δ-VAE's diagonal normal beside a standard normal prior: KL ≥ rate in every dimension (Razavi et al. 2019).

    [m, v] = W h,   σ² = s₁ + (s₂ − s₁) sigmoid(v),   μ = √(2 rate + 1 + log σ² − σ² + max(0, m)),

    s₁ < 1 < s₂ the roots of log s − s + 2 rate + 1 = 0; KL = rate + max(0, m) / 2.
    """

    kind: Literal["delta_normal"] = "delta_normal"
    rate: PositiveFloat = Field(default=0.1, description="δ, nats that every dimension spends at least")

    @property
    def variances(self) -> tuple[float, float]:
        """The least and the largest σ²: s = −W(−exp(−2 rate − 1)) on the two branches of Lambert's W."""
        argument = -math.exp(-2 * self.rate - 1)
        least, largest = (float(-lambertw(argument, branch).real) for branch in (0, -1))
        return least, largest


class FlowNormal(PosteriorSpec):
    """q(z | x): a diagonal normal, [μ, log σ²] = W h, sent through a flow whose layers read h (Kingma et al. 2016)."""

    factorised: ClassVar[bool] = False

    kind: Literal["flow_normal"] = "flow_normal"
    flow: Flow = InverseAutoregressiveFlow()

    def layout(self, *, features: int, latent: int) -> dict[str, Weight]:
        flow = self.flow.layout(latent=latent, features=features)
        return super().layout(features=features, latent=latent) | flow


class Residual(Spec):
    """q(z_t | …) = N(m_p + m, diag s²): the normal posterior N(m, diag s²), moved by the mean m_p of p(z_t | …)."""

    kind: Literal["residual"] = "residual"


class Laplace(PosteriorSpec):
    """q(z | x) = Π Laplace(m, b), [m, log b] = W h."""

    kind: Literal["laplace"] = "laplace"


class Logistic(PosteriorSpec):
    """q(z | x) = Π Logistic(m, s), [m, log s] = W h."""

    kind: Literal["logistic"] = "logistic"


class PointMass(PosteriorSpec):
    """q(z | x) = δ(z − W h): the most probable z in place of a posterior.

    The KL is −log p(z) then, a penalty; with `divergence.weight = 0` the pair is the plain autoencoder. No bound.
    """

    fixed_support: ClassVar[bool] = False
    charge: ClassVar[Charge] = "penalty"

    kind: Literal["point_mass"] = "point_mass"

    def outputs(self, latent: int) -> int:
        return latent


class UniformBox(Box, PosteriorSpec):
    """q(z | x) uniform in a box within [low, high]^Z: with [a, b] = W h and each side of length l,

    the sides are l sigmoid(b) long and begin at low + (l − l sigmoid(b)) sigmoid(a).
    """

    support: ClassVar[Support] = "box"
    fixed_support: ClassVar[bool] = False

    kind: Literal["uniform_box"] = "uniform_box"


class _Spherical(PosteriorSpec):
    """A family on the sphere, W h = [m, k]: μ = m / |m|, and κ = 1 + softplus(k) unless it is given."""

    support: ClassVar[Support] = "sphere"
    factorised: ClassVar[bool] = False

    concentration: PositiveFloat | None = Field(
        default=None, description="κ, the same for every datum: the KL is a constant then (Xu & Durrett 2018)"
    )

    def outputs(self, latent: int) -> int:
        return latent + (self.concentration is None)


class VonMisesFisher(_Spherical):
    """q(z | x) ∝ exp(κ μᵀz) on the unit sphere in R^Z (Davidson et al. 2018). W h = [m, k]:

    μ = m / |m|,   κ = 1 + softplus(k), or `concentration` where it is given and k is left out.
    """

    kind: Literal["von_mises_fisher"] = "von_mises_fisher"


class PowerSpherical(_Spherical):
    """q(z | x) ∝ (1 + μᵀz)^κ on the unit sphere in R^Z (De Cao & Aziz 2020), μ and κ as of the von Mises-Fisher."""

    kind: Literal["power_spherical"] = "power_spherical"


class _Logits(PosteriorSpec):
    """A discrete family: logits W h."""

    support: ClassVar[Support] = "binary"
    pathwise: ClassVar[bool] = False

    def outputs(self, latent: int) -> int:
        return latent


class _Relaxed(_Logits):
    """A discrete family whose draws in training are relaxed."""

    pathwise: ClassVar[bool] = True

    temperature: PositiveFloat = 0.5
    straight_through: bool = Field(default=True, description="whether draws in training are rounded as well")


class Bernoulli(_Logits):
    """q(z | x) = Π Bernoulli(sigmoid(W h)), z in {0, 1}^Z: for enumeration or the score function."""

    kind: Literal["bernoulli"] = "bernoulli"


class Categorical(_Logits):
    """q(z | x) over the Z unit vectors, logits W h: for enumeration or the score function."""

    support: ClassVar[Support] = "one_hot"
    factorised: ClassVar[bool] = False

    kind: Literal["categorical"] = "categorical"


class RelaxedBernoulli(_Relaxed):
    """Bernoulli latents whose draws in training are concrete (Maddison et al. 2017), with the discrete KL.

    z = sigmoid((W h + logistic noise) / temperature), rounded with the gradient of the unrounded where
    straight_through (Jang et al. 2017). The gradient is biased. Evaluation draws zeros and ones.
    """

    kind: Literal["relaxed_bernoulli"] = "relaxed_bernoulli"


class RelaxedCategorical(_Relaxed):
    """Unit vectors whose draws in training are softmax((W h + Gumbel noise) / temperature), with the discrete KL.

    Rounded to the nearest unit vector, with the gradient of the unrounded, where straight_through (Jang et al. 2017).
    The gradient is biased. Evaluation draws unit vectors.
    """

    support: ClassVar[Support] = "one_hot"
    factorised: ClassVar[bool] = False

    kind: Literal["relaxed_categorical"] = "relaxed_categorical"


Posterior = Annotated[
    DiagonalNormal
    | LowRankNormal
    | FullNormal
    | BatchNormalisedNormal
    | DeltaNormal
    | FlowNormal
    | Laplace
    | Logistic
    | PointMass
    | UniformBox
    | VonMisesFisher
    | PowerSpherical
    | Bernoulli
    | Categorical
    | RelaxedBernoulli
    | RelaxedCategorical,
    Field(discriminator="kind"),
    kind_unless_said("diagonal_normal"),
]
