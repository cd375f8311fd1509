"""A particle filter over the steps of a story, on Pyro: sequential Monte Carlo, per row."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...guides.sequence_guide import Proposal
from ...models.sequence import State, Step
from ..filtering import Filtered, Filtering
from .analytic import peel


def filtered(
    step: Step,
    proposal: Proposal,
    x: Tensor,
    mask: Tensor,
    *,
    particles: int,
    spec: Filtering,
    noise: dict[str, Tensor],
    observed: Tensor | None = None,
) -> Filtered:
    """Runs S particles through x (T, B, D); steps outside mask (T, B) change nothing.

    noise: "ancestors" (T, S, B) uniform in [0, 1), and "latents" (T, S, B, Z), ε of normal latents, or nothing for the
    generator's. observed: (T, B), false where x_t is not known: the prior proposes there, x_t is drawn, and
    the proposals of other steps read 0 for it.
    """
    steps, rows = x.shape[:2]
    whole = observed is None or bool(observed.all())
    first = step.start((rows,))
    inputs = step.inputs(x, first) if whole else None
    known = (x, mask) if observed is None else (torch.where(observed.unsqueeze(-1), x, 0.0), mask & observed)
    reading = proposal.reading(*known, first)
    h = step.start((particles, rows))
    log_weight = x.new_zeros(particles, rows)
    likelihood, prior, posterior = [log_weight] * 3
    drawn, ancestors, data, resampled, pending = [], [], [], [], []
    each = zip(
        *(
            [None] * steps if part is None else part.unbind(0)
            for part in (x, mask, inputs, reading, noise.get("latents"), None if whole else observed)
        ),
        strict=True,
    )
    evidence = x.new_zeros(rows)
    more = torch.cat((mask[1:], torch.zeros_like(mask[:1])))  # a row that ends is not resampled any more
    for time, (x_t, real, u, e, epsilon, seen) in enumerate(each):
        p, q = step.prior(h), proposal.law(h) if e is None else proposal.law(h, e)
        p, q = (_over(fn, (particles, rows)) for fn in (p, q))
        z = _draw(q, epsilon)
        x_t = x_t.expand(particles, *x_t.shape)
        if seen is not None:
            z = torch.where(seen.unsqueeze(-1), z, _draw(p, epsilon))
        v = step.read(z)
        emission = step.emission(h, v)
        if seen is not None:
            guess = emission.sample()
            x_t = torch.where(seen.unsqueeze(-1), x_t, guess.expand(x_t.shape))
        counts = real if seen is None else real & seen
        scores = (emission.log_prob(x_t), p.log_prob(z), q.log_prob(z))
        of_data, of_prior, of_proposal = (torch.where(counts, score, 0.0) for score in scores)
        likelihood, prior, posterior = likelihood + of_data, prior + of_prior, posterior + of_proposal
        log_weight = log_weight + of_data + of_prior - of_proposal
        after = step.next(h, v, u if whole else _first(step.inputs(x_t.unsqueeze(0), h)))
        h = _where(real.unsqueeze(-1), after, h)
        drawn.append(z)
        data.append(x_t)
        chosen, index, share = _ancestors(log_weight, noise["ancestors"][time], spec, more[time])
        ancestors.append(index)
        resampled.append(chosen)
        if bool(chosen.any()):
            gain = torch.logsumexp(log_weight, 0) - math.log(particles)
            evidence = evidence + torch.where(chosen, gain, 0.0)
            if spec.gradient == "reinforce":
                pending.append((torch.where(chosen, share.gather(0, index).sum(0), 0.0), evidence))
            h = _gathered(h, index)
            likelihood, prior, posterior = (total.gather(0, index) for total in (likelihood, prior, posterior))
            if spec.gradient == "none":
                h = _where(chosen.unsqueeze(-1), _detached(h), h)
            log_weight = torch.where(chosen, 0.0, log_weight)
    evidence = evidence + torch.logsumexp(log_weight, 0) - math.log(particles)
    score = x.new_zeros(rows)
    for log_share, before in pending:
        term = log_share * (evidence - before).detach()
        score = score + term - term.detach()
    return Filtered(
        evidence,
        score,
        likelihood,
        prior,
        posterior,
        log_weight,
        torch.stack(drawn),
        torch.stack(ancestors),
        torch.stack(data),
        torch.stack(resampled),
    )


def _ancestors(log_weight: Tensor, uniform: Tensor, spec: Filtering, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are resampled (B,), ancestors (S, B), and log of the particles' shares (S, B)."""
    particles, rows = log_weight.shape
    share = log_weight.log_softmax(0)
    own = torch.arange(particles, device=share.device).unsqueeze(-1)
    if spec.resampling == "none" or particles == 1:
        return torch.zeros(rows, dtype=torch.bool, device=share.device), own.expand(particles, rows), share
    log_size = -torch.logsumexp(2 * share.detach(), 0)
    chosen = (log_size <= math.log(particles * spec.threshold) + 1e-9) & wanted
    place = (own + uniform[:1]) / particles if spec.resampling == "systematic" else uniform
    below = share.detach().exp().cumsum(0)
    index = torch.searchsorted((below / below[-1]).t().contiguous(), place.t().contiguous(), right=True).t()
    index = index.clamp(max=particles - 1)
    return chosen, torch.where(chosen, index, own), share


def _first(inputs: Tensor | None) -> Tensor | None:
    return None if inputs is None else inputs[0]


def _over(fn: Any, shape: tuple[int, ...]) -> Any:
    return fn if fn.batch_shape == shape else fn.expand(shape)


def _draw(fn: Any, noise: Tensor | None) -> Tensor:
    base, _ = peel(fn)
    if noise is not None and isinstance(base, torch.distributions.Normal):
        return base.loc + base.scale * noise
    return fn.rsample() if fn.has_rsample else fn.sample()


def _where(mask: Tensor, one: State, other: State) -> State:
    if isinstance(one, tuple):
        return tuple(torch.where(mask, *parts) for parts in zip(one, other, strict=True))
    return torch.where(mask, one, other)


def _gathered(h: State, index: Tensor) -> State:
    if isinstance(h, tuple):
        return tuple(_gathered(part, index) for part in h)
    return h.gather(0, index.unsqueeze(-1).expand_as(h))


def _detached(h: State) -> State:
    """The state as a given one."""
    return tuple(part.detach() for part in h) if isinstance(h, tuple) else h.detach()
