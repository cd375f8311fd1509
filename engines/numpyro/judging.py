"""What is asked of a fitted pair on NumPyro: terms, importance weights, posteriors, draws, the decoder word by word."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions import Normal, constraints

from ...guides.pair import Pair
from ...models.spec import Network
from ..draws import by_row, particle_seeds, standard_normal
from ..filtering import of_filter
from ..protocol import Batch, Posterior, Settings
from ..seeds import derive
from ..sites import is_shared
from ..suited import refuse_immovable, refuse_shared
from ..terms import Terms
from . import objective
from .analytic import peel
from .arrays import stop_gradient
from .chains import chain
from .decoding import Decoding
from .dreams import asleep
from .enumeration import weighed
from .noise import CommonNoise
from .particles import _key, to_numpy
from .programs import Exchange, Function, Parameters


class Judging(Decoding):
    """The half of `engines.protocol.Program` that reads a state and leaves it alone; compiled once a shape."""

    def __init__(self, pair: Pair, nets: Mapping[str, Network], settings: Settings) -> None:
        super().__init__(pair, nets, settings)
        self.moments: dict[str, Array] = {}
        """What the running moments are of the batch, by the first pass since this was emptied."""
        self._families: dict[str, str] = {}
        self._layouts: dict[str, dict[str, Any]] = {}
        self._normals: dict[Any, dict[str, tuple[int, ...]]] = {}
        self._evaluate = jax.jit(self._traced_terms, static_argnums=(4,))
        self._guide_draws = jax.jit(self._traced_draws, static_argnums=(4,))
        self._log_joint = jax.jit(self._traced_log_joint)
        self._encode = jax.jit(self._traced_posterior)

    def terms(self, state: Any, batch: Batch, *, seed: int, particles: int = 1, drawn: bool = False) -> Terms:
        arrays = self.arrays(batch)
        filtering = self.settings.objective.filtering
        noise = self._noise(state.parameters, arrays, seed, particles) if drawn or self.values is None else None
        found = self._evaluate(state.parameters, arrays, _key(seed), noise, particles)
        found = found.converted(to_numpy, self.settings.objective.needs)
        evidence = filtering and self.filter(state, batch, seed=seed, particles=particles, filtering=filtering)
        return found._replace(evidence=evidence and evidence.log_evidence)

    def log_weights(self, state: Any, batch: Batch, *, seed: int, particles: int, rows: int) -> np.ndarray:
        refuse_shared(self.shared)
        arrays = self.arrays(batch)
        size = min(particles, max(1, rows // len(batch["weight"])))
        padded = -(-particles // size) * size
        latents, log_q = self._drawn(state.parameters, arrays, seed, padded)
        found = []
        for start in range(0, padded, size):
            chunk = {site: value[start : start + size] for site, value in latents.items()}
            found.append(to_numpy(self._log_joint(state.parameters, arrays, chunk)))
        return (np.concatenate(found) - to_numpy(log_q))[:particles]

    def posterior(self, state: Any, batch: Batch) -> dict[str, Posterior]:
        found = self._encode(state.parameters, self.arrays(batch))
        rows = len(batch["weight"])
        return {
            site: Posterior(self._families[site], *(to_numpy(value).reshape(rows, -1) for value in moments[:2]))
            for site, (moments, other) in found.items()
            if all(np.array_equal(one, two, equal_nan=True) for one, two in zip(moments, other, strict=True))
        }

    def draws(self, state: Any, batch: Batch, *, seed: int, particles: int) -> dict[str, np.ndarray]:
        latents, _ = self._drawn(state.parameters, self.arrays(batch), seed, particles)
        rows = len(batch["weight"])
        return {site: by_row(to_numpy(value), **self._layouts[site], rows=rows) for site, value in latents.items()}

    def chain(self, state: Any, batch: Batch, *, seed: int, draws: int, warmup: int) -> dict[str, np.ndarray]:
        model, _ = self.programs(state.parameters, training=False)
        start = self._latents(
            {site: draw[0] for site, draw in self.draws(state, batch, seed=seed, particles=1).items()}
        )
        arrays = self.arrays(batch)

        def trace(latents: dict[str, Any]) -> Any:
            fixed = handlers.condition(handlers.seed(model, jax.random.key(0)), data=latents)
            return handlers.trace(fixed).get_trace(arrays)

        refuse_immovable(objective.sites(trace(start)), start, self.pair.plate, constraints.real)
        found = chain(
            lambda latents: -self._log_prob(trace(latents)).sum(), start, derive(seed, "chain"), draws, warmup
        )
        return {site: to_numpy(value) for site, value in found.items()}

    def log_joint(self, state: Any, batch: Batch, latents: Mapping[str, np.ndarray]) -> np.ndarray:
        return to_numpy(self._log_joint(state.parameters, self.arrays(batch), self._latents(latents)))

    def terms_of(
        self,
        parameters: Parameters,
        arrays: Any,
        key: Array,
        particles: int,
        *,
        training: bool,
        noise: dict[str, Array] | None = None,
        exchange: Exchange | None = None,
        programs: tuple[Function, Function] | None = None,
    ) -> Terms:
        """`Terms` under these parameters, traceable and differentiable: of draws, or of all values where enumerated.

        noise: the common one of the draws, when judging. exchange: of the posteriors. programs: in place of the pair's
        own two.
        """
        filtering = self.settings.objective.filtering
        if filtering is not None and training:
            found = self._filtered(parameters, arrays, key, None, None, particles, filtering, training)
            return of_filter(found, arrays["weight"])
        model, guide = programs or self.programs(parameters, training=training, exchange=exchange)
        needs, still = self.settings.objective.needs, model
        if "joint_score" in needs:
            still, _ = self.programs(stop_gradient(parameters), training=training)
        found = self._two_traces((model, guide, still), arrays, key, particles, training, noise)
        if "dream" not in needs:
            return found
        model, _ = self.programs(stop_gradient(parameters), training=training)
        _, guide = self.programs(parameters, training=training)
        trace = asleep(model, guide, jax.random.fold_in(key, 2), arrays)
        return found._replace(dream=objective.dream(trace, self.pair.plate))

    def _two_traces(
        self,
        programs: tuple[Function, Function, Function],
        arrays: Any,
        key: Array,
        particles: int,
        training: bool,
        noise: dict[str, Array] | None,
    ) -> Terms:
        """programs: model, guide, and the model with its parameters fixed."""
        model, guide, still = programs
        values = self.values if noise is None else None
        particles = particles if values is None else len(values)
        if particles > 1 and self.broadcasts:
            model, guide, still = (objective.plated(program, particles, self.outermost) for program in programs)
        plate, size, weight = self.pair.plate, self.settings.data_size, arrays["weight"]
        needs = self.settings.objective.needs

        def found(
            key: Array, noise: dict[str, Array] | None, values: Array | None = None
        ) -> tuple[Terms, dict[str, Array]]:
            own = guide if noise is None else CommonNoise(guide, noise)
            both = objective.traces(model, own, key, arrays, values=values)
            terms = objective.terms(
                *both, plate=plate, data_size=size, weight=weight, needs=needs, key=jax.random.fold_in(key, 1)
            )
            if training:  # the values are those of log q without another pass
                again = handlers.seed(guide, jax.random.split(key)[1])  # the noise of objective.traces
                terms = objective.parted(terms, again, both[0], arrays, plate=plate, data_size=size)
            if "joint_score" in needs:
                fixed = handlers.seed(still, jax.random.split(key)[0])
                score = objective.joint_score(fixed, both[0], arrays, plate=plate, data_size=size)
                terms = terms._replace(joint_score=score)
            return terms, self._reported(both[0]) if training else {}

        if values is not None and self.broadcasts:
            return weighed(found(key, None, values)[0])
        if values is not None:  # one key: the same q(z | x) for every value
            return weighed(objective._stacked(jax.vmap(partial(found, key, None))(values)[0]))
        if particles == 1 or self.broadcasts:
            terms, moments = found(key, noise)
            self.moments = self.moments or moments
            return terms
        terms, moments = jax.vmap(found)(jax.random.split(key, particles), noise)
        self.moments = self.moments or {name: moment.mean(0) for name, moment in moments.items()}
        return objective._stacked(terms)

    def _reported(self, guide_trace: Any) -> dict[str, Array]:
        return {name: guide_trace[name]["value"] for name in self.momentum}

    def _noise(self, parameters: Parameters, arrays: Any, seed: int, particles: int) -> dict[str, np.ndarray]:
        """ε of every normal latent, (S, …)."""
        shape = tuple(array.shape for array in arrays.values())
        if shape not in self._normals:
            _, guide = self.programs(parameters, training=False)
            probe = CommonNoise(guide)
            jax.eval_shape(lambda arrays: handlers.seed(probe, jax.random.key(0))(arrays), arrays)
            self._normals[shape] = probe.shapes
        sizes = self._normals[shape].items()
        if self.broadcasts:
            found = {site: standard_normal(seed, site, (particles, *size)) for site, size in sizes}
        else:
            seeds = particle_seeds(seed, particles)
            found = {site: np.stack([standard_normal(one, site, size) for one in seeds]) for site, size in sizes}
        return {site: noise.astype(self.dtype) for site, noise in found.items()}

    def _drawn(self, parameters: Parameters, arrays: Any, seed: int, particles: int) -> tuple[dict[str, Array], Array]:
        noise = self._noise(parameters, arrays, seed, particles)
        return self._guide_draws(parameters, arrays, _key(seed), noise, particles)

    def _traced_terms(self, parameters: Parameters, arrays: Any, key: Array, noise: Any, particles: int) -> Terms:
        return self.terms_of(parameters, arrays, key, particles, training=False, noise=noise)

    def _traced_draws(
        self, parameters: Parameters, arrays: Any, key: Array, noise: Any, particles: int
    ) -> tuple[dict[str, Array], Array]:
        """Latents (S, B, …) and log q (S, B) from one pass of the guide."""
        _, guide = self.programs(parameters, training=False)

        def one(key: Array, noise: Any, program: Function) -> tuple[dict[str, Array], Array]:
            _, guide_key = jax.random.split(key)  # as in objective.traces: one seed, the same latents
            trace = handlers.trace(handlers.seed(CommonNoise(program, noise), guide_key)).get_trace(arrays)
            sites = objective.sites(trace)
            self._layouts |= {name: self._layout(site) for name, site in sites.items()}
            return {name: site["value"] for name, site in sites.items()}, self._log_prob(trace)

        if self.broadcasts:
            values, log_q = one(key, noise, objective.plated(guide, particles, self.outermost))
        else:
            keys = key[None] if particles == 1 else jax.random.split(key, particles)
            values, log_q = jax.vmap(partial(one, program=guide))(keys, noise)
        return values, jnp.broadcast_to(log_q, (particles, arrays["weight"].shape[0]))

    def _traced_log_joint(self, parameters: Parameters, arrays: Any, latents: dict[str, Array]) -> Array:
        model, _ = self.programs(parameters, training=False)
        count = len(next(iter(latents.values())))

        def one(latents: dict[str, Any], program: Function) -> Array:
            fixed = handlers.condition(handlers.seed(program, jax.random.key(0)), data=latents)
            return self._log_prob(handlers.trace(fixed).get_trace(arrays))

        if self.broadcasts:
            return jnp.broadcast_to(
                one(latents, objective.plated(model, count, self.outermost)), (count, arrays["weight"].shape[0])
            )
        return jax.vmap(partial(one, program=model))(latents)

    def _log_prob(self, trace: Any) -> Array:
        return objective.log_prob(trace, self.pair.plate, self.settings.data_size)

    def _latents(self, values: Mapping[str, np.ndarray]) -> dict[str, Array]:
        return {site: jnp.asarray(value, self.dtype) for site, value in values.items()}

    def _layout(self, site: Any) -> dict[str, Any]:
        """Where `by_row` finds the rows of a site; the steps of a scan stand before its other dimensions."""
        plate = [frame.dim for frame in site["cond_indep_stack"] if frame.name == self.pair.plate]
        return {"event": site["fn"].event_dim, "plate": plate[0] if plate else None}

    def _traced_posterior(self, parameters: Parameters, arrays: Any) -> dict[str, Any]:
        """Moments of every local site, twice: they differ where a site hangs on another latent's draw."""
        _, guide = self.programs(parameters, training=False)

        def sites(seed: int) -> dict[str, Any]:
            return objective.sites(handlers.trace(handlers.seed(guide, jax.random.key(seed))).get_trace(arrays))

        def moments(site: Any) -> tuple[Array, ...]:
            """Mean and standard deviation, NaN where the family has none in closed form, and the mean of a measure."""
            fn, base = site["fn"], peel(site["fn"])[0]
            measure = (base.mean_measure,) if hasattr(base, "mean_measure") else ()
            try:
                return fn.mean, jnp.sqrt(fn.variance), *measure
            except NotImplementedError:
                unknown = jnp.full(fn.shape(), jnp.nan)
                return unknown, unknown, *measure

        once = sites(0)
        again = sites(1) if len(once) > 1 else once
        found = {}
        for name, site in once.items():
            if not is_shared(site, self.pair.plate) and len(site["fn"].batch_shape) == 1:
                base, _, _ = peel(site["fn"])
                self._families[name] = "normal" if isinstance(base, Normal) else type(base).__name__
                found[name] = moments(site), moments(again[name])
        return found
