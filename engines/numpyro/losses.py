"""What a step on NumPyro minimises: the objective of the terms, or of refined ones, or of those of two views of x."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers

from ..consistency import joined, views
from ..protocol import Batch, Refinement
from ..refinement import descended, negative_elbo, refuse_other_guides
from ..terms import Sides, Terms
from ..windows import refuse_windows
from .arrays import stop_gradient
from .judging import Judging
from .programs import Parameters


class Losses(Judging):
    """Between judging and the step."""

    def loss_of(self, parameters: Parameters, arrays: Any, key: Array, weight: Any) -> tuple[Terms, Any]:
        """The terms to report, and the loss (B,), or `Sides` of it, under these parameters."""
        if self.settings.refinement:
            return self._refined(parameters, arrays, key, weight, self.settings.refinement)
        if self.settings.consistency is not None:
            return self._consistent(parameters, arrays, key, weight, self.settings.consistency)
        terms = self.terms_of(parameters, arrays, key, self.settings.objective.particles, training=True)
        return terms, self.settings.objective.function(terms, weight)

    def refuse_settings(self, parameters: Parameters, batch: Batch) -> None:
        """BadInput where the settings ask for what this pair cannot do."""
        if self.settings.truncate is not None:
            refuse_windows(self.pair, self.settings.objective)
        if self.settings.refinement:
            key = jax.random.key(0)
            found = jax.eval_shape(lambda arrays: self._amortised(parameters, arrays, key), self.arrays(batch))
            refuse_other_guides([one.shape for one in found], len(batch["weight"]), self.pair.name)

    def _refined(
        self, parameters: Parameters, arrays: Any, key: Array, weight: Any, spec: Refinement
    ) -> tuple[Terms, Any]:
        """At λ_K. Detached, the model is trained there and the guide at λ_0."""
        function = self.settings.objective.function
        start = self._amortised(parameters, arrays, jax.random.fold_in(key, 0))[0]

        def terms_at(at: Array, place: Any, parameters: Parameters) -> Terms:
            noise, particles = jax.random.fold_in(key, place), self.settings.objective.particles
            return self.terms_of(parameters, arrays, noise, particles, training=True, exchange=lambda _: at)

        within = parameters if spec.backpropagate else stop_gradient(parameters)

        def step(carry: tuple[Array, Array], place: Array) -> tuple[tuple[Array, Array], None]:
            gradient = jax.grad(lambda at: negative_elbo(terms_at(at, place, within), weight))(carry[0])
            return descended(*carry, gradient, spec), None

        first = start if spec.backpropagate else stop_gradient(start)
        places = jnp.arange(1, spec.steps + 1)
        (at, _), _ = jax.lax.scan(jax.checkpoint(step), (first, jnp.zeros_like(start)), places)
        terms = terms_at(at, spec.steps + 1, parameters)
        loss = function(terms, weight)
        if spec.backpropagate:
            return terms, loss
        amortised = function(terms_at(start, spec.steps + 2, parameters), weight)
        refined, amortised = (one if isinstance(one, Sides) else Sides(one, one, one) for one in (loss, amortised))
        return terms, Sides(refined.value, refined.model, amortised.guide)

    def _consistent(
        self, parameters: Parameters, arrays: Any, key: Array, weight: Any, strength: float
    ) -> tuple[Terms, Any]:
        """The terms of x; the divergence is that of a guide on t(x) from a model that is the guide on x."""
        particles, function = self.settings.objective.particles, self.settings.objective.function
        keys, (plain, view) = jax.random.split(key, 3), views(arrays)
        terms, augmented = (
            self.terms_of(parameters, one, noise, particles, training=True)
            for one, noise in zip((plain, view), keys[:2], strict=True)
        )
        _, guide = self.programs(parameters, training=True)
        between = (lambda _: guide(plain), lambda _: guide(view))
        divergence = self.terms_of(parameters, plain, keys[2], 1, training=True, programs=between).total_kl()
        return terms, joined(function(terms, weight), function(augmented, weight), strength * divergence)

    def _amortised(self, parameters: Parameters, arrays: Any, key: Array) -> list[Array]:
        """W h of every call of a posterior network, in one run of the guide."""
        found: list[Array] = []

        def noted(amortised: Array) -> Array:
            found.append(amortised)
            return amortised

        _, guide = self.programs(parameters, training=True, exchange=noted)
        trace = handlers.trace(handlers.seed(guide, key)).get_trace(arrays)
        self.moments = self.moments or self._reported(trace)
        return found
