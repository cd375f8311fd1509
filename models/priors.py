"""Priors p(z) of one datum's latent, event shape (dim,)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from .flows import CouplingFlow, Flow
from .mlp import MLP
from .spec import Box, Network, Spec, Support, Weight, kind_unless_said


class PriorSpec(Spec):
    """What every prior says of itself."""

    support: ClassVar[Support]
    """Where its draws lie."""
    factorised: ClassVar[bool] = True
    """Whether the dimensions of a draw are independent."""

    kind: str
    dim: PositiveInt = Field(default=32, le=100_000, description="Z, dimensions of the latent")

    def network(self, **sizes: int) -> Network:
        """The prior as a network of a pair, whose encoder reads inputs of these `sizes`."""
        return Network(self)


class StandardNormal(PriorSpec):
    """p(z) = N(0, I), event shape (dim,)."""

    support: ClassVar[Support] = "real"

    kind: Literal["standard_normal"] = "standard_normal"


class LearnedNormal(PriorSpec):
    """p(z) = N(m, diag s²), m and log s² learned; starts at N(0, I)."""

    support: ClassVar[Support] = "real"

    kind: Literal["diagonal_normal"] = "diagonal_normal"

    def layout(self) -> dict[str, Weight]:
        return {"loc": Weight((self.dim,), 0.0), "log_variance": Weight((self.dim,), 0.0)}


class GaussianMixture(PriorSpec):
    """p(z) = Σ_k π_k N(m_k, diag s_k²), all learned; starts with equal weights and unit variances."""

    support: ClassVar[Support] = "real"
    factorised: ClassVar[bool] = False

    kind: Literal["gaussian_mixture"] = "gaussian_mixture"
    components: PositiveInt = Field(default=10, description="K")
    initial_scale: PositiveFloat = Field(default=1.0, description="the means start uniform in ± this")

    def layout(self) -> dict[str, Weight]:
        shape = (self.components, self.dim)
        return {
            "logits": Weight((self.components,), 0.0),
            "loc": Weight(shape, self.initial_scale),
            "log_variance": Weight(shape, 0.0),
        }


class VampPrior(PriorSpec):
    """p(z) = 1/K Σ_k q(z | u_k): the pair's own posterior at K pseudo-inputs (Tomczak & Welling 2018, eq. 9).

    Sizes: of a pair of sentences, `embedding` E: a learned u_k is `length` word embeddings in place of words, so it
    needs no vocabulary; of a pair of vectors, `width` D: u_k is one of them. The encoder and the posterior have
    gradients from here too, and stay the guide's.

    With inputs "data" u_k is row x_k of the training data, a mixture of K terms of the aggregated posterior (§3):
    `fit` draws them without replacement by its seed, and they stay as they are. A sentence is kept as ids, [bos, words,
    eos, pad …], read by the encoder's embeddings as they are at the time; only sentences of at most `length` words are
    drawn, for none is cut. Elsewhere than in `fit` they are weights to be loaded, and start at 0.
    """

    support: ClassVar[Support] = "real"
    factorised: ClassVar[bool] = False

    kind: Literal["vamp"] = "vamp"
    components: PositiveInt = Field(default=50, description="K")
    inputs: Literal["learned", "data"] = Field(default="learned", description="pseudo-inputs, or rows of the data")
    length: PositiveInt = Field(default=10, description="words of a pseudo-sentence; of data, at most this many")
    initial_scale: PositiveFloat = Field(default=0.1, description="learned pseudo-inputs start uniform in ± this")

    def network(self, **sizes: int) -> Network:
        return Network(self, sizes)

    def layout(self, *, embedding: int = 0, width: int = 0) -> dict[str, Weight]:
        if self.inputs == "data":
            return {"inputs": Weight((self.components, self.length + 2 if embedding else width), 0.0, fixed=True)}
        shape = (self.components, self.length, embedding) if embedding else (self.components, width)
        return {"inputs": Weight(shape, self.initial_scale)}


class ConditionalNormal(PriorSpec):
    """p(z | c) = N(m, diag s²), [m, log s²] an MLP of c: for stories of your own that say `prior(c)`.

    Size from the surroundings: `condition` C, the width of c.
    """

    support: ClassVar[Support] = "real"
    activate_outputs: ClassVar[bool] = False

    kind: Literal["conditional_normal"] = "conditional_normal"
    hidden: tuple[PositiveInt, ...] = Field(default=(128,), strict=False, description="widths of the hidden layers")
    activation: Literal["tanh", "relu", "softplus"] = "tanh"

    def layout(self, *, condition: int) -> dict[str, Weight]:
        return MLP(hidden=self.hidden).layout(inputs=condition, outputs=2 * self.dim)


class GatedTransition(PriorSpec):
    """p(z_t | z_{t-1}) = N(m, diag s²) of a deep Markov model (Krishnan et al. 2017, §5), z = z_{t-1}:

    m = (1 − g) ⊙ (z + W_m z + b_m) + g ⊙ p,   s = softplus(W_s relu(p) + b_s),   g = sigmoid(MLP z),   p = MLP z

    The linear part starts at the identity. z_0 is learned.
    """

    support: ClassVar[Support] = "real"

    kind: Literal["gated_transition"] = "gated_transition"
    hidden: PositiveInt = Field(default=200, description="width of the relu layer of each of the two MLPs")

    def layout(self) -> dict[str, Weight]:
        dim, hidden = self.dim, self.hidden
        return {
            "first": Weight((dim,), 0.0),
            "weight_in": Weight((2 * hidden, dim), dim**-0.5),
            "bias_in": Weight((2 * hidden,), dim**-0.5),
            "weight_gate": Weight((dim, hidden), hidden**-0.5),
            "bias_gate": Weight((dim,), hidden**-0.5),
            "weight_proposed": Weight((dim, hidden), hidden**-0.5),
            "bias_proposed": Weight((dim,), hidden**-0.5),
            "weight_loc": Weight((dim, dim), 0.0),
            "bias_loc": Weight((dim,), 0.0),
            "weight_scale": Weight((dim, dim), dim**-0.5),
            "bias_scale": Weight((dim,), dim**-0.5),
        }


class FlowPrior(PriorSpec):
    """p(z) = N(f(z); 0, I) |det ∂f/∂z|, f a learned flow: the density is direct, a draw is f⁻¹ of a normal."""

    support: ClassVar[Support] = "real"
    factorised: ClassVar[bool] = False

    kind: Literal["flow"] = "flow"
    flow: Flow = CouplingFlow()

    def layout(self) -> dict[str, Weight]:
        return self.flow.layout(latent=self.dim)


class UniformBox(Box, PriorSpec):
    """p(z) uniform in the box [low, high]^dim."""

    support: ClassVar[Support] = "box"

    kind: Literal["uniform_box"] = "uniform_box"


class HypersphericalUniform(PriorSpec):
    """p(z) uniform on the unit sphere in R^dim, of dim − 1 dimensions (Davidson et al. 2018)."""

    support: ClassVar[Support] = "sphere"
    factorised: ClassVar[bool] = False

    kind: Literal["hyperspherical_uniform"] = "hyperspherical_uniform"
    dim: PositiveInt = Field(default=32, ge=2, le=100_000, description="Z, dimensions of the space around the sphere")


class IndependentBernoulli(PriorSpec):
    """p(z) = Π_d Bernoulli(probability), z in {0, 1}^dim."""

    support: ClassVar[Support] = "binary"

    kind: Literal["bernoulli"] = "bernoulli"
    probability: float = Field(default=0.5, gt=0, lt=1, description="of a one")


class Categorical(PriorSpec):
    """p(z) over the `dim` unit vectors: equally likely, or with learned logits that start so."""

    support: ClassVar[Support] = "one_hot"
    factorised: ClassVar[bool] = False

    kind: Literal["categorical"] = "categorical"
    learned: bool = Field(default=False, description="whether the probabilities are learned")

    def layout(self) -> dict[str, Weight]:
        return {"logits": Weight((self.dim,), 0.0)} if self.learned else {}


Prior = Annotated[
    StandardNormal
    | LearnedNormal
    | GaussianMixture
    | FlowPrior
    | VampPrior
    | HypersphericalUniform
    | UniformBox
    | IndependentBernoulli
    | Categorical,
    Field(discriminator="kind"),
    kind_unless_said("standard_normal"),
]
