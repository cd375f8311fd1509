"""The two traces of a pair on NumPyro, per datum and per site; and any objective as `loss=` of stock `numpyro.infer.SVI`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.distributions import ExpandedDistribution, Independent, kl_divergence
from numpyro.distributions.distribution import MaskedDistribution
from numpyro.infer.elbo import ELBO

from ...models.errors import BadInput
from ..terms import Terms

PARTICLES = "particles"


def traces(model: Callable[..., Any], guide: Callable[..., Any], key: Array, *args: Any) -> tuple[Any, Any]:
    """The guide's trace and the model's replayed against it."""
    model_key, guide_key = jax.random.split(key)
    guide_trace = handlers.trace(handlers.seed(guide, guide_key)).get_trace(*args)
    replayed = handlers.replay(handlers.seed(model, model_key), trace=guide_trace)
    return guide_trace, handlers.trace(replayed).get_trace(*args)


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
    return {name: site for name, site in trace.items() if site["type"] == "sample"}


def terms(guide_trace: Any, model_trace: Any, *, plate: str, data_size: int, weight: Array | None = None) -> Terms:
    """`Terms` of two traces; `weight` (B,) defaults to ones.

    Raises:
        BadInput: a latent of one side that the other lacks, or a scale on one side only.
    """
    guide, model = sites(guide_trace), sites(model_trace)
    _refuse_mismatch(guide, model)
    rows = _rows(model, plate)
    result = Terms({}, {}, {}, {}, weight if weight is not None else jnp.ones(rows))
    for site, p in model.items():
        datum = _PerDatum(p, plate, rows, data_size)
        _refuse_shapes(site, p, guide.get(site), plate)
        _refuse_scale(site, p, guide.get(site), data_size, rows)
        if p["is_observed"]:
            result.log_likelihood[site] = datum(p["fn"].log_prob(p["value"]))
            continue
        q = guide[site]
        result.log_prior[site] = datum(p["fn"].log_prob(p["value"]))
        result.log_posterior[site] = _PerDatum(q, plate, rows, data_size)(q["fn"].log_prob(q["value"]))
        kl = analytic_kl(q["fn"], p["fn"])
        if kl is not None:
            result.kl[site] = datum(kl, event=True)
    return result


def log_prob(trace: Any, plate: str, data_size: int) -> Array:
    """Σ over sites of one trace, per datum: (B,) or (S, B)."""
    found = sites(trace)
    rows = _rows(found, plate) if found else 0
    parts = (_PerDatum(site, plate, rows, data_size)(site["fn"].log_prob(site["value"])) for site in found.values())
    return sum(parts, jnp.zeros(()))


def analytic_kl(q: Any, p: Any) -> Array | None:
    """KL(q‖p) with the event dimensions flattened into a last one (…, D), or None where no formula is registered."""
    batch, event = jnp.broadcast_shapes(q.batch_shape, p.batch_shape), q.event_shape
    (q_base, q_depth, q_mask), (p_base, p_depth, p_mask) = peel(q), peel(p)
    factorises = q_depth == p_depth == len(event) > 0
    if not factorises:
        (q_base, q_mask), (p_base, p_mask) = _unmasked(q), _unmasked(p)
    try:
        kl = kl_divergence(q_base, p_base)
    except NotImplementedError:
        return None
    kl = (
        jnp.broadcast_to(kl, batch + event).reshape(*batch, -1)
        if factorises
        else jnp.broadcast_to(kl, batch)[..., None]
    )
    mask = q_mask & p_mask
    return kl if mask is True else jnp.where(jnp.asarray(mask)[..., None], kl, 0.0)


def peel(fn: Any) -> tuple[Any, int, Any]:
    """The distribution of one coordinate, how many event dimensions are independent copies of it, and its mask."""
    depth, mask = 0, True
    while isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution)):
        depth += fn.reinterpreted_batch_ndims if isinstance(fn, Independent) else 0
        mask = mask & fn._mask if isinstance(fn, MaskedDistribution) else mask
        fn = fn.base_dist
    return fn, depth, mask


def _unmasked(fn: Any) -> tuple[Any, Any]:
    """`fn` as it was before `mask` and `plate`, and its mask: KLs are registered for two masked sides only."""
    mask = True
    while isinstance(fn, (ExpandedDistribution, MaskedDistribution)):
        mask = mask & fn._mask if isinstance(fn, MaskedDistribution) else mask
        fn = fn.base_dist
    return fn, mask


class Loss(ELBO):
    """An objective as the `loss=` of stock `numpyro.infer.SVI`: −Σ over the data, corpus-scaled as NumPyro's own.

    Args:
        function: `(terms, weight) → (B,)`, e.g. a divergence of `guidebook.inference`.
        plate: name of the data plate.
        weight: the KL weight. It is compiled in: build another loss to change it.
        particles: S.
    """

    def __init__(
        self, function: Callable[[Terms, Any], Array], *, plate: str = "data", weight: float = 1.0, particles: int = 1
    ) -> None:
        super().__init__(num_particles=particles)
        self.function, self.plate, self.weight = function, plate, weight

    def loss(self, rng_key: Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Array:
        def substituted(program: Any) -> Any:
            return lambda: handlers.substitute(program, data=param_map)(*args, **kwargs)

        def found(key: Array) -> tuple[Terms, Array]:
            guide_trace, model_trace = traces(substituted(model), substituted(guide), key)
            rows = _rows(sites(model_trace), self.plate)
            inside = (site for site in sites(model_trace).values() if _frames({"": site}, self.plate))
            scale = next(inside)["scale"] or 1.0
            every = terms(guide_trace, model_trace, plate=self.plate, data_size=round(float(scale) * rows))
            return every, jnp.asarray(scale)

        if self.num_particles == 1:
            every, scale = found(rng_key)
        else:
            keys = jax.random.split(rng_key, self.num_particles)
            every, scale = jax.vmap(found, out_axes=(0, None))(keys)
            every = every._replace(weight=every.weight[0])
        return self.function(every, self.weight).sum() * scale


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


def _frames(model: Mapping[str, Any], plate: str) -> list[Any]:
    return [frame for site in model.values() for frame in site["cond_indep_stack"] if frame.name == plate]


def _rows(model: Mapping[str, Any], plate: str) -> int:
    frames = _frames(model, plate)
    if not frames:
        raise BadInput(f"no site of the model stands in the plate {plate!r}: put the data in it, or name the right one")
    return frames[0].size


def _refuse_mismatch(guide: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    latents = {name for name, site in model.items() if not site["is_observed"]}
    for name in sorted(latents ^ set(guide)):
        here, there = ("model", "guide") if name in latents else ("guide", "model")
        raise BadInput(f"the {here} samples {name!r} and the {there} does not: a latent stands in both")


def _refuse_shapes(name: str, p: Mapping[str, Any], q: Mapping[str, Any] | None, plate: str) -> None:
    """Else terms would be broadcast, and silently wrong. q: None for an observed site."""
    q = q or p
    inside = [bool(_frames({"": site}, plate)) for site in (p, q)]
    if inside[0] != inside[1]:
        here, there = ("model", "guide") if inside[0] else ("guide", "model")
        raise BadInput(f"the latent {name!r} stands in the plate {plate!r} in the {here}, and outside in the {there}")
    events = [tuple(site["fn"].event_shape) for site in (p, q)]
    if events[0] != events[1]:
        raise BadInput(
            f"the latent {name!r} has the event shape {events[0]} in the model and {events[1]} in the guide: "
            "to_event declares the dimensions of one datum"
        )


def _refuse_scale(name: str, p: Mapping[str, Any], q: Mapping[str, Any] | None, data_size: int, rows: int) -> None:
    """Terms are unscaled: a scale that is not the plate's own would be lost. q: None for an observed site."""
    scales = [float(1.0 if site["scale"] is None else site["scale"]) for site in (p, q or p)]
    allowed = (1.0, data_size / rows)
    if any(all(abs(scale - right) > 1e-6 * right for right in allowed) for scale in scales) or (
        abs(scales[0] - scales[1]) > 1e-6 * scales[0]
    ):
        guide = "" if q is None else f" and {scales[1]:g} in the guide"
        raise BadInput(
            f"the site {name!r} is scaled by {scales[0]:g} in the model{guide}, where the data plate gives "
            f"{data_size / rows:g}: leave weights out of programs and set divergence.weight"
        )
