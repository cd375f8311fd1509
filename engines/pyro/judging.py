"""What is asked of a fitted pair on Pyro: terms, importance weights, posteriors, draws, the decoder word by word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Normal

from ..draws import by_row, particle_seeds
from ..filtering import of_filter
from ..protocol import Batch, Posterior
from ..seeds import derive
from ..sites import is_shared
from ..suited import refuse_immovable, refuse_shared
from ..terms import Terms
from . import objective
from .analytic import peel
from .chains import chain
from .decoding import Decoding
from .dreams import asleep
from .enumeration import at, weighed
from .noise import CommonNoise
from .particles import to_numpy
from .ppl import _base_name
from .programs import Function


class Judging(Decoding):
    """The half of `engines.protocol.Program` that reads a state and leaves it alone."""

    def terms(self, state: Any, batch: Batch, *, seed: int, particles: int = 1, drawn: bool = False) -> Terms:
        filtering = self.settings.objective.filtering
        with self._evaluation(seed):
            arrays = self.arrays(batch)
            found = (
                self._drawn_terms(self.programs(), arrays, particles, seed)
                if drawn or filtering
                else self.terms_of(arrays, particles, seed)
            )
            found = found.converted(to_numpy, self.settings.objective.needs)
        evidence = filtering and self.filter(state, batch, seed=seed, particles=particles, filtering=filtering)
        return found._replace(evidence=evidence and evidence.log_evidence)

    def log_weights(self, state: Any, batch: Batch, *, seed: int, particles: int, rows: int) -> np.ndarray:
        refuse_shared(self.shared)
        model, guide = self.programs()
        arrays = self.arrays(batch)
        with self._evaluation(seed):
            if not self.broadcasts:
                terms = self._drawn_terms((model, guide), arrays, particles, seed)
                return to_numpy(terms.log_weight().reshape(particles, -1))
            trace = self._plated_trace(guide, arrays, particles, seed)
            latents = {name: site["value"] for name, site in objective.sites(trace).items()}
            size = max(1, rows // len(batch["weight"]))
            found = []
            for start in range(0, particles, size):
                chunk = {name: value[start : start + size] for name, value in latents.items()}
                count = min(size, particles - start)
                joint = self._plated_trace(poutine.condition(model, data=chunk), arrays, count)
                found.append(self._log_prob(joint).expand(count, -1))
            return to_numpy(torch.cat(found) - self._log_prob(trace))

    def posterior(self, state: Any, batch: Batch) -> dict[str, Posterior]:
        _, guide = self.programs()
        with self._evaluation(0):
            arrays = self.arrays(batch)
            once = objective.sites(poutine.trace(guide).get_trace(arrays))
            again = objective.sites(poutine.trace(guide).get_trace(arrays)) if len(once) > 1 else once
            return {
                name: _describe(site["fn"])
                for name, site in once.items()
                if _base_name(name, site) == name
                and len(site["fn"].batch_shape) == 1
                and not is_shared(site, self.pair.plate)
                and _same_moments(site["fn"], again[name]["fn"])
            }

    def draws(self, state: Any, batch: Batch, *, seed: int, particles: int) -> dict[str, np.ndarray]:
        _, guide = self.programs()
        arrays, rows = self.arrays(batch), len(batch["weight"])
        with self._evaluation(seed):
            if self.broadcasts:
                trace = self._plated_trace(guide, arrays, particles, seed)
                found = _values(trace)
            else:
                guides = [CommonNoise(one)(guide) for one in particle_seeds(seed, particles)]
                traces = [poutine.trace(one).get_trace(arrays) for one in guides]
                trace, each = traces[0], [_values(trace) for trace in traces]
                found = {site: np.stack([draw[site] for draw in each]) for site in each[0]}
        where = {_base_name(name, site): self._layout(name, site) for name, site in objective.sites(trace).items()}
        return {site: by_row(value, **where[site], rows=rows) for site, value in found.items()}

    def chain(self, state: Any, batch: Batch, *, seed: int, draws: int, warmup: int) -> dict[str, np.ndarray]:
        model, _ = self.programs()
        start = self._latents(
            {site: draw[0] for site, draw in self.draws(state, batch, seed=seed, particles=1).items()}
        )
        arrays = self.arrays(batch)

        def trace(latents: dict[str, Tensor]) -> Any:
            return poutine.trace(poutine.condition(model, data=latents)).get_trace(arrays)

        with self._evaluation(derive(seed, "chain")):
            refuse_immovable(objective.sites(trace(start)), start, self.pair.plate, constraints.real)
            found = chain(lambda latents: -self._log_prob(trace(latents)).sum(), start, seed, draws, warmup)
        return {site: to_numpy(value) for site, value in found.items()}

    def log_joint(self, state: Any, batch: Batch, latents: Mapping[str, np.ndarray]) -> np.ndarray:
        model, _ = self.programs()
        arrays = self.arrays(batch)
        with self._evaluation(0):
            found = []
            for number in range(len(next(iter(latents.values())))):
                one = self._latents({site: value[number] for site, value in latents.items()})
                found.append(self._log_prob(poutine.trace(poutine.condition(model, data=one)).get_trace(arrays)))
        return to_numpy(torch.stack(found))

    def terms_of(
        self,
        arrays: dict[str, Tensor],
        particles: int,
        seed: int | None = None,
        *,
        programs: tuple[Function, Function] | None = None,
    ) -> Terms:
        """`Terms` at the present parameters, differentiable: of draws, or of all values where they are enumerated.

        seed: of the common noise, when judging. programs: in place of the pair's own two, for one particle.
        """
        programs = programs or self.programs()
        filtering = self.settings.objective.filtering
        if filtering is not None:
            return of_filter(self._filtered(arrays, particles, filtering, seed), arrays["weight"])
        if self.values is None:
            found = self._drawn_terms(programs, arrays, particles, seed)
        else:
            found = self._enumerated_terms(programs, arrays)
        if "dream" not in self.settings.objective.needs:
            return found
        return found._replace(dream=objective.dream(asleep(*self.programs(), arrays), self.pair.plate))

    def _enumerated_terms(self, programs: tuple[Function, Function], arrays: dict[str, Tensor]) -> Terms:
        assert self.values is not None
        model, guide = self._in_particles(programs, len(self.values)) if self.broadcasts else programs
        trace = poutine.trace(guide).get_trace(arrays)
        latents = objective.sites(trace)
        guides = [at(trace, value, latents) for value in ([self.values] if self.broadcasts else self.values)]
        each = [self._terms(one, objective.replayed(model, one, arrays), arrays) for one in guides]
        return weighed(each[0] if self.broadcasts else objective._stacked(each))

    def _drawn_terms(
        self, programs: tuple[Function, Function], arrays: dict[str, Tensor], particles: int, seed: int | None
    ) -> Terms:
        if particles > 1 and not self.broadcasts:
            seeds = [None] * particles if seed is None else particle_seeds(seed, particles)
            return objective._stacked([self._drawn_terms(programs, arrays, 1, one) for one in seeds])
        model, guide = self._in_particles(programs, particles) if particles > 1 else programs
        guide_trace, model_trace = objective.traces(model, guide if seed is None else CommonNoise(seed)(guide), arrays)
        settings = {"plate": self.pair.plate, "data_size": self.settings.data_size}
        found = objective.parted(self._terms(guide_trace, model_trace, arrays), guide, guide_trace, arrays, **settings)
        if "joint_score" not in self.settings.objective.needs:
            return found
        return found._replace(joint_score=objective.joint_score(model, guide_trace, arrays, **settings))

    def _terms(self, guide_trace: Any, model_trace: Any, arrays: dict[str, Tensor]) -> Terms:
        settings = self.settings
        return objective.terms(
            guide_trace,
            model_trace,
            plate=self.pair.plate,
            data_size=settings.data_size,
            weight=arrays["weight"],
            needs=settings.objective.needs,
        )

    def _in_particles(self, programs: tuple[Function, Function], particles: int) -> tuple[Function, Function]:
        model, guide = (objective.plated(program, particles, self.outermost) for program in programs)
        return model, guide

    def _plated_trace(self, program: Function, arrays: Any, particles: int, seed: int | None = None) -> Any:
        program = objective.plated(program, particles, self.outermost)
        return poutine.trace(program if seed is None else CommonNoise(seed)(program)).get_trace(arrays)

    def _log_prob(self, trace: Any) -> Tensor:
        return objective.log_prob(trace, self.pair.plate, self.settings.data_size)

    def _layout(self, name: str, site: Any) -> dict[str, Any]:
        """Where `by_row` finds the rows of a site; the steps of a scan stand before its event."""
        plate = [frame.dim for frame in site["cond_indep_stack"] if frame.name == self.pair.plate]
        event = len(site["fn"].event_shape) + (_base_name(name, site) != name)
        return {"event": event, "plate": plate[0] if plate else None}

    def _latents(self, values: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {
            site: torch.as_tensor(np.array(value)).to(self.settings.device, self.dtype)
            for site, value in values.items()
        }


def _values(trace: Any) -> dict[str, np.ndarray]:
    """Latents of one trace; the steps of a scan come out as one array with time before the event."""
    steps: dict[str, list[Any]] = {}
    for name, site in objective.sites(trace).items():
        steps.setdefault(_base_name(name, site), []).append((name, site))
    found = {}
    for story_name, occurrences in steps.items():
        values = [to_numpy(site["value"]) for _, site in occurrences]
        name, site = occurrences[0]
        event = len(site["fn"].event_shape)
        found[story_name] = values[0] if name == story_name else np.stack(values, axis=values[0].ndim - event)
    return found


def _describe(fn: Any) -> Posterior:
    base, _ = peel(fn)
    family = "normal" if isinstance(base, Normal) else type(base).__name__
    rows = fn.batch_shape.numel()
    return Posterior(family, *(to_numpy(moment).reshape(rows, -1) for moment in _moments(fn)))


def _moments(fn: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, NaN where the family has none in closed form."""
    try:
        return fn.mean, fn.stddev
    except NotImplementedError:
        unknown = torch.full(fn.shape(), math.nan)
        return unknown, unknown


def _same_moments(one: Any, other: Any) -> bool:
    """Else the distribution hangs on another latent's draw."""
    pairs = [*zip(_moments(one), _moments(other), strict=True)]
    if hasattr(one, "mean_measure"):
        pairs.append((one.mean_measure, other.mean_measure))
    return all(torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True) for a, b in pairs)
