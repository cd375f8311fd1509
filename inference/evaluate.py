"""Bounds, KL, mutual information, active units, perplexity: a fitted pair judged on one split.

Definitions in `metrics.py`. Sources: Burda et al. 2016 (importance-weighted bound, active units), Hoffman &
Johnson 2016 (KL = mutual information + KL(q(z) ‖ p(z))), He et al. 2019 and Li et al. 2019 (500 particles,
whole test set).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..engines.filtering import Filtering
from ..engines.protocol import Program, State
from ..engines.seeds import derive
from ..engines.terms import Terms
from ..guides.posteriors import Charge
from ..models.errors import BadInput
from .accounting import Account, Progress, account, each, first, real
from .evaluation import Evaluation, SiteEvaluation
from .measures import prior_of, retained
from .metrics import active_dimensions, importance_bound, mutual_information, perplexity
from .sequence_evaluation import SequenceEvaluation, evaluate_sequences

ELBO_DRAWS = 10
"""Draws per datum for the reconstruction term: little beside the particles, and it divides that term's noise
by three."""


def evaluate(
    run: Any,
    *,
    split: str = "test",
    particles: int | None = None,
    engine: str | None = None,
    seed: int = 0,
    max_sentences: int | None = None,
    rows: int = 2048,
    precision: str = "float32",
    filtering: Filtering | None = None,
    repeats: int = 3,
    progress: Progress | None = None,
) -> Evaluation | SequenceEvaluation:
    """A run on one of its splits, on its own engine or on another.

    particles: 500 unless said, and 128 of a pair of sequences, whose particles are also filtered, `repeats` times, as
    `filtering` says.

    max_sentences: only the first so many of the split.
    rows: the model runs on at most this many particle rows at once.
    precision: "bfloat16" rounds the operands of the vocabulary products: faster where the processor has the units, with
    a bias of hundredths of a nat (`make bench` measures it).
    """
    if particles is None:
        particles = 128 if run.pair.steps else 500
    if particles < 1 or rows < 1:
        raise BadInput(f"particles = {particles} and rows = {rows}: both are at least 1")
    if engine is not None:
        run = run.on(engine)
    if precision != run.precision:
        run = run.judged_in(precision)
    batches = run.batches(split)
    if max_sentences is not None:
        batches = first(batches, max_sentences)
    about = {"pair": run.pair.name, "engine": engine or run.recipe.engine, "split": split, "seed": seed}
    if run.pair.steps:
        return evaluate_sequences(
            run,
            batches,
            particles=particles,
            seed=seed,
            rows=rows,
            filtering=filtering or Filtering(),
            repeats=repeats,
            about=about,
            progress=progress,
        )
    return evaluate_run(run, batches, particles=particles, rows=rows, seed=seed, about=about, progress=progress)


def evaluate_run(run: Any, batches: Any, **settings: Any) -> Evaluation:
    """`evaluate_program` of a run, and what its bottleneck keeps where it has one."""
    text = run.pair.text
    found = evaluate_program(
        run.program,
        run.state,
        batches,
        text=text,
        unit=run.tokeniser.unit if text else None,
        charge=run.recipe.judged.charge,
        **settings,
    )
    prior = prior_of(run)
    return replace(found, retained=retained(run, batches=batches)) if prior and prior.weighted else found


def evaluate_program(
    program: Program,
    state: State,
    batches: Any,
    *,
    particles: int,
    rows: int,
    seed: int,
    text: bool,
    unit: str | None = None,
    charge: Charge = "kl",
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """The same without a run. batches: `data.Batches` or a like object, or a list of batches. charge: of its latents; a
    penalty is that of points.
    """
    batches = batches if hasattr(batches, "steps_per_epoch") else list(batches)
    found = account(program, state, batches, seed=seed, particles=min(particles, ELBO_DRAWS))
    count, tokens = len(found.rows), found.tokens if text else None
    points = charge == "penalty"
    known = not (points or program.shared)
    bound = _bound(program, state, batches, found, particles, rows, seed, progress) if known else _NO_BOUND
    values = dict(
        sentences=count,
        tokens=tokens,
        **_elbo(found, charge),
        **bound,
        particles=particles if found.kl else 1,
        unit="nats per sentence" if text else "nats per datum",
        sites={site: _site(found, site, charge if site not in program.shared else "kl") for site in found.kl},
        observed=found.observed,
        about=dict(about or {}),
    )
    information = _information(program, state, batches, found, seed)
    if points:
        information["notes"] |= dict.fromkeys(("elbo", "iw_nll"), "q is points: no bound")
    elif program.shared:
        information["notes"]["iw_nll"] = (
            f"{program.shared[0]} is one draw for all data: no weight of a single datum bounds anything"
        )
    return Evaluation(**values, **_perplexities(values, unit), **information)


def validate_program(
    program: Program,
    state: State,
    batches: Any,
    seed: int,
    loss: Callable[[Terms], np.ndarray] | None = None,
    particles: int = 1,
    information: bool = False,
    charge: Charge = "kl",
) -> dict[str, Any]:
    """What one pass with `particles` draws per datum tells, for the end of an epoch, in nats per datum.

    `objective` (the mean of `loss`), `elbo`, None with a penalty, `reconstruction`, `kl`, or what is charged in its place,
    `kl_per_dimension`, `kl/SITE`, and `active_units`, `rows`; with `information` also `mi`, or BadInput where it is not
    known.
    """
    found = account(program, state, batches, seed=seed, particles=particles, loss=loss)
    by_site = {f"kl/{site}": float(kl.sum(-1).mean()) for site, kl in found.kl.items()}
    objective = {"objective": float(np.mean(found.loss))} if found.loss is not None else {}
    return {
        **objective,
        **_elbo(found, charge),
        "active_units": _active_units(found),
        **by_site,
        **({"mi": _known_information(program, state, batches, found, seed)} if information else {}),
        "rows": len(found.rows),
    }


def _known_information(program: Program, state: State, batches: Any, found: Account, seed: int) -> float:
    values = _information(program, state, batches, found, seed)
    if values["mi"] is None:
        raise BadInput(f"the mutual information of data and latents is not known: {values['notes']['mi']}")
    return values["mi"]


def _elbo(found: Account, charge: Charge) -> dict[str, Any]:
    reconstruction, kl = float(found.reconstruction.mean()), float(found.total_kl.mean())
    split = [found.kl_per_dimension(site) for site in found.kl]
    return {
        "elbo": None if charge == "penalty" else -(reconstruction + kl),
        "reconstruction": reconstruction,
        "kl": kl,
        "kl_per_dimension": None if None in split else [value for part in split for value in part or []],
    }


_NO_BOUND = dict.fromkeys(("iw_nll", "iw_nll_standard_error", "iw_effective_particles"))


def _bound(program, state, batches, found, particles, rows, seed, progress) -> dict[str, float | None]:
    if not found.kl:
        nll = float(found.reconstruction.mean())
        return {"iw_nll": nll, "iw_nll_standard_error": None, "iw_effective_particles": None}
    bounds = []
    for number, batch in enumerate(each(batches)):
        log_weights = program.log_weights(
            state, batch, seed=derive(seed, "particles", number), particles=particles, rows=rows
        )
        bounds.append(importance_bound(log_weights[:, real(batch)]))
        if progress:
            progress(number + 1, getattr(batches, "steps_per_epoch", 0) or len(batches))
    log_evidence, variance, effective = (np.concatenate(parts) for parts in zip(*bounds, strict=True))
    error = float(np.sqrt(variance.sum()) / len(variance))
    return {
        "iw_nll": float(-log_evidence.mean()),
        "iw_nll_standard_error": error if particles > 1 else None,
        "iw_effective_particles": float(effective.mean()),
    }


def _perplexities(values: dict[str, Any], unit: str | None) -> dict[str, Any]:
    count, tokens = values["sentences"], values["tokens"]
    if not tokens:
        return dict.fromkeys(("perplexity", "perplexity_unit", "perplexity_bound", "perplexity_elbo"))
    if values["iw_nll"] is None:
        return dict.fromkeys(("perplexity", "perplexity_bound", "perplexity_elbo")) | {
            "perplexity_unit": unit or "token"
        }
    bound = f"importance-weighted, {values['particles']} particles" if values["sites"] else "exact likelihood"
    return {
        "perplexity": perplexity(values["iw_nll"], count, tokens),
        "perplexity_unit": unit or "token",
        "perplexity_bound": bound,
        "perplexity_elbo": perplexity(-values["elbo"], count, tokens),
    }


def _site(found: Account, site: str, charge: Charge) -> SiteEvaluation:
    q = found.posterior.get(site)
    kl_from = "analytic" if site in found.analytic else "sampled"
    return SiteEvaluation(
        kl=float(found.kl[site].sum(-1).mean()),
        kl_from=kl_from if charge == "kl" else charge,
        kl_per_dimension=found.kl_per_dimension(site),
        dimensions=None if q is None else q.loc.shape[-1],
        active_units=_active_of(found, site),
        family=None if q is None else q.family,
    )


def _active_of(found: Account, site: str) -> int | None:
    q = found.posterior.get(site)
    if q is None or not np.isfinite(q.loc).all():
        return None
    return int(active_dimensions(q.loc).sum())


def _active_units(found: Account) -> int | None:
    units = [_active_of(found, site) for site in found.kl if site not in found.shared]
    return None if None in units or not units else sum(unit for unit in units if unit is not None)


def _information(program, state, batches, found: Account, seed: int) -> dict[str, Any]:
    """Mutual information and what hangs on it, or why there is none."""
    keys = ("mi", "mi_ceiling", "kl_aggregate", "active_units")
    units = _active_units(found)
    local = [site for site in found.kl if site not in program.shared]
    reason = _no_information(found, local)
    if reason:
        notes: dict[str, str] = dict.fromkeys(keys[:3], reason)
        if units is None:
            notes["active_units"] = reason if not found.kl else "no posterior means are known for every row"
        return {**dict.fromkeys(keys[:3]), "active_units": units, "notes": notes}
    z = _one_draw(program, state, batches, local, seed)
    loc, scale = (np.concatenate([found.posterior[s][i] for s in local], -1) for i in (1, 2))
    information = mutual_information(z, loc, scale)
    kl = sum(float(found.kl[site].sum(-1).mean()) for site in local)
    values = (*information, kl - information.mutual_information, units)
    return dict(zip(keys, values, strict=True)) | {"notes": {}}


def _no_information(found: Account, local: list[str]) -> str | None:
    """local: the latents of the data plate."""
    if not local:
        return "there is no latent" if not found.kl else "no latent is a single datum's"
    for site in local:
        if site not in found.posterior:
            return f"q({site} | x) hangs on other draws or changes size: its aggregate has no closed density"
        if found.posterior[site].family != "normal":
            family = re.sub(r"(?<=.)([A-Z])", r" \1", found.posterior[site].family).lower()
            return f"q({site} | x) is of the kind {family}: the estimate is for one diagonal normal a datum"
    return None


def _one_draw(program: Program, state: State, batches: Any, sites: list[str], seed: int) -> np.ndarray:
    """One z per row, all sites side by side, (N, D)."""
    draws = []
    for number, batch in enumerate(each(batches)):
        found = program.draws(state, batch, seed=derive(seed, "information", number), particles=1)
        keep = real(batch)
        draws.append(np.concatenate([found[site][0][keep].reshape(keep.sum(), -1) for site in sites], -1))
    return np.concatenate(draws)
