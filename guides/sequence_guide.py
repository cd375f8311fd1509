"""Guides of latent sequence models: q(z_t | h_t, e_t), h_t the model's own state along the path drawn so far.

    filtering    e_t = φ_x(x_t)
    smoothing    e_t = [φ_x(x_t); b_t],   b_t a recurrent network over x_T … x_t
    prior        q = p(z_t | h_t): nothing is amortised

With `residual` the mean is the prior's plus what the network gives (Fraccaro et al. 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..models.batch import Batch
from ..models.ppl import PPL
from ..models.sequence import PLATE, SITES, Step, StepOf, across, sequence_model
from ..models.spec import Network, Spec
from .pair import NativeModel, NoLatents, Pair, Steps

Array = Any


class Proposal(Protocol):
    """q(z_t | h_t, e_t) of a step."""

    def reading(self, x: Array, mask: Array, h: Any) -> Array | None:
        """e_1 … e_T (T, B, E) of x (T, B, D): what stands outside the loop.

        mask (T, B) is true at real steps that are known: the others are not read. h: the state h_1 (…, B, H).
        """
        ...

    def law(self, h: Any, reading: Any = None) -> Any:
        """q(z_t | h_t, e_t), event shape (Z,)."""
        ...


class NoProposal:
    """The `Proposal` of a step without a latent."""

    def __init__(self, ppl: PPL, nets: Mapping[str, Any], step: Step) -> None:
        self.step = step

    def reading(self, x: Array, mask: Array, h: Any) -> None:
        return None

    def law(self, h: Any, reading: Any = None) -> Any:
        return self.step.prior(h)


ProposalOf = Callable[[PPL, Mapping[str, Any], Any], Proposal]


def sequence_guide(step_of: StepOf, proposal_of: ProposalOf) -> Callable[[PPL, Batch, Mapping[str, Any]], None]:
    """The program q(z | x) of a proposal; batches hold x (B, T, D) and mask (B, T)."""

    def guide(ppl: PPL, batch: Batch, nets: Mapping[str, Any]) -> None:
        step = step_of(ppl, nets)
        proposal = proposal_of(ppl, nets, step)
        x, mask = batch.x.swapaxes(0, 1), batch.mask.swapaxes(0, 1)
        path = ppl.unroll(step, x)
        reading = proposal.reading(x, mask, path.first)
        with across(ppl, batch):
            ppl.sample("z", path.latents(proposal.law, reading))

    return guide


def sequence_pair(
    name: str,
    step: StepOf,
    proposal: ProposalOf,
    networks: Mapping[str, Any] | Callable[[Any, Any, int], Mapping[str, Network]],
    model_spec: type[Spec] = NativeModel,
    guide_spec: type[Spec] = NoLatents,
) -> Pair:
    """The pair of a step and a proposal: its two programs are for SVI, the step itself is filtered and generates."""
    return Pair(
        model=sequence_model(step),
        guide=sequence_guide(step, proposal),
        name=name,
        networks=networks,
        model_spec=model_spec,
        guide_spec=guide_spec,
        plate=PLATE,
        sites=SITES,
        steps=Steps(step, proposal),
    )
