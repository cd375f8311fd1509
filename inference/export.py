"""A fitted pair's posterior as one ArviZ object: `xarray.DataTree` in the schema of arviz-base ≥ 0.8.

Draws have the one dimension `sample`, of sequences `chain` and `draw`; the data plate and the event dimensions are named
as the pair names them. A latent of each step is one site with the dimension `time`, NaN after the end of its sequence.
A random measure F is two, `F_log_weight` (atom) and `F_location` (atom, coordinate), and a set of vectors F is its locations;
NaN where a sentence has no atom.

    posterior        every latent site of the data plate (sample, plate, event …)
    log_likelihood   every observed site (sample, plate), at the same draws
    sample_stats     lp = log p(x, z), log_q = log q(z | x), log_weight = lp − log_q: all (sample, plate)
    observed_data    what the observed sites saw; constant_data: the other arrays of a batch

Everything in sample_stats is per datum, as loo_approximate_posterior and Pareto k-hat want it, in nats.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from arviz_base import from_dict

from ..engines.protocol import Batch, Program, State
from ..engines.seeds import derive
from ..models.errors import BadInput, FailedRun
from ..models.measures import NEVER, MeasurePriorSpec
from .accounting import Progress, each, real

Arrays = dict[str, np.ndarray]


def program_to_arviz(
    program: Program,
    state: State,
    batches: Any,
    *,
    draws: int = 100,
    plate: str = "data",
    sites: Mapping[str, Sequence[str]] | None = None,
    text: bool = False,
    steps: bool = False,
    measure: MeasurePriorSpec | None = None,
    points: bool = False,
    rows: int = 2048,
    seed: int = 0,
    attributes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> xr.DataTree:
    """Draws from the guide for every row of `batches`, and the log-densities at them.

    Args:
        batches: `data.Batches` or a like object, or any iterable of batches.
        plate, sites, text: as in `guides.Pair`: the plate's name, event dimension names by site, whether the
            data are sentences (the observed site is then `batch["targets"]`, padded with 0).
        steps: whether the data are sequences, with a mask (B, T) in each batch.
        measure: the prior of the latents, where a decoder attends to them: they are packed as it packs its own.
        points: whether q(z | x) is a point, which has no density: there is neither log_q nor log_weight then.
        rows: the programs run on at most this many particle rows at once.
        attributes: of the whole tree, beside library and version.
    """
    if draws < 1:
        raise BadInput(f"{draws} draws asked for: at least 1 would be right")
    found = []
    for number, batch in enumerate(each(batches)):
        found.append(_of_batch(program, state, batch, draws, rows, derive(seed, "export", number), text, steps))
        if progress:
            progress(number + 1, getattr(batches, "steps_per_epoch", 0))
    index = np.concatenate([part["index"]["index"] for part in found])
    groups = {
        group: _joined([part[group] for part in found], np.argsort(index, kind="stable"), axis)
        for group, axis in _PLATE_AXIS.items()
        if found[0][group]
    }
    if points:
        groups["sample_stats"] = {"lp": groups["sample_stats"]["lp"]}
    timed = {site: ("time", *names) if steps else names for site, names in (sites or {}).items()}
    dims = _dimensions(groups, plate, timed)
    if measure and "posterior" in groups:
        groups["posterior"], dims = _unpacked(groups["posterior"], dims, measure.weighted)
    if steps:
        drawn = [group for group in groups if _PLATE_AXIS[group]]
        groups |= {group: {name: array[None] for name, array in groups[group].items()} for group in drawn}
    about = {"inference_library": "guidebook", "inference_library_version": version("guidebook")}
    return from_dict(
        groups,
        sample_dims=["chain", "draw"] if steps else ["sample"],
        dims=dims,
        coords={plate: np.sort(index)},
        attrs={
            "/": {**about, "units": "nats", "seed": seed, **(attributes or {})},
            **dict.fromkeys(groups, about),
        },
    )


_PLATE_AXIS = {"posterior": 1, "log_likelihood": 1, "sample_stats": 1, "observed_data": 0, "constant_data": 0}


def write_netcdf(tree: xr.DataTree, path: Path) -> None:
    """Writes the tree through h5netcdf, compressed; replaces `path` only when the file is whole.

    Raises:
        FailedRun: the disk is full or the folder is not writable.
    """
    encoding = {
        group.path: {str(name): {"zlib": True, "shuffle": True} for name in group.data_vars} for group in tree.subtree
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tree.to_netcdf(unfinished, engine="h5netcdf", encoding=encoding)
        os.replace(unfinished, path)
    except OSError as error:
        raise FailedRun(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _of_batch(
    program, state, batch: Batch, draws: int, rows: int, seed: int, text: bool, steps: bool
) -> dict[str, Arrays]:
    """The groups of one batch, filler rows left out."""
    keep = real(batch)
    # Chunks of one size, so that an engine that compiles does so once; the last one's surplus is dropped.
    chunks = -(-draws // max(1, rows // len(keep)))
    size = -(-draws // chunks)
    parts = [_draws(program, state, batch, size, derive(seed, "chunk", chunk)) for chunk in range(chunks)]
    sampled = {
        group: {
            name: np.concatenate([part[group][name] for part in parts])[:draws][:, keep] for name in parts[0][group]
        }
        for group in parts[0]
    }
    observed = _observed(batch, list(sampled["log_likelihood"]), text, steps)
    if steps:
        mask = np.asarray(batch["mask"])[keep][..., None]
        sampled["posterior"] = {site: np.where(mask, draw, np.nan) for site, draw in sampled["posterior"].items()}
    kept = {group: {name: array[keep] for name, array in arrays.items()} for group, arrays in observed.items()}
    return {**sampled, **kept, "index": {"index": np.asarray(batch["index"])[keep]}}


def _draws(program: Program, state: State, batch: Batch, particles: int, seed: int) -> dict[str, Arrays]:
    """Draws and the log-densities at these very draws: one seed gives both the same ones."""
    terms = program.terms(state, batch, seed=seed, particles=particles, drawn=True)
    full = (particles, len(batch["weight"]))
    likelihood = {site: np.broadcast_to(value, full) for site, value in terms.log_likelihood.items()}
    stats = {"lp": sum(likelihood.values(), np.zeros(full))}
    posterior: Arrays = {}
    if terms.log_posterior:
        every = program.draws(state, batch, seed=seed, particles=particles)
        posterior = {site: draw for site, draw in every.items() if site not in program.shared}
        stats["lp"] = stats["lp"] + sum(terms.log_prior.values())
        stats["log_q"] = sum(terms.log_posterior.values(), np.zeros(full))
        stats["log_weight"] = stats["lp"] - stats["log_q"]
    return {"posterior": posterior, "log_likelihood": likelihood, "sample_stats": stats}


def _observed(batch: Batch, sites: list[str], text: bool, steps: bool) -> dict[str, Arrays]:
    if steps:
        seen = np.where(np.asarray(batch["mask"])[..., None], batch["x"], np.nan)
        return {"observed_data": {sites[0]: seen}, "constant_data": {"length": np.asarray(batch["lengths"])}}
    if text:
        constant = {"length": np.asarray(batch["lengths"])}
        seen = {site: np.asarray(batch["lengths" if site == "n" else "targets"]) for site in sites}
        return {"observed_data": seen, "constant_data": constant}
    arrays = {name: np.asarray(array) for name, array in batch.items() if name not in ("index", "weight")}
    return {
        "observed_data": {name: array for name, array in arrays.items() if name in sites},
        "constant_data": {name: array for name, array in arrays.items() if name not in sites},
    }


def _joined(parts: list[Arrays], order: np.ndarray, axis: int) -> Arrays:
    """All rows in the order of their positions; a time axis is padded to the longest."""
    return {
        name: np.take(np.concatenate(_padded([part[name] for part in parts], axis), axis), order, axis)
        for name in parts[0]
    }


def _padded(arrays: list[np.ndarray], axis: int) -> list[np.ndarray]:
    """Every axis after the plate's as long as the longest: numbers that are not there are NaN, tokens 0."""
    event = np.max([array.shape[axis + 1 :] for array in arrays], axis=0, initial=0)
    fill = np.nan if arrays[0].dtype.kind == "f" else 0
    return [
        np.pad(
            array,
            [(0, 0)] * (axis + 1) + [(0, int(n) - m) for n, m in zip(event, array.shape[axis + 1 :], strict=True)],
            constant_values=fill,
        )
        for array in arrays
    ]


def _unpacked(packed: Arrays, dims: dict[str, list[str]], weighted: bool) -> tuple[Arrays, dict[str, list[str]]]:
    """Log weights and locations of atoms, or locations alone of plain vectors, and all dimensions."""
    found: Arrays = {}
    for site, draws in packed.items():
        draws = np.where(draws[..., :1] > NEVER, draws, np.nan)
        *rows, coordinate = dims[site]
        if not weighted:
            found[site] = draws[..., 1:]
            continue
        found |= {f"{site}_log_weight": draws[..., 0], f"{site}_location": draws[..., 1:]}
        dims = dims | {f"{site}_log_weight": rows, f"{site}_location": [*rows, coordinate]}
    return found, {name: names for name, names in dims.items() if name in found or name not in packed}


def _dimensions(groups: dict[str, Arrays], plate: str, sites: dict[str, Sequence[str]]) -> dict[str, list[str]]:
    """Variable → its dimensions after `sample`: the plate, then the pair's names, else SITE_dim_0, …."""
    found = {}
    for group in ("log_likelihood", "sample_stats", "posterior", "constant_data", "observed_data"):
        for name, array in groups.get(group, {}).items():
            event = array.ndim - _PLATE_AXIS[group] - 1
            named = list(sites.get(name) or sites.get(name.rpartition("_")[0], ()))
            found[name] = [
                plate,
                *(named if len(named) == event else [f"{name}_dim_{i}" for i in range(event)]),
            ]
    return found
