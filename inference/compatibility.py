"""What fits together, computed from what the specs say of themselves: supports, gradients, formulas."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from ..guides import Posterior
from ..models import Prior
from ..models.measures import MeasurePrior
from .divergences import Divergence
from .mistakes import kinds

NORMAL = {
    "prior": ("standard_normal", "diagonal_normal"),
    "posterior": ("diagonal_normal", "batch_normalised_normal", "delta_normal"),
}
"""Kinds whose distribution is a diagonal normal, which a divergence with a formula for normals needs."""


ATTENDED = ("measure", "vectors", "pooled")
"""Supports of what a decoder attends to."""

ALONG = frozenset({"path", "score", "evidence"})
"""The fields of `Terms` that latents along a path have."""


def misfit(prior: Any, posterior: Any, divergence: Any) -> str | None:
    """Why the three do not fit, and the nearest that would; None where they do."""
    attended = posterior.support in ATTENDED
    if not _inside(posterior.support, prior.support):
        role = MeasurePrior if attended else Prior
        others = [kind for kind, spec in kinds(role).items() if _inside(posterior.support, spec.support)]
        return (
            f"the posterior {posterior.kind!r} draws {PLACES[posterior.support]} and the prior {prior.kind!r} lives "
            f"{PLACES[prior.support]}: use the prior {' or '.join(others) or 'of the same support'}"
        )
    if prior.kind == "vamp" and not (posterior.by_datum and posterior.fixed_support):
        specs = kinds(Posterior).items()
        others = [k for k, spec in specs if spec.by_datum and spec.fixed_support and spec.support == "real"]
        why = "has a support of its own at each" if posterior.by_datum else "depends on a whole batch of data"
        return (
            f"the prior 'vamp' is a mixture of the posterior at pseudo-inputs, and the posterior {posterior.kind!r} "
            f"{why}: use the posterior {' or '.join(others)}"
        )
    if attended and not divergence.filtering and (divergence.needs - ALONG or divergence.needs & {"evidence"}):
        others = [k for k, spec in kinds(Divergence).items() if _example(spec).needs <= {"path", "score"}]
        return (
            f"the divergence {divergence.kind!r} as set compares vectors of one size, and the posterior "
            f"{posterior.kind!r} draws {PLACES[posterior.support]}: use the divergence {' or '.join(others)}"
        )
    floor = getattr(divergence, "free_bits", None)
    if attended and floor and floor.per == "dimension":
        return (
            f'divergence.free_bits.per = "dimension" is a floor for each coordinate, and the KL of the posterior '
            f'{posterior.kind!r} is one number for a sentence: per = "sentence" or "batch" would be right'
        )
    if getattr(posterior, "objective", None) == "paper" and _asks_mass(divergence):
        return (
            'the posterior with objective = "paper" has its regulariser in place of a KL, and the divergence '
            f'{divergence.kind!r} as set weighs draws: use objective = "mixture" or "stratified", or kl with '
            'estimator = "analytic"'
        )
    by_score = getattr(posterior, "objective", None) == "mixture" and posterior.gradient == "score"
    analytic = divergence.kind == "kl" and divergence.estimator == "analytic"
    if by_score and divergence.pathwise and not analytic:
        return (
            f'the posterior {posterior.kind!r} with gradient = "score" has no gradient through the choice of its atoms, '
            f'and the divergence {divergence.kind!r} as set needs one: use gradient = "weights", or kl with '
            'estimator = "analytic"'
        )
    if by_score and analytic and divergence.particles == 1:
        return (
            'gradient = "score" compares draws of the same sentence, and there is one: divergence.particles = 2 would '
            "be right"
        )
    if "enumeration" in divergence.needs and not _countable(posterior):
        discrete = {kind: spec.support for kind, spec in kinds(Posterior).items() if _countable(spec)}
        near = [kind for kind, support in discrete.items() if support == posterior.support]
        return (
            f"enumeration sums over the values of a discrete posterior and the posterior {posterior.kind!r} draws "
            f"{'relaxed ones' if near else PLACES[posterior.support]}: use the posterior "
            f'{" or ".join(near or discrete)}, or estimator = "analytic"'
        )
    if divergence.pathwise and not posterior.pathwise:
        others = [kind for kind, spec in kinds(Divergence).items() if not _example(spec).pathwise]
        scored = divergence.kind if divergence.kind == "f_divergence" else "kl"
        return (
            f"the posterior {posterior.kind!r} has no gradient through its draws and the divergence "
            f'{divergence.kind!r} needs one: use {scored} with estimator = "score", or {" or ".join(others)}'
        )
    if "joint_score" in divergence.needs and prior.support != "real":
        others = [
            k for k, spec in kinds(Prior).items() if spec.support == "real" and _inside(posterior.support, "real")
        ]
        near = f"the prior {' or '.join(others)}, or " if others else ""
        return (
            f"the divergence {divergence.kind!r} moves draws along ∇ log p(x, z) in all of R^Z and the prior "
            f"{prior.kind!r} lives {PLACES[prior.support]}: use {near}the divergence kl"
        )
    if not posterior.fixed_support and (divergence.weighs or divergence.needs & {"path", "score"}):
        fixed = [
            k for k, spec in kinds(Posterior).items() if spec.fixed_support and _inside(spec.support, prior.support)
        ]
        return (
            f"the support of the posterior {posterior.kind!r} moves with its parameters, and the divergence "
            f"{divergence.kind!r} as set relies on weights p / q or on ∇ log q, which mislead there: "
            f'use kl with estimator = "analytic"{", or the posterior " if fixed else ""}{" or ".join(fixed)}'
        )
    if not getattr(posterior, "straight_through", True) and _asks_mass(divergence):
        return (
            f"the draws of the posterior {posterior.kind!r} with straight_through = false lie between the values that "
            f"have a mass, and the divergence {divergence.kind!r} as set relies on log q there: use "
            'straight_through = true, or kl with estimator = "analytic"'
        )
    if "normal" in divergence.needs:
        for role, part in (("prior", prior), ("posterior", posterior)):
            if part.kind not in NORMAL[role]:
                return (
                    f"the divergence {divergence.kind!r} has a formula for diagonal normals only and the {role} is "
                    f"{part.kind!r}: use the {role} {' or '.join(NORMAL[role])}, or the divergence kl"
                )
    return None


def off_the_path(divergence: Any) -> str | None:
    """Why a divergence does not fit the latents of a sequence, z_t given the path before it; None where it does."""
    if divergence.needs <= ALONG:
        return None
    others = [kind for kind, spec in kinds(Divergence).items() if _example(spec).needs <= ALONG]
    return (
        f"the divergence {divergence.kind!r} as set compares latents of one datum, and those of a sequence hang on the "
        f"path before them: use the divergence {' or '.join(others)}"
    )


PLACES = {
    "real": "in all of R^Z",
    "sphere": "on the sphere",
    "box": "in a box",
    "binary": "in {0, 1}^Z",
    "one_hot": "among one-hot vectors",
    "measure": "among random measures",
    "vectors": "among sets of vectors",
    "pooled": "among sets of one vector",
}
"""Support → where that is, in words."""


def matrix() -> Iterator[dict[str, Any]]:
    """Every prior with every posterior and every divergence with every estimator: whether they fit, or why not."""
    priors, posteriors = ([_Facts(spec) for spec in kinds(role).values()] for role in (Prior, Posterior))
    every = [choice for spec in kinds(Divergence).values() for choice in choices(spec)]
    divergences = [choice for choice in every if choice.filtering is None]  # those are for pairs of sequences
    for prior, posterior, divergence in itertools.product(priors, posteriors, divergences):
        why = misfit(prior, posterior, divergence)
        yield {
            "prior": prior.kind,
            "posterior": posterior.kind,
            "divergence": divergence.kind,
            "estimator": getattr(divergence, "estimator", None),
            "fits": why is None,
            "why": why,
        }


class _Facts:
    """What a spec's class says, without an instance: some have fields without a default."""

    def __init__(self, spec: Any) -> None:
        self.kind = spec.model_fields["kind"].default
        self.support = spec.support
        for fact in ("pathwise", "by_datum", "fixed_support"):
            setattr(self, fact, getattr(spec, fact, True))


def _countable(posterior: Any) -> bool:
    return posterior.support in ("binary", "one_hot") and not posterior.pathwise


def _asks_mass(divergence: Any) -> bool:
    """Whether log q at a draw counts, and not the KL's formula alone."""
    sampled = getattr(divergence, "estimator", None) == "sampled"
    return divergence.weighs or sampled or bool(divergence.needs & {"path", "score"})


def _inside(one: str, other: str) -> bool:
    return one == other or (one, other) == ("box", "real")


def choices(spec: Any) -> Iterator[Any]:
    """The divergence with each of its estimators that it allows."""
    field = spec.model_fields.get("estimator")
    for estimator in field.annotation.__args__ if field else (None,):
        yield _example(spec, **({"estimator": estimator} if estimator else {}))


def _example(spec: Any, **fields: Any) -> Any:
    needed = {name: 1.0 for name, field in spec.model_fields.items() if field.is_required()}
    return spec(**needed, **fields)
