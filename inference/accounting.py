"""One pass over a data set: every term of the ELBO per datum and per site, kept apart until somebody sums
them.

N rows of the data set, filler rows left out; D dimensions of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from ..engines.protocol import Batch, Posterior, Program, State
from ..engines.seeds import derive

Progress = Callable[[int, int], None]
"""Called after every batch with the batches done and, where known (else 0), how many there are."""


@dataclass(frozen=True)
class Account:
    """What one pass found, in nats per datum.

    Attributes:
        reconstruction: (N,) −E_q log p(x | z), averaged over the draws.
        kl: latent site → KL(q ‖ p), (N, D) where it is analytic and elementwise, else (N, 1).
        analytic: latent sites whose KL is analytic; the others' is log q − log p at the draws.
        posterior: latent site → q(z | x) of every row, (N, D); a site that hangs on other draws, or whose
            size changes from batch to batch, is missing.
        rows: (N,) position of each row in its data set.
        tokens: W, predicted tokens with end marks; 0 when the data are not sentences.
        loss: (N,) the trained objective, where it was asked for.
        observed: sites whose likelihood the reconstruction is of.
        shared: latent sites that are one draw for all data; 1 / N of their KL counts for each datum.
    """

    reconstruction: np.ndarray
    kl: dict[str, np.ndarray]
    analytic: tuple[str, ...]
    posterior: dict[str, Posterior]
    rows: np.ndarray
    tokens: int
    observed: tuple[str, ...]
    loss: np.ndarray | None = None
    shared: tuple[str, ...] = ()

    @property
    def total_kl(self) -> np.ndarray:
        """(N,) over all sites."""
        return sum((kl.sum(-1) for kl in self.kl.values()), np.zeros(len(self.rows)))

    def kl_per_dimension(self, site: str) -> list[float] | None:
        """Averages over the data; None where the KL was sampled or does not split into dimensions."""
        split = site in self.analytic and (site not in self.posterior or _width(self, site) == self.kl[site].shape[-1])
        return self.kl[site].mean(0).tolist() if split else None


def _width(account: Account, site: str) -> int:
    return account.posterior[site].loc.shape[-1]


def account(
    program: Program,
    state: State,
    batches: Any,
    *,
    seed: int,
    particles: int = 1,
    progress: Progress | None = None,
    loss: Callable[[Any], np.ndarray] | None = None,
) -> Account:
    """The terms of every row of `batches`, without dropout, from `particles` draws each.

    batches: `data.Batches` or a like object (one epoch of it, in order), or any iterable of batches.
    """
    found = []
    for number, batch in enumerate(each(batches)):
        found.append(_account_of(program, state, batch, derive(seed, "terms", number), particles, loss))
        if progress:
            progress(number + 1, getattr(batches, "steps_per_epoch", 0))
    return replace(_joined(found), shared=program.shared)


def each(batches: Any) -> Iterator[Batch]:
    """One epoch of batches, in order."""
    if hasattr(batches, "steps_per_epoch"):
        return (batches.batch(step) for step in range(batches.steps_per_epoch))
    return iter(batches)


def real(batch: Batch) -> np.ndarray:
    """(B,) whether a row is data rather than filler."""
    return np.asarray(batch["weight"]) > 0


def first(batches: Any, count: int) -> list[Batch]:
    """The first `count` rows of the data set, by `index`, packed into batches of the shapes they came in."""
    picked = []
    for batch in each(batches):
        keep = real(batch) & (np.asarray(batch["index"]) < count)
        if keep.any():
            picked.append((_shape(batch), {name: np.asarray(array)[keep] for name, array in batch.items()}))
    picked.sort(key=lambda pair: pair[0])
    packed = []
    for shape, group in groupby(picked, key=lambda pair: pair[0]):
        parts = [part for _, part in group]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        packed += list(_cut(whole, shape[0]))
    return packed


def _shape(batch: Batch) -> tuple[int, ...]:
    """Rows, then all other lengths: batches of one shape can be packed together."""
    return (len(batch["weight"]), *(size for name in sorted(batch) for size in np.shape(batch[name])[1:]))


def _cut(whole: dict[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    count = len(whole["weight"])
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        filler = rows >= count
        batch = {name: array[np.where(filler, start, rows)] for name, array in whole.items()}
        yield {**batch, "weight": np.where(filler, 0.0, batch["weight"]).astype(batch["weight"].dtype)}


def _account_of(
    program: Program,
    state: State,
    batch: Batch,
    seed: int,
    particles: int,
    loss: Callable[[Any], np.ndarray] | None,
) -> Account:
    terms = program.terms(state, batch, seed=seed, particles=particles)
    keep = real(batch)
    reconstruction = -np.broadcast_to(terms.mean(np.asarray(terms.reconstruction(), np.float64)), len(keep))
    kl = {site: _site_kl(terms, site)[keep] for site in terms.log_posterior}
    return Account(
        reconstruction[keep],
        kl,
        tuple(terms.kl),
        {site: _kept(q, keep) for site, q in program.posterior(state, batch).items()} if kl else {},
        np.asarray(batch["index"])[keep],
        int(np.asarray(batch["lengths"])[keep].sum()) if "lengths" in batch else 0,
        tuple(terms.log_likelihood),
        None if loss is None else np.asarray(loss(terms))[keep],
    )


def _site_kl(terms: Any, site: str) -> np.ndarray:
    """(B, D) or (B, 1): the mean over draws."""
    if site not in terms.kl:
        return terms.mean(np.asarray(terms.kl_of(site), np.float64))[:, None]
    kl = np.asarray(terms.kl[site], np.float64)
    return kl.mean(0) if kl.ndim == 3 else kl


def _kept(q: Posterior, keep: np.ndarray) -> Posterior:
    return Posterior(q.family, np.asarray(q.loc, np.float64)[keep], np.asarray(q.scale, np.float64)[keep])


def _joined(parts: Iterable[Account]) -> Account:
    parts = [part for part in parts if len(part.rows)]
    whole = parts[0]
    return Account(
        np.concatenate([part.reconstruction for part in parts]),
        {site: _stacked([part.kl[site] for part in parts]) for site in whole.kl},
        whole.analytic,
        {
            site: Posterior(q.family, *(np.concatenate([p.posterior[site][i] for p in parts]) for i in (1, 2)))
            for site, q in whole.posterior.items()
            if len({part.posterior[site].loc.shape[1:] for part in parts}) == 1
        },
        np.concatenate([part.rows for part in parts]),
        sum(part.tokens for part in parts),
        whole.observed,
        None if whole.loss is None else np.concatenate([part.loss for part in parts if part.loss is not None]),
    )


def _stacked(kls: list[np.ndarray]) -> np.ndarray:
    """A site whose size changes with the batch (a latent per time step) has no common dimensions: summed
    over them."""
    same = len({kl.shape[-1] for kl in kls}) == 1
    return np.concatenate(kls if same else [kl.sum(-1, keepdims=True) for kl in kls])


def tokens_of(batch: Batch) -> int:
    """Predicted tokens or steps of the real rows; none of arrays."""
    return int(batch["lengths"] @ batch["weight"]) if "lengths" in batch else 0
