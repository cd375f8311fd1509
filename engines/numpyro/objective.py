"""The two traces of a pair on NumPyro, per datum and per site; and any objective as `loss=` of stock `numpyro.infer.SVI`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.elbo import ELBO

from ...models.errors import BadInput
from ..protocol import Objective
from ..sites import PARTICLES, is_shared, refuse_mismatch, refuse_scale, refuse_shapes, rows_of
from ..suited import refuse_unsuited
from ..terms import TABLES, Sides, Terms
from .analytic import analytic_kl, peel
from .arrays import stop_gradient
from .dreams import asleep
from .enumeration import at, support, weighed
from .needed import _vector, needed
from .unrolled import Unrolled, given


def traces(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    key: Array,
    *args: Any,
    values: Array | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """The guide's trace, its one latent at `values` in place of a draw where they are given, and the model's at it."""
    model_key, guide_key = jax.random.split(key)
    guide_trace = handlers.trace(handlers.seed(guide, guide_key)).get_trace(*args, **kwargs)
    if values is not None:
        guide_trace = at(guide_trace, values, sites(guide_trace))
    return guide_trace, replayed(handlers.seed(model, model_key), guide_trace, *args, **kwargs)


def replayed(model: Callable[..., Any], guide_trace: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's trace at the latents of the guide's."""
    return handlers.trace(handlers.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)


def plated(program: Callable[..., Any], particles: int, dim: int) -> Callable[..., Any]:
    """`program` in an outer plate of S particles."""

    def run(*args: Any) -> None:
        with numpyro.plate(PARTICLES, particles, dim=dim):
            program(*args)

    return run


def outermost(*traces: Any) -> int:
    """The dimension to the left of every plate of these traces: where the particles go."""
    frames = (frame for trace in traces for site in sites(trace).values() for frame in site["cond_indep_stack"])
    return min((frame.dim for frame in frames), default=-1) - 1


def sites(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The sample sites of a trace that carry probability."""
    return {name: given(site) for name, site in trace.items() if site["type"] == "sample"}


def terms(
    guide_trace: Any,
    model_trace: Any,
    *,
    plate: str,
    data_size: int,
    weight: Array | None = None,
    needs: Set[str] = frozenset(),
    key: Array | None = None,
) -> Terms:
    """`Terms` of two traces; `weight` (B,) defaults to ones. needs: fields beyond those always there; key: for them.

    Raises:
        BadInput: a latent of one side that the other lacks, or a scale on one side only.
    """
    guide, model = sites(guide_trace), sites(model_trace)
    refuse_mismatch(guide, model)
    rows = rows_of(model, plate)
    tables: dict[str, dict[str, Array]] = {name: {} for name in TABLES}
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(model))
    for (site, p), draw in zip(model.items(), keys, strict=True):
        datum = _PerDatum(p, plate, rows, data_size)
        refuse_shapes(site, p, guide.get(site), plate)
        refuse_scale(site, p, guide.get(site), data_size, rows)
        if p["is_observed"]:
            tables["log_likelihood"][site] = datum(p["fn"].log_prob(p["value"]))
            continue
        q = guide[site]
        by_guide = _PerDatum(q, plate, rows, data_size)
        tables["log_prior"][site] = datum(p["fn"].log_prob(p["value"]))
        tables["log_posterior"][site] = by_guide(q["fn"].log_prob(q["value"]))
        kl = analytic_kl(q["fn"], p["fn"])
        if kl is not None:
            kl = kl if by_guide.share is None else kl.sum(-1)[..., None]  # as many dimensions as weights, for each row
            tables["kl"][site] = datum(kl, event=True)
        base, _, mask = peel(q["fn"])
        choice = getattr(base, "log_choice", lambda value: None)(q["value"])
        if choice is not None:
            tables["choice"][site] = by_guide(jnp.where(mask, choice, 0.0))
        for field, value in needed(p, q, needs, {PARTICLES, plate}, draw).items():
            if field in ("path", "score", "score_norm"):
                tables[field][site] = by_guide(value)
            elif not by_guide.share:
                tables[field][site] = value
    return Terms(**tables, weight=weight if weight is not None else jnp.ones(rows))


def log_prob(trace: Any, plate: str, data_size: int) -> Array:
    """Σ over sites of one trace, per datum: (B,) or (S, B)."""
    found = sites(trace)
    rows = rows_of(found, plate) if found else 0
    parts = (_PerDatum(site, plate, rows, data_size)(site["fn"].log_prob(site["value"])) for site in found.values())
    return sum(parts, jnp.zeros(()))


def joint_score(
    model: Callable[..., Any], guide_trace: Any, *args: Any, plate: str, data_size: int, **kwargs: Any
) -> dict[str, Array]:
    """`Terms.joint_score` at the latents of the guide's trace, by a pass of the model of its own.

    model: seeded as for the terms, and XLA forms what both passes share once; its parameters fixed.
    """
    guide = sites(guide_trace)

    def total(values: dict[str, Array], latent: bool) -> Array:
        at = {name: {**site, "value": values[name]} for name, site in guide.items()}
        trace = sites(replayed(model, at, *args, **kwargs))
        part = {name: site for name, site in trace.items() if (name in guide) == latent}
        return log_prob(part, plate, data_size).sum()

    fixed = {name: stop_gradient(site["value"]) for name, site in guide.items()}
    parts = [jax.grad(total)(fixed, latent) for latent in (False, True)]
    return {
        name: jnp.stack([_vector(part[name], site, {PARTICLES, plate}) for part in parts])
        for name, site in guide.items()
    }


def parted(
    terms: Terms, guide: Callable[..., Any], guide_trace: Any, *args: Any, plate: str, data_size: int, **kwargs: Any
) -> Terms:
    """The terms with the `path` and the `score` of latents that hang on each other, by a pass of the guide of its own.

    There the score is log q of the guide run along fixed latents, and the path's gradient is what the score leaves of
    that of log q. Terms without these fields need no other pass, nor does a single latent. guide: seeded.
    """
    latents = sites(guide_trace)
    alone = len(latents) == 1 and not any(isinstance(guide_trace[name]["fn"], Unrolled) for name in latents)
    if alone or not (terms.path or terms.score):
        return terms
    fixed = {name: stop_gradient(site["value"]) for name, site in latents.items()}
    trace = handlers.trace(handlers.substitute(guide, data=fixed)).get_trace(*args, **kwargs)
    score = {
        name: _PerDatum(site, plate, len(terms.weight), data_size)(site["fn"].log_prob(site["value"]))
        for name, site in sites(trace).items()
    }
    path = {site: terms.log_posterior[site] - value + stop_gradient(value) for site, value in score.items()}
    both = {"path": path, "score": score}
    return terms._replace(**{field: table for field, table in both.items() if getattr(terms, field)})


def dream(trace: Any, plate: str) -> dict[str, Array]:
    """`Terms.dream` of the guide's trace from `asleep`.

    Raises:
        BadInput: a latent outside the plate, which no single datum's dream is about.
    """
    found: dict[str, Array] = {}
    guide = sites(trace)
    for name, q in guide.items():
        if is_shared(q, plate):
            raise BadInput(f"the sleep phase is of latents per datum, and {name!r} stands outside the plate {plate!r}")
        found[name] = _PerDatum(q, plate, rows_of(guide, plate), 1)(q["fn"].log_prob(q["value"]))
    return found


class Loss(ELBO):
    """An objective as the `loss=` of stock `numpyro.infer.SVI`: −Σ over the data, corpus-scaled as NumPyro's own.

    Args:
        objective: what is minimised, and what it needs; `divergence.on("numpyro")` makes one.
        plate: name of the data plate.
        weight: the KL weight. It is compiled in: build another loss to change it.
    """

    def __init__(self, objective: Objective, *, plate: str = "data", weight: float = 1.0) -> None:
        super().__init__(num_particles=objective.particles)
        self.objective, self.plate, self.weight = objective, plate, weight
        self.can_infer_discrete = not objective.needs.isdisjoint({"score", "enumeration"})

    def loss(self, rng_key: Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Array:
        in_model: set[str] = set()

        def sides(param_map: Any) -> Sides:
            def substituted(program: Any, data: Any = param_map) -> Any:
                return handlers.substitute(program, data=data)

            def found(key: Array, values: Array | None = None) -> tuple[Terms, Array]:
                programs = substituted(model), substituted(guide)
                guide_trace, model_trace = traces(*programs, key, *args, values=values, **kwargs)
                in_guide = {name for name, site in guide_trace.items() if site["type"] == "param"}
                in_model.update(name for name, site in model_trace.items() if site["type"] == "param")
                in_model.difference_update(in_guide)
                rows = rows_of(sites_of := sites(model_trace), self.plate)
                scale = next(site for site in sites_of.values() if not is_shared(site, self.plate))["scale"] or 1.0
                made = terms(
                    guide_trace,
                    model_trace,
                    plate=self.plate,
                    data_size=round(float(scale) * rows),
                    needs=self.objective.needs,
                    key=jax.random.fold_in(key, 1),
                )
                refuse_unsuited(sites(guide_trace), sites_of, self.objective, self.plate, constraints.real)
                again = handlers.seed(programs[1], jax.random.split(key)[1])
                size = round(float(scale) * rows)
                made = parted(made, again, guide_trace, *args, plate=self.plate, data_size=size, **kwargs)
                if "joint_score" in self.objective.needs:
                    still = handlers.seed(substituted(model, stop_gradient(param_map)), jax.random.split(key)[0])
                    score = joint_score(still, guide_trace, *args, plate=self.plate, data_size=size, **kwargs)
                    made = made._replace(joint_score=score)
                return made, jnp.asarray(scale)

            if "enumeration" in self.objective.needs:
                drawn, _ = traces(substituted(model), substituted(guide), rng_key, *args, **kwargs)
                every, scale = jax.vmap(partial(found, rng_key), out_axes=(0, None))(support(sites(drawn), self.plate))
                every = weighed(_stacked(every))
            elif self.num_particles == 1:
                every, scale = found(rng_key)
            else:
                keys = jax.random.split(rng_key, self.num_particles)
                every, scale = jax.vmap(found, out_axes=(0, None))(keys)
                every = _stacked(every)
            if "dream" in self.objective.needs:
                both = substituted(model, stop_gradient(param_map)), substituted(guide)
                trace = asleep(*both, jax.random.fold_in(rng_key, 2), *args, **kwargs)
                every = every._replace(dream=dream(trace, self.plate))
            loss = self.objective.function(every, self.weight)
            if isinstance(loss, Sides):
                return Sides(*(part.sum() * scale for part in loss))
            total = loss.sum() * scale
            return Sides(total, total, total)

        first = sides(param_map)
        if first.model is first.guide:
            return first.value
        fixed = {
            side: {
                name: stop_gradient(value) if (name in in_model) != own else value for name, value in param_map.items()
            }
            for side, own in (("model", True), ("guide", False))
        }
        surrogate = sides(fixed["model"]).model + sides(fixed["guide"]).guide
        return stop_gradient(first.value - surrogate) + surrogate


def _stacked(terms: Terms) -> Terms:
    """`Terms` whose arrays a vmap over S draws has stacked, with their axes where they belong."""
    inside = {
        table: {site: jnp.moveaxis(value, 0, 1) for site, value in getattr(terms, table).items()}
        for table in ("normal", "joint_score")
    }
    return terms._replace(weight=terms.weight[0], **inside)


class _PerDatum:
    """Brings a log-probability of one site to (B,) or (S, B).

    A site outside the data plate is global: its term counts 1 / N for every datum, so that it counts once per epoch.
    """

    def __init__(self, site: Mapping[str, Any], plate: str, rows: int, data_size: int) -> None:
        frames = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
        self.keep = {frames[name] for name in (PARTICLES, plate) if name in frames}
        self.share = None if plate in frames else (rows, data_size)

    def __call__(self, value: Array, event: bool = False) -> Array:
        keep = {dim - 1 for dim in self.keep} | {-1} if event else self.keep
        value = value.sum(tuple(dim for dim in range(-value.ndim, 0) if dim not in keep))
        if self.share is None:
            return value
        rows, data_size = self.share
        axis = -2 if event else -1
        return jnp.repeat(jnp.expand_dims(value / data_size, axis), rows, axis)
