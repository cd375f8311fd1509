"""Draws from the exact posterior by Pyro's own Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

Latents = dict[str, Tensor]


def chain(potential: Callable[[Latents], Tensor], start: Latents, seed: int, draws: int, warmup: int) -> Latents:
    """Site → (draws, …) from the density exp(−potential), by NUTS from `start`; seeded by the caller's generator."""
    kernel = NUTS(potential_fn=potential)
    sampler = MCMC(kernel, draws, warmup_steps=warmup, initial_params=start, disable_progbar=True)
    with torch.enable_grad():
        sampler.run()
    return sampler.get_samples()
