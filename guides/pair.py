"""A pair: one generative program, one guide, and what the loop must know to run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..models.spec import Network, Spec


class NoLatents(Spec):
    """The `[guide]` table of a pair without latents, or of a native pair: empty."""


class NativeModel(Spec):
    """The `[model]` table of a native pair: empty, its program is its own recipe."""


class Steps(NamedTuple):
    """What a latent sequence pair is made of: `models.sequence.StepOf` and `guides.sequence_guide.ProposalOf`."""

    step: Callable[..., Any]
    proposal: Callable[..., Any]


@dataclass(frozen=True)
class Pair:
    """A model/guide pair.

    A **story** pair (`engine=None`) has programs `f(ppl, batch, nets)` and runs on either engine. A **native** pair
    names its engine and has plain Pyro or NumPyro programs `f(batch, data_size)`: `batch` is a dict of arrays with the
    datum axis first, and holds besides the user's arrays `index` (B,) and `weight` (B,; 0 marks a filler row).

    Attributes:
        model: p(x, z).
        guide: q(z | x); None when there is no latent.
        name: what recipes call it.
        engine: None for a story, else "pyro" or "numpyro".
        networks: for a story, network name → `Network`, spec or framework module; or a function of the `[model]` and
            `[guide]` tables and the data's width (V of sentences, D of the array `x`) that returns one.
        model_spec, guide_spec: the classes of the `[model]` and `[guide]` tables.
        plate: name of the data plate; it becomes a dimension of every export.
        sites: site → names of its event dimensions.
        data: arrays, datum axis first, when the pair brings its own.
        steps: of a pair of sequences, its step and its proposal.
        text: whether the data are sentences (`[data]` table) rather than arrays.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any] | None = None
    name: str = "pair"
    engine: Literal["pyro", "numpyro"] | None = None
    networks: Mapping[str, Any] | Callable[[Any, Any, int], Mapping[str, Network]] = field(default_factory=dict)
    model_spec: type[Spec] = NativeModel
    guide_spec: type[Spec] = NoLatents
    plate: str = "data"
    sites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    text: bool = False
    steps: Steps | None = None

    def realisable(self, model: Spec, guide: Spec, width: int = 0) -> dict[str, Network]:
        """The story's networks for these tables."""
        networks = self.networks(model, guide, width) if callable(self.networks) else self.networks
        return {name: net if isinstance(net, Network) else Network(net) for name, net in networks.items()}
