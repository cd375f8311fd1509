"""Draws from the exact posterior by NumPyro's own Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable

from jax import Array
from numpyro.infer import MCMC, NUTS

from .ppl import seeded

Latents = dict[str, Array]


def chain(potential: Callable[[Latents], Array], start: Latents, seed: int, draws: int, warmup: int) -> Latents:
    """Site → (draws, …) from the density exp(−potential), by NUTS from `start`."""
    kernel = NUTS(potential_fn=potential)
    sampler = MCMC(kernel, num_warmup=warmup, num_samples=draws, progress_bar=False)
    sampler.run(seeded(seed), init_params=start)
    return sampler.get_samples()
