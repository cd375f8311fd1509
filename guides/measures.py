"""Posteriors q(F | x) of what a decoder attends to, from a vector h_i of the encoder for each word of x."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from ..models.spec import Spec, Support, Weight, kind_unless_said
from .posteriors import Charge

LOG_ALPHA = (-14.0, 30.0)
"""Least and largest log α of a word."""


class MeasurePosteriorSpec(Spec):
    """What these posteriors say of themselves. Sizes from the surroundings: `features` H, `latent` p."""

    support: ClassVar[Support]
    """Where its draws lie."""
    pathwise: ClassVar[bool] = True
    by_datum: ClassVar[bool] = True
    fixed_support: ClassVar[bool] = True

    kind: str

    @property
    def charge(self) -> Charge:
        """What is charged for the latent."""
        return "kl"

    def layout(self, *, features: int, latent: int) -> dict[str, Weight]:
        return {"loc": Weight((latent, features), features**-0.5), "loc_bias": Weight((latent,), 0.0)}


class _Normals(MeasurePosteriorSpec):
    """Normals of means W h + b and variances exp(W_s h + b_s)."""

    initial_log_variance: float = Field(default=-2.0, description="where b_s starts: vectors before noise")

    def layout(self, *, features: int, latent: int) -> dict[str, Weight]:
        return super().layout(features=features, latent=latent) | {
            "log_variance": Weight((latent, features), 0.1 * features**-0.5),
            "log_variance_bias": Weight((latent,), 0.0, start=self.initial_log_variance),
        }


class DirichletProcessPosterior(_Normals):
    """The nonparametric variational information bottleneck (Henderson & Fehr 2023, §3): F ~ DP(Σ_i (α_i / A) N_i, A),

    N_i = N(W h_i + b, diag exp(W_s h_i + b_s)),   log α_i = w₂ · h_i² + w₁ · h_i + b_α   (Fehr & Henderson 2024),

    with the prior's own component beside those of the words.

    objective: "mixture", a bound that lets components vanish: atoms are independent draws from the mixture, and the KL
        is at most L_D + L_G. "stratified", the exact ELBO of a fixed number of atoms for each component, whose KL grows
        without limit as one vanishes. "paper", the published regulariser: stratified draws, and
        lambda_weights L_D + lambda_locations L_G; no bound of anything, so that a run is judged as a mixture is.
    pseudo_counts: "quadratic", as above. "exponential", without w₂. "quadratic_in_means", of μ_i in place of h_i: with
        w₂ = 1 / (2 r) attention over the mean of q is plain attention over the μ_i, but for the prior's share and the
        variances. Where A would pass e³⁰ all α of a sentence, which the mean does not see, shrink by one factor.
    lambda_weights, lambda_locations: of "paper", by the sentence. The published λ_G counts the mean over the p
        coordinates, and both are for each of the n + 1 components: λ_D = lambda_weights, λ_G = p lambda_locations.
    """

    support: ClassVar[Support] = "measure"

    kind: Literal["dirichlet_process"] = "dirichlet_process"
    objective: Literal["mixture", "stratified", "paper"] = "mixture"
    pseudo_counts: Literal["quadratic", "exponential", "quadratic_in_means"] = Field(
        default="quadratic", description="log α of h and h², of h alone, or of μ and μ²"
    )
    initial_log_alpha: float = Field(
        default=3.0,
        ge=LOG_ALPHA[0],
        le=LOG_ALPHA[1],
        description="where b_α starts, of the lowest of stacked ones: weights of small variance",
    )
    gradient: Literal["weights", "implicit", "score"] = Field(
        default="weights", description='in α, of objective "mixture"; "score" takes two particles'
    )
    lambda_weights: NonNegativeFloat = 1.0
    lambda_locations: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _objectives_have_settings(self) -> DirichletProcessPosterior:
        for name, objective in (("gradient", "mixture"), ("lambda_weights", "paper"), ("lambda_locations", "paper")):
            value, usual = getattr(self, name), type(self).model_fields[name].default
            if value != usual and self.objective != objective:
                raise ValueError(
                    f"{name} = {value!r} says nothing with objective = {self.objective!r}: {usual!r}, or "
                    f"objective = {objective!r}, would be right"
                )
        return self

    @property
    def charge(self) -> Charge:
        charges: dict[str, Charge] = {"mixture": "bound", "stratified": "kl", "paper": "penalty"}
        return charges[self.objective]

    def layout(self, *, features: int, latent: int) -> dict[str, Weight]:
        width = latent if self.pseudo_counts == "quadratic_in_means" else features
        square = {} if self.pseudo_counts == "exponential" else {"alpha_square": Weight((width,), 0.0)}
        return (
            super().layout(features=features, latent=latent)
            | {
                "alpha": Weight((width,), width**-0.5),
                "alpha_bias": Weight((), 0.0, start=self.initial_log_alpha),
            }
            | square
        )


class NormalVectors(_Normals):
    """A normal for each word that the prior has a place for (VT, VTS)."""

    support: ClassVar[Support] = "vectors"

    kind: Literal["normal_vectors"] = "normal_vectors"


class PointVectors(MeasurePosteriorSpec):
    """The vectors W h_i + b themselves: with `divergence.weight = 0` the plain Transformer autoencoder (T). No bound."""

    support: ClassVar[Support] = "vectors"
    fixed_support: ClassVar[bool] = False

    kind: Literal["point_vectors"] = "point_vectors"

    @property
    def charge(self) -> Charge:
        return "penalty"


class PooledNormal(_Normals):
    """One normal of the mean, or the maximum, of all h_i (VTP)."""

    support: ClassVar[Support] = "pooled"

    kind: Literal["pooled_normal"] = "pooled_normal"
    pooling: Literal["mean", "max"] = "mean"


MeasurePosterior = Annotated[
    DirichletProcessPosterior | NormalVectors | PointVectors | PooledNormal,
    Field(discriminator="kind"),
    kind_unless_said("dirichlet_process"),
]
