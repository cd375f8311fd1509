"""The two traces of a pair on Pyro, per datum and per site; and any objective as `loss=` of stock `pyro.infer.SVI`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import ELBO
from torch import Tensor

from ...models.errors import BadInput
from ..protocol import Objective
from ..sites import PARTICLES, frames_of, is_shared, refuse_mismatch, refuse_scale, refuse_shapes, rows_of
from ..suited import refuse_unsuited
from ..terms import TABLES, Sides, Terms
from .analytic import analytic_kl
from .dreams import asleep
from .enumeration import at, support, weighed
from .needed import _vector, needed
from .ppl import _base_name
from .precision import _reaching
from .unrolled import Unrolled, given


def traces(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The guide's trace and the model's replayed against it."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    return guide_trace, replayed(model, guide_trace, *args, **kwargs)


def replayed(model: Callable[..., Any], guide_trace: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's trace at the latents of the guide's."""
    return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)


def plated(program: Callable[..., Any], particles: int, dim: int) -> Callable[..., Any]:
    """`program` in an outer plate of S particles."""
    return pyro.plate(PARTICLES, particles, dim=dim)(program)


def outermost(*traces: Any) -> int:
    """The dimension to the left of every plate of these traces: where the particles go."""
    frames = (frame for trace in traces for site in sites(trace).values() for frame in site["cond_indep_stack"])
    return min((frame.dim for frame in frames if frame.vectorized), default=-1) - 1


def sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a trace that carry probability, by the name they have in the trace."""
    return {
        name: given(site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site)
    }


def terms(
    guide_trace: Any,
    model_trace: Any,
    *,
    plate: str,
    data_size: int,
    weight: Tensor | None = None,
    needs: Set[str] = frozenset(),
) -> Terms:
    """`Terms` of two traces; `weight` (B,) defaults to ones. needs: fields beyond those always there.

    Raises:
        BadInput: a latent of one side that the other lacks, or a scale on one side only.
    """
    guide, model = sites(guide_trace), sites(model_trace)
    refuse_mismatch(guide, model)
    rows = rows_of(model, plate)
    tables: dict[str, dict[str, Tensor]] = {name: {} for name in TABLES}
    log_prior, log_posterior = _Densities(), _Densities()
    for name, p in model.items():
        datum = _PerDatum(p, plate, rows, data_size)
        site = _base_name(name, p)
        refuse_shapes(site, p, guide.get(name), plate)
        refuse_scale(site, p, guide.get(name), data_size, rows)
        if p["is_observed"]:
            _add(tables["log_likelihood"], site, datum(p["fn"].log_prob(p["value"])))
            continue
        q = guide[name]
        by_guide = _PerDatum(q, plate, rows, data_size)
        log_prior.add(site, p, datum)
        log_posterior.add(site, q, by_guide)
        kl = analytic_kl(q["fn"], p["fn"])
        if kl is not None:
            kl = kl if by_guide.share is None else kl.sum(-1)[..., None]  # as many dimensions as weights, for each row
            _add(tables["kl"], site, datum(_masked(kl, q["mask"], event=True), event=True))
        choice = getattr(q["fn"], "log_choice", lambda value: None)(q["value"])
        if choice is not None:
            _add(tables["choice"], site, by_guide(choice))
        for field, value in needed(p, q, needs, {PARTICLES, plate}).items():
            if field in ("path", "score", "score_norm"):
                _add(tables[field], site, by_guide(value))
            elif not by_guide.share:
                before = tables[field].get(site)
                tables[field][site] = value if before is None else torch.cat((before, value), -1)
    weight = weight if weight is not None else torch.ones(rows)
    return Terms(**{**tables, "log_prior": log_prior, "log_posterior": log_posterior}, weight=weight)


class _Densities(Mapping[str, Tensor]):
    """Site → log density per datum, computed once it is read: few objectives do where there is an analytic KL."""

    def __init__(self) -> None:
        self.parts: dict[str, list[tuple[Any, _PerDatum]]] = {}
        self.found: dict[str, Tensor] = {}

    def add(self, name: str, site: Mapping[str, Any], datum: _PerDatum) -> None:
        """`site` is a part of what the story calls `name`."""
        self.parts.setdefault(name, []).append((site, datum))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.found:
            for site, datum in self.parts[name]:
                _add(self.found, name, datum(site["fn"].log_prob(site["value"])))
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def log_prob(trace: Any, plate: str, data_size: int) -> Tensor:
    """Σ over sites of one trace, per datum: (B,) or (S, B)."""
    return _log_prob_of(sites(trace), plate, data_size)


def joint_score(
    model: Callable[..., Any], guide_trace: Any, *args: Any, plate: str, data_size: int, **kwargs: Any
) -> dict[str, Tensor]:
    """`Terms.joint_score` at the latents of the guide's trace, by a pass of the model of its own."""
    guide = sites(guide_trace)
    values = {name: site["value"].detach().requires_grad_() for name, site in guide.items()}
    leaves = list(values.values())
    with torch.enable_grad(), _reaching(leaves):
        trace = sites(poutine.trace(poutine.condition(model, data=values)).get_trace(*args, **kwargs))
        parts = ({n: s for n, s in trace.items() if (n in guide) == latent} for latent in (False, True))
        totals = [_log_prob_of(part, plate, data_size).sum() for part in parts]
        gradients = [
            torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            for total in totals
        ]
    found: dict[str, Tensor] = {}
    for (name, site), *both in zip(guide.items(), *gradients, strict=True):
        score = torch.stack([_vector(gradient, site, {PARTICLES, plate}) for gradient in both])
        story_name = _base_name(name, site)
        found[story_name] = torch.cat((found[story_name], score), -1) if story_name in found else score
    return found


def parted(
    terms: Terms, guide: Callable[..., Any], guide_trace: Any, *args: Any, plate: str, data_size: int, **kwargs: Any
) -> Terms:
    """The terms with the `path` and the `score` of latents that hang on each other, by a pass of the guide of its own.

    There the score is log q of the guide run along fixed latents, and the path's gradient is what the score leaves of
    that of log q. Terms without these fields need no other pass, nor does a single latent, nor where no gradient is
    wanted: the values are the same.
    """
    latents = sites(guide_trace)
    alone = len(latents) == 1 and not any(isinstance(guide_trace.nodes[name]["fn"], Unrolled) for name in latents)
    if alone or not (terms.path or terms.score) or not torch.is_grad_enabled():
        return terms
    fixed = {name: site["value"].detach() for name, site in latents.items()}
    score: dict[str, Tensor] = {}
    for name, site in sites(poutine.trace(poutine.condition(guide, data=fixed)).get_trace(*args, **kwargs)).items():
        datum = _PerDatum(site, plate, len(terms.weight), data_size)
        _add(score, _base_name(name, site), datum(site["fn"].log_prob(site["value"])))
    path = {site: terms.log_posterior[site] - value + value.detach() for site, value in score.items()}
    both = {"path": path, "score": score}
    return terms._replace(**{field: table for field, table in both.items() if getattr(terms, field)})


def dream(trace: Any, plate: str) -> dict[str, Tensor]:
    """`Terms.dream` of the guide's trace from `asleep`.

    Raises:
        BadInput: a latent outside the plate, which no single datum's dream is about.
    """
    found: dict[str, Tensor] = {}
    guide = sites(trace)
    for name, q in guide.items():
        if is_shared(q, plate):
            raise BadInput(f"the sleep phase is of latents per datum, and {name!r} stands outside the plate {plate!r}")
        _add(found, _base_name(name, q), _PerDatum(q, plate, rows_of(guide, plate), 1)(q["fn"].log_prob(q["value"])))
    return found


class Loss(ELBO):
    """An objective as the `loss=` of stock `pyro.infer.SVI`: −Σ over the data, corpus-scaled as Pyro's own.

    Args:
        objective: what is minimised, and what it needs; `divergence.on("pyro")` makes one.
        plate: name of the data plate.
        weight: the KL weight; set the attribute between steps to anneal it.
    """

    def __init__(self, objective: Objective, *, plate: str = "data", weight: float = 1.0) -> None:
        super().__init__(num_particles=objective.particles)
        self.objective, self.plate, self.weight = objective, plate, weight

    def _sides(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Sides, dict[str, list[Tensor]]]:
        """Corpus-scaled sums, and the parameters of each side that its loss must reach."""

        def found(guide_trace: Any) -> tuple[Terms, float]:
            model_trace = replayed(model, guide_trace, *args, **kwargs)
            by_name.update(_parameters(model_trace, "model") | _parameters(guide_trace, "guide"))
            rows = rows_of(sites(model_trace), self.plate)
            size = frames_of(sites(model_trace), self.plate)[0].full_size or rows
            made = terms(guide_trace, model_trace, plate=self.plate, data_size=size, needs=self.objective.needs)
            refuse_unsuited(sites(guide_trace), sites(model_trace), self.objective, self.plate, constraints.real)
            made = parted(made, guide, guide_trace, *args, plate=self.plate, data_size=size, **kwargs)
            if "joint_score" in self.objective.needs:
                score = joint_score(model, guide_trace, *args, plate=self.plate, data_size=size, **kwargs)
                made = made._replace(joint_score=score)
            return made, size / rows

        by_name: dict[Tensor, str] = {}
        every, scales = zip(*map(found, self._guide_traces(guide, args, kwargs)), strict=True)
        made = every[0] if len(every) == 1 else _stacked(every)
        if "dream" in self.objective.needs:
            made = made._replace(dream=dream(asleep(model, guide, *args, **kwargs), self.plate))
        loss = self.objective.function(weighed(made) if self.enumerates else made, self.weight)
        groups = {side: [tensor for tensor, own in by_name.items() if own == side] for side in ("model", "guide")}
        if isinstance(loss, Sides):
            return Sides(*(part.sum() * scales[0] for part in loss)), groups
        total = loss.sum() * scales[0]
        return Sides(total, total, total), groups

    @property
    def enumerates(self) -> bool:
        return "enumeration" in self.objective.needs

    def _guide_traces(self, guide: Any, args: Any, kwargs: Any) -> Iterator[Any]:
        """One for every particle: draws, or one draw whose latent then takes all its values."""
        drawn = poutine.trace(guide).get_trace
        if not self.enumerates:
            yield from (drawn(*args, **kwargs) for _ in range(self.num_particles))
            return
        trace = drawn(*args, **kwargs)
        yield from (at(trace, value, sites(trace)) for value in support(sites(trace), self.plate))

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        sides, _ = self._sides(model, guide, args, kwargs)
        if sides.model is not sides.value:
            raise BadInput("the two sides of this objective minimise different things: use loss_and_grads, as SVI does")
        return sides.value

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return traces(model, guide, *args, **kwargs)[::-1]

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return self._sides(model, guide, args, kwargs)[0].value.item()

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        sides, parameters = self._sides(model, guide, args, kwargs)
        _backward(sides, parameters["model"], parameters["guide"])
        return sides.value.item()


def _backward(loss: Sides, model: Sequence[Tensor], guide: Sequence[Tensor]) -> None:
    """Adds to `.grad` of each side's parameters the gradient of that side's (scalar) loss."""
    if loss.model is loss.guide:
        loss.value.backward()
        return
    for side, parameters in ((loss.model, model), (loss.guide, guide)):
        reached = [parameter for parameter in parameters if parameter.requires_grad]
        if reached and side.requires_grad:
            with _reaching(reached):
                side.backward(inputs=reached, retain_graph=True)


def _log_prob_of(found: Mapping[str, Any], plate: str, data_size: int) -> Tensor:
    rows = rows_of(found, plate) if found else 0
    return sum(
        (_PerDatum(site, plate, rows, data_size)(site["fn"].log_prob(site["value"])) for site in found.values()),
        torch.zeros(()),
    )


class _PerDatum:
    """Brings a log-probability of one site to (B,) or (S, B).

    A site outside the data plate is global: its term counts 1 / N for every datum, so that it counts once per epoch.
    """

    def __init__(self, site: Mapping[str, Any], plate: str, rows: int, data_size: int) -> None:
        frames = {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
        self.keep = {frames[name] for name in (PARTICLES, plate) if name in frames}
        self.share = None if plate in frames else (rows, data_size)
        self.mask = site["mask"]

    def __call__(self, value: Tensor, event: bool = False) -> Tensor:
        value = _masked(value, self.mask, event)
        keep = {dim - 1 for dim in self.keep} | {-1} if event else self.keep
        others = [dim for dim in range(-value.dim(), 0) if dim not in keep]
        value = value.sum(others) if others else value
        if self.share is None:
            return value
        rows, data_size = self.share
        shared = (value / data_size).unsqueeze(-2 if event else -1)
        return shared.expand(*shared.shape[:-2], rows, -1) if event else shared.expand(*shared.shape[:-1], rows)


def _masked(value: Tensor, mask: Tensor | bool | None, event: bool = False) -> Tensor:
    """0 where the mask of a site is false. event: whether `value` has a last dimension that the mask lacks."""
    if mask is None or mask is True:
        return value
    found = torch.as_tensor(mask, device=value.device)
    return torch.where(found.unsqueeze(-1) if event and found.dim() else found, value, value.new_zeros(()))


def _parameters(trace: Any, side: str) -> dict[Tensor, str]:
    found = (site["value"] for site in trace.nodes.values() if site["type"] == "param")
    return {getattr(value, "unconstrained", lambda value=value: value)(): side for value in found}


def _stacked(terms: Sequence[Terms]) -> Terms:
    """(S, B) terms from S single draws."""

    def stacked(table: str) -> dict[str, Tensor]:
        dim = 1 if table in ("normal", "joint_score") else 0
        return {
            site: torch.stack([getattr(one, table)[site] for one in terms], dim) for site in getattr(terms[0], table)
        }

    tables = {table: stacked(table) for table in TABLES}
    return Terms(**tables, weight=terms[0].weight)


def _add(table: dict[str, Tensor], site: str, value: Tensor) -> None:
    table[site] = table[site] + value if site in table else value
