"""log p(x) from draws of the posterior itself (Kingma & Welling 2014, appendix D).

With z_l ~ p(z | x) by Hamiltonian Monte Carlo and any density q̂(z),  E q̂(z) / p(x, z) = 1 / p(x);  so

    1 / p(x) ≈ 1/L Σ_l q̂(z_l) / p(x, z_l),   q̂ fitted to one half of a chain, the sum over the other.

Unbiased for 1 / p(x), so biased upwards for p(x) (Jensen). Reliable for fewer than five dimensions: q̂ must be close to
the posterior where it has mass. Each draw costs some tens of passes of the model, forwards and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.stats import gaussian_kde, multivariate_normal

from ..engines.protocol import Program, State
from ..engines.seeds import derive
from ..models.errors import BadInput
from .accounting import Progress, first, real
from .metrics import log_mean_exp

LARGEST = 5
"""Dimensions of the latents of a datum."""
BLOCKS = 20
"""Draws of a chain are not independent: its error is taken from the means of so many stretches."""


@dataclass(frozen=True, repr=False)
class MarginalLikelihood:
    """log p(x) of single data, in nats.

    Attributes:
        log_evidence: (N,). standard_error: (N,), of the Monte Carlo sum.
        draws: L. density: of q̂. about: pair, engine, split, seed.
    """

    log_evidence: np.ndarray
    standard_error: np.ndarray
    draws: int
    density: str
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nll(self) -> float:
        """−log p(x), the mean over the data."""
        return float(-self.log_evidence.mean())

    @property
    def nll_standard_error(self) -> float:
        return float(np.sqrt((self.standard_error**2).sum()) / len(self.standard_error))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **self.about,
            "rows": len(self.log_evidence),
            "nll": self.nll,
            "nll_standard_error": self.nll_standard_error,
            "draws": self.draws,
            "density": self.density,
        }

    def __repr__(self) -> str:
        return (
            f"−log p(x) of {len(self.log_evidence):,} rows by Hamiltonian Monte Carlo: {self.nll:.3f} "
            f"± {self.nll_standard_error:.3f} nats per datum ({self.draws} draws, density {self.density})"
        )


def marginal_likelihood(
    run: Any,
    *,
    split: str = "test",
    rows: int = 100,
    draws: int = 500,
    warmup: int = 300,
    density: Literal["normal", "kde"] = "normal",
    engine: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MarginalLikelihood:
    """The first `rows` of a split of a run.

    draws: L of either half. density: a normal with the draws' covariance, or SciPy's kernel density estimate.

    Raises:
        BadInput: a latent that is discrete, bounded, shared by all data or of more than five dimensions.
    """
    run = run if engine is None else run.on(engine)
    about = {"pair": run.pair.name, "engine": run.recipe.engine, "split": split, "seed": seed}
    batches, found = first(run.batches(split), rows), []
    for number, batch in enumerate(batches):
        found.append(of_batch(run.program, run.state, batch, draws, warmup, density, derive(seed, "marginal", number)))
        if progress:
            progress(number + 1, len(batches))
    values, errors = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return MarginalLikelihood(values, errors, draws, density, about)


def of_batch(
    program: Program, state: State, batch: Mapping[str, Any], draws: int, warmup: int, density: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """log p(x) of the real rows of a batch, (B,), and the standard error of each."""
    keep = real(batch)
    batch = {name: np.asarray(array)[keep] for name, array in batch.items()}
    _refuse_many_dimensions(program.draws(state, batch, seed=seed, particles=1))
    latents = program.chain(state, batch, seed=seed, draws=2 * draws, warmup=warmup)
    z = np.concatenate([value.reshape(*value.shape[:2], -1) for value in latents.values()], -1)
    log_joint = program.log_joint(state, batch, {site: value[draws:] for site, value in latents.items()})
    log_ratio = np.stack([_log_density(density, z[:draws, row], z[draws:, row]) for row in range(z.shape[1])], 1)
    log_ratio -= log_joint
    inverse = log_mean_exp(log_ratio)
    blocks = np.array_split(np.exp(log_ratio - inverse), min(BLOCKS, draws))
    means = np.stack([block.mean(0) for block in blocks])
    return -inverse, means.std(0, ddof=1) / len(blocks) ** 0.5


def _log_density(kind: str, fitted: np.ndarray, at: np.ndarray) -> np.ndarray:
    """log q̂ at draws (L, D), fitted to others."""
    if kind == "kde":
        return gaussian_kde(fitted.T).logpdf(at.T)
    covariance: Any = np.cov(fitted.T).reshape(fitted.shape[1], -1)
    return multivariate_normal.logpdf(at, fitted.mean(0), covariance)


def _refuse_many_dimensions(draws: Mapping[str, np.ndarray]) -> None:
    dimensions = sum(int(np.prod(draw.shape[2:])) for draw in draws.values())
    if dimensions > LARGEST:
        raise BadInput(
            f"the latents of a datum have {dimensions} dimensions, and a density fitted to draws is reliable up to "
            f"{LARGEST}: the importance-weighted bound of evaluate is for any number"
        )
