"""A plain Transformer autoencoder made nonparametric without training (Fehr & Henderson, COLM 2024).

T is a run of the pair nvae whose decoder attends to the vectors v_i = W h_i + b themselves. Over the vectors of its
training sentences, with r = √d and d the width of a head of the decoder,

    p(F | n)    N(μ^p, diag σ^p²), their means and variances, and α^p = exp(their mean of |v|² / (2 r))
    q(F | x)    N(τ_μ v_i + (1 − τ_μ) μ^p, diag (τ_σ σ^p)²), and log α_i = |v_i|² / (2 r) + τ_α s, s its standard deviation

A common factor of all α changes no mean measure: α^p is at most e²⁰, so that draws and densities hold their digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.identity import TINY, EmpiricalPrior, empirical_prior, identity
from ..guides.measures import DirichletProcessPosterior, PointVectors
from ..models.errors import BadInput
from ..models.measures import NEVER, DirichletProcessPrior, NormalVectorsPrior
from .accounting import Progress, each, real
from .divergences import KL
from .files import read_arrays, write, write_arrays
from .run import Run
from .schedules import Constant

LARGEST = 20.0
"""log α^p at most."""


def regularised(
    run: Run,
    out: str | Path,
    tau_alpha: float = 10.0,
    tau_sigma: float = 0.0,
    tau_mu: float = 1.0,
    progress: Progress | None = None,
) -> Run:
    """Writes T as a run with a Dirichlet process for prior and posterior, and reads its training sentences once.

    tau_alpha: by how many s a vector outweighs the prior, any number: at 10 the mean of q decodes to what T does, if s
        is some nats, and the lower it is the more is read of the prior. tau_sigma: standard deviations as a share of
        the prior's, 0 to 1; 0 is T's. tau_mu: 1 is the vector itself; above 0, where all would be the prior's mean.

    Raises:
        BadInput: the run is no plain autoencoder, or `out` holds a run already, or a tau is out of range.
    """
    _refuse(run, tau_alpha, tau_mu)
    folder = Path(out)
    if (folder / "recipe.toml").exists():
        raise BadInput(f"{folder} already holds a run: choose another --out")
    decoder = run.recipe.model.decoder  # pyright: ignore[reportAttributeAccessIssue]
    width = decoder.hidden // decoder.heads
    prior = empirical_prior(_vectors(run, progress), width)
    process = DirichletProcessPrior(dim=len(prior.loc), empirical=True)
    posterior = DirichletProcessPosterior(pseudo_counts="quadratic_in_means")
    read = decoder.model_copy(update={"rule": "exact"})
    model = run.recipe.model.model_copy(update={"prior": process, "decoder": read})
    guide = run.recipe.guide.model_copy(update={"posterior": posterior})
    recipe = run.recipe.model_copy(update={"model": model, "guide": guide, "divergence": KL()})
    weights = run.weights | _weights(run.weights, prior, width, tau_alpha, tau_sigma, tau_mu)
    write(folder / "tokeniser.json", (run.folder / "tokeniser.json").read_bytes())
    about = read_arrays(run.folder / "weights.safetensors", arrays=False)[1]
    about |= {"tau_alpha": tau_alpha, "tau_sigma": tau_sigma, "tau_mu": tau_mu}
    write_arrays(folder / "weights.safetensors", weights, about)
    write(folder / "recipe.toml", recipe.to_toml().encode())
    return Run(folder, recipe, run.pair, device=run.device)


def _refuse(run: Run, tau_alpha: float, tau_mu: float) -> None:
    model, guide, divergence = run.recipe.model, run.recipe.guide, run.recipe.divergence
    prior, posterior = getattr(model, "prior", None), getattr(guide, "posterior", None)
    plain = (
        isinstance(prior, NormalVectorsPrior)
        and prior.share == 1
        and isinstance(posterior, PointVectors)
        and isinstance(divergence, KL)
        and divergence.weight == Constant(value=0.0)
    )
    if not plain:
        raise BadInput(
            f"{run.folder} is no plain autoencoder: a run of the pair nvae with the prior normal_vectors (share = 1), the "
            "posterior point_vectors and divergence.weight = 0 would be right"
        )
    if not np.isfinite(tau_alpha):
        raise BadInput(f"tau_alpha is a number of standard deviations, not {tau_alpha}")
    if not 0 < tau_mu <= 1:
        raise BadInput(f"tau_mu is a share above 0 and up to 1, not {tau_mu}")


def _vectors(run: Run, progress: Progress | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vectors (B, T, p) of the training sentences, batch by batch, and where there is one (B, T)."""
    batches = run.batches("train")
    for number, batch in enumerate(each(batches)):
        found = run.program.mean_measures(run.state, batch)["F"][real(batch)]
        yield found[..., 1:], found[..., 0] > NEVER
        if progress:
            progress(number + 1, batches.steps_per_epoch)


def _weights(
    plain: dict[str, np.ndarray], prior: EmpiricalPrior, width: int, tau_alpha: float, tau_sigma: float, tau_mu: float
) -> dict[str, Any]:
    """The prior's and the posterior's, which has the identity's projections of v = W h + b as its own of h and of μ."""
    made = identity(prior, width, tau_alpha, tau_sigma, tau_mu)
    count = min(float(prior.log_alpha), LARGEST)
    slope, bias = plain["posterior.loc"].astype(np.float64), plain["posterior.loc_bias"].astype(np.float64)
    square = made.square / tau_mu**2  # of μ, since v = (μ − b_μ) / τ_μ
    weights = {
        "prior.loc": prior.loc,
        "prior.log_variance": np.log(prior.variance + TINY),
        "prior.log_pseudo_count": count,
        "posterior.loc": made.loc @ slope,
        "posterior.loc_bias": made.loc @ bias + made.loc_bias,
        "posterior.log_variance": made.log_variance @ slope,
        "posterior.log_variance_bias": made.log_variance_bias,
        "posterior.alpha": -2 * square * made.loc_bias,
        "posterior.alpha_square": square,
        "posterior.alpha_bias": made.bias + square @ made.loc_bias**2 + count - prior.log_alpha,
    }
    kind = plain["posterior.loc"].dtype
    return {name: np.asarray(weight, kind) for name, weight in weights.items()}
