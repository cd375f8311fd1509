"""What a step on Pyro minimises: the objective of the terms, or of refined ones, or of those of two views of x."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..consistency import joined, views
from ..protocol import Batch, Refinement
from ..refinement import descended, negative_elbo, refuse_other_guides
from ..seeds import derive
from ..terms import Sides, Terms
from ..windows import Carry, refuse_windows, windows
from .filtering import _detached
from .judging import Judging
from .module import _still
from .posteriors import Amortised
from .precision import _twice_differentiable
from .programs import Exchange


class Losses(Judging):
    """Between judging and the step."""

    def losses_of(self, arrays: dict[str, Tensor], weight: Any) -> Iterator[tuple[Terms, Any]]:
        """`loss_of` of every window of the batch, each to be differentiated before the next; one where none is cut."""
        size = self.settings.truncate
        self.ppl.carry = carry = None if size is None else Carry()
        for part in windows(arrays, size):
            yield self.loss_of(part, weight)
            self.ppl.paths.clear()
            if carry is not None:
                carry.start = _detached(carry.last)
        self.ppl.carry = None

    def loss_of(self, arrays: dict[str, Tensor], weight: Any) -> tuple[Terms, Any]:
        """The terms to report, and the loss (B,), or `Sides` of it, at the present parameters."""
        if self.settings.refinement:
            return self._refined(arrays, weight, self.settings.refinement)
        if self.settings.consistency is not None:
            return self._consistent(arrays, weight, self.settings.consistency)
        terms = self.terms_of(arrays, self.settings.objective.particles)
        return terms, self.settings.objective.function(terms, weight)

    def refuse_settings(self, batch: Batch) -> None:
        """BadInput where the settings ask for what this pair cannot do."""
        if self.settings.truncate is not None:
            refuse_windows(self.pair, self.settings.objective)
        if self.settings.refinement:
            with torch.no_grad(), self.running(derive(self.settings.seed, "init")):
                found = self._amortised(self.arrays(batch))
            refuse_other_guides([tuple(one.shape) for one in found], len(batch["weight"]), self.pair.name)

    def _refined(self, arrays: dict[str, Tensor], weight: Any, spec: Refinement) -> tuple[Terms, Any]:
        """At λ_K. Detached, the model is trained there and the guide at λ_0."""
        particles, function = self.settings.objective.particles, self.settings.objective.function
        start = self._amortised(arrays)[0]
        at, velocity = start if spec.backpropagate else start.detach(), torch.zeros_like(start)
        weights = [one for network in self.networks.values() for one in network.parameters()]
        for _ in range(spec.steps):
            at = at if spec.backpropagate else at.detach().requires_grad_()
            with (
                _twice_differentiable() if spec.backpropagate else _still(weights),
                self._exchanging(lambda _, at=at: at),
            ):
                loss = negative_elbo(self.terms_of(arrays, particles), weight)
            gradient = torch.autograd.grad(loss, at, create_graph=spec.backpropagate)[0]
            at, velocity = descended(at, velocity, gradient, spec)
        at = at if spec.backpropagate else at.detach()
        with self._exchanging(lambda _: at):
            terms = self.terms_of(arrays, particles)
        loss = function(terms, weight)
        if spec.backpropagate:
            return terms, loss
        with self._exchanging(lambda _: start):
            amortised = function(self.terms_of(arrays, particles), weight)
        refined, amortised = (one if isinstance(one, Sides) else Sides(one, one, one) for one in (loss, amortised))
        return terms, Sides(refined.value, refined.model, amortised.guide)

    def _consistent(self, arrays: dict[str, Tensor], weight: Any, strength: float) -> tuple[Terms, Any]:
        """The terms of x; the divergence is that of a guide on t(x) from a model that is the guide on x."""
        particles, function = self.settings.objective.particles, self.settings.objective.function
        plain, view = views(arrays)
        terms, augmented = (self.terms_of(one, particles) for one in (plain, view))
        guide = self.programs()[1]
        between = self.terms_of(plain, 1, programs=(lambda _: guide(plain), lambda _: guide(view)))
        loss = joined(function(terms, weight), function(augmented, weight), strength * between.total_kl())
        return terms, loss

    def _amortised(self, arrays: dict[str, Tensor]) -> list[Tensor]:
        """W h of every call of a posterior network, in one run of the guide."""
        found: list[Tensor] = []

        def noted(amortised: Tensor) -> Tensor:
            found.append(amortised)
            return amortised

        with self._exchanging(noted):
            self.programs()[1](arrays)
        return found

    @contextmanager
    def _exchanging(self, exchange: Exchange) -> Iterator[None]:
        posteriors = [network for network in self.networks.values() if isinstance(network, Amortised)]
        for posterior in posteriors:
            posterior.exchange = exchange
        try:
            yield
        finally:
            for posterior in posteriors:
                posterior.exchange = None
