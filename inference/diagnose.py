"""`diagnose`: can the posterior of this run be believed? First version: files and pictures to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines.filtering import Filtering
from .accounting import Account, Progress, account, first
from .divergences import KL
from .evaluate import evaluate_run
from .evaluation import Evaluation
from .files import write
from .measures import prior_of
from .metrics import active_dimensions
from .particles import latent_size
from .sequence_evaluation import SequenceEvaluation, evaluate_sequences
from .sequences import forecast, generate
from .strategies import Greedy, Sample
from .tables import text_table
from .text import interpolate, of_split, reconstruct, sample

if TYPE_CHECKING:  # xarray and matplotlib take a second to import, and most commands do without
    import xarray as xr

DRAWS, ROWS_EXPORTED, PARTICLES, EXAMPLES, SAMPLES = 100, 500, 100, 8, 3
FEWEST_DRAWS, MOST_NUMBERS = 10, 2**23
"""Of latents of each step or word, which may be many: fewer draws, then fewer data, so that no more are exported."""


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found and wrote.

    Attributes:
        evaluation: the numbers, on at most as many data as were exported.
        posterior: the exported tree. files: what was written, by name.
    """

    folder: Path
    evaluation: Evaluation | SequenceEvaluation
    posterior: xr.DataTree
    files: dict[str, Path]

    @property
    def verdict(self) -> str:
        return self.evaluation.verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        files = {name: str(path) for name, path in self.files.items()}
        return {"verdict": self.verdict, "files": files, **self.evaluation.to_dict()}

    def __repr__(self) -> str:
        files = text_table([(name, str(path)) for name, path in self.files.items()], right=())
        return f"Diagnosis of {self.folder}\n  {self.verdict}\n{files}"

    def _repr_html_(self) -> str:
        return self.evaluation._repr_html_()


def diagnose(
    run: Any,
    *,
    split: str = "test",
    draws: int | None = None,
    max_sentences: int = ROWS_EXPORTED,
    particles: int = PARTICLES,
    seed: int = 0,
    rows: int = 2048,
    progress: Progress | None = None,
) -> Diagnosis:
    """Writes `posterior.nc`, `figures/*.png` and `report.html` into the run folder.

    The first `max_sentences` of the split are looked at, with `draws` draws each in `posterior.nc` (100, of latents
    of each step or word fewer) and `particles` particles in the bound: what `evaluate` says of the whole split is better.
    """
    from .report import page

    batches = first(run.batches(split), max_sentences)
    program, state, pair = run.program, run.state, run.pair
    about = _about(run, split, seed)
    if pair.steps:
        evaluation = evaluate_sequences(
            run, batches, particles=particles, seed=seed, rows=rows, filtering=Filtering(), repeats=3, about=about
        )
        draws = draws if pair.guide else 1
    else:
        evaluation = evaluate_run(run, batches, particles=particles, rows=rows, seed=seed, about=about)
        draws = draws if evaluation.sites else 1
    tree = to_arviz(run, split=split, draws=draws, max_sentences=max_sentences, rows=rows, seed=seed, progress=progress)
    found = None if pair.steps else account(program, state, batches, seed=seed)
    pictures = _pictures(run, found, tree) if found else _sequence_pictures(run, split, seed)
    exported = dict(tree["sample_stats"].sizes)
    html = page(
        run.folder.name,
        evaluation,
        pictures,
        _texts(run, split, seed),
        run.recipe.to_toml(),
        note=_note(evaluation, split, exported.pop("sample", None) or exported["draw"], exported[pair.plate]),
    )
    return Diagnosis(run.folder, evaluation, tree, _written(run.folder, tree, pictures, html))


def _note(evaluation: Evaluation | SequenceEvaluation, split: str, draws: int, exported: int) -> str:
    count = evaluation.sequences if isinstance(evaluation, SequenceEvaluation) else evaluation.sentences
    whose = "each" if exported == count else f"of the first {exported:,}"
    return f"On the first {count:,} of the {split} split, {draws} draws {whose} in posterior.nc."


def to_arviz(
    run: Any,
    *,
    split: str = "test",
    draws: int | None = None,
    max_sentences: int = ROWS_EXPORTED,
    batches: Any = None,
    rows: int = 2048,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.DataTree:
    """A run as one ArviZ object: posterior, log_likelihood, observed_data, and sample_stats with lp and log_q.

    Dimensions are named by the plate and the pair's sites. draws: 100, of latents of each step or word fewer. batches: to export in
    place of the first `max_sentences` of the split.
    """
    from .export import program_to_arviz

    if run.pair.steps:
        run = run.judged_by(KL())
    if (run.pair.steps or prior_of(run)) and batches is None and draws is None:
        draws, max_sentences = _room(run, split, max_sentences)
    return program_to_arviz(
        run.program,
        run.state,
        first(run.batches(split), max_sentences) if batches is None else batches,
        draws=DRAWS if draws is None else draws,
        plate=run.pair.plate,
        sites=run.pair.sites,
        text=run.pair.text,
        steps=run.pair.steps is not None,
        measure=prior_of(run),
        points=run.recipe.judged.charge == "penalty",
        rows=rows,
        seed=seed,
        attributes=_about(run, split, seed),
        progress=progress,
    )


def _room(run: Any, split: str, count: int) -> tuple[int, int]:
    """Draws and data to export."""
    if prior := prior_of(run):
        lengths = np.asarray(of_split(run, split).lengths[:count])
        each = prior.atoms(int(lengths.max())) * (prior.dim + 1) * (1 + run.recipe.guide.stacked)
    else:
        lengths = run.dataset.splits[split].lengths[:count]
        each = int(lengths.max()) * latent_size(run)
    count = min(len(lengths), max(1, MOST_NUMBERS // (FEWEST_DRAWS * each)))
    return min(DRAWS, max(FEWEST_DRAWS, MOST_NUMBERS // (count * each))), count


def _about(run: Any, split: str, seed: int) -> dict[str, Any]:
    return {"pair": run.pair.name, "engine": run.recipe.engine, "split": split, "seed": seed}


def _pictures(run: Any, found: Account, tree: xr.DataTree) -> dict[str, bytes]:
    """What can be drawn of this run: a curve needs a history, the latent a diagonal normal."""
    from . import figures

    pictures, unit = {}, "nats per sentence" if run.pair.text else "nats per datum"
    train = run.history("train")
    if len(train) > 1:
        pictures["training"] = figures.png(figures.training(train, run.history("valid"), unit))
    split = {site: found.kl_per_dimension(site) for site in found.kl if site in found.posterior}
    drawn = [site for site, kl in split.items() if kl is not None and found.posterior[site].family == "normal"]
    if drawn:
        kl = np.concatenate([np.asarray(split[site]) for site in drawn])
        loc, scale = (np.concatenate([found.posterior[site][i] for site in drawn], -1) for i in (1, 2))
        z = np.concatenate([_first_draw(tree, site, len(found.rows)) for site in drawn], -1)
        pictures["kl_per_dimension"] = figures.png(figures.kl_bars(kl.tolist(), active_dimensions(loc).tolist(), unit))
        pictures["latent"] = figures.png(figures.latent(z, loc, scale, kl.tolist()))
    return pictures


def _sequence_pictures(run: Any, split: str, seed: int) -> dict[str, bytes]:
    """The curve, where there is a history; a forecast; and samples, of what can be drawn."""
    from . import figures
    from .sequence_files import picture_of

    train = run.history("train")
    pictures = {}
    if len(train) > 1:
        pictures["training"] = figures.png(figures.training(train, run.history("valid"), "nats per sequence"))
    if run.dataset.splits[split].lengths[0] > 1:
        pictures["forecast"] = figures.png(forecast(run, 0, split=split, seed=seed).picture())
    drawn = picture_of(generate(run, SAMPLES, seed=seed), run.dataset.about)
    return pictures | ({} if drawn is None else {"samples": figures.png(drawn)})


def _first_draw(tree: xr.DataTree, site: str, rows: int) -> np.ndarray:
    return np.asarray(tree["posterior"].dataset[site].values[0]).reshape(rows, -1)


def _texts(run: Any, split: str, seed: int) -> list[Any]:
    if not run.pair.text:
        return []
    if run.pair.guide is None:
        return [sample(run, EXAMPLES, strategy=Sample(), seed=seed)]
    back = reconstruct(run, split=split, count=EXAMPLES, latent="either", seed=seed)
    ends = back.sentences[0], back.sentences[min(1, len(back.sentences) - 1)]
    return [
        back,
        interpolate(run, *ends, seed=seed),
        sample(run, EXAMPLES, strategy=Greedy(), seed=seed),
    ]


def _written(folder: Path, tree: xr.DataTree, pictures: dict[str, bytes], html: str) -> dict[str, Path]:
    from .export import write_netcdf

    files = {"posterior": folder / "posterior.nc"}
    write_netcdf(tree, files["posterior"])
    for name, png in pictures.items():
        files[name] = folder / "figures" / f"{name}.png"
        write(files[name], png)
    files["report"] = folder / "report.html"
    write(files["report"], html.encode())
    return files
