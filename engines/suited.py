"""Whether an objective suits the latents of a guide: else its estimate would be biased, or no bound, and nobody told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..models.errors import BadInput
from .protocol import Objective
from .sites import is_shared


def refuse_unsuited(
    guide: Mapping[str, Any], model: Mapping[str, Any], objective: Objective, plate: str, real: Any
) -> None:
    """guide, model: site → its message in the trace of either library. real: the library's constraint of that name.

    Raises:
        BadInput: draws without a gradient under a pathwise objective; a latent shared by all data under one that
            weights each datum by itself; one that is not all of R^D under one that moves it along ∇ log p.
    """
    for name, site in guide.items():
        if objective.pathwise and not site["fn"].has_rsample:
            raise BadInput(
                f"the guide draws {name!r} from a {_family(site['fn'])}, which has no gradient through its draws, and "
                'the divergence needs one: use kl with estimator = "score", tvo or reweighted_wake_sleep'
            )
        if not objective.additive and is_shared(site, plate):
            raise BadInput(
                f"the latent {name!r} stands outside the plate {plate!r}, one draw for all data, and the divergence "
                "weights each datum by itself: use kl without free bits and without the score"
            )
        if "joint_score" in objective.needs and not is_real(model[name]["fn"], real):
            raise BadInput(
                f"the divergence moves draws along the gradient of log p(x, z) in all of R^D, and the latent {name!r} "
                "lives elsewhere under the prior: use kl"
            )


def refuse_immovable(model: Mapping[str, Any], latents: Mapping[str, Any], plate: str, real: Any) -> None:
    """model: site → message. real: the library's constraint of that name.

    Raises:
        BadInput: a latent that Hamiltonian Monte Carlo in R^D, a row of the data plate at a time, cannot move.
    """
    if not latents:
        raise BadInput("the pair has no latent, so its likelihood is exact: evaluate gives it")
    for name in latents:
        if not is_real(model[name]["fn"], real):
            raise BadInput(
                f"Hamiltonian Monte Carlo moves in R^D, and the latent {name!r} lives elsewhere under the prior"
            )
        if [(frame.name, frame.dim) for frame in model[name]["cond_indep_stack"]] != [(plate, -1)]:
            raise BadInput(f"a chain per row needs the latent {name!r} in the plate {plate!r} and in no other")


def refuse_shared(sites: Sequence[str]) -> None:
    """
    Raises:
        BadInput: importance weights are asked for, and a latent is one draw for all data.
    """
    if sites:
        raise BadInput(
            f"the latent {sites[0]!r} is one draw for all data: importance weights of single data bound nothing, "
            "and one weight for all data would be a single particle's"
        )


def is_real(fn: Any, real: Any) -> bool:
    """Whether the support of a distribution is all of R^D."""
    support = fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is real


def _family(fn: Any) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__
