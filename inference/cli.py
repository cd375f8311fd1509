"""The command line: the functions of this package by name. Errors are one line on standard error."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ..data import BadData
from ..engines.memory import keep_freed_memory
from ..models.errors import BadInput, FailedRun, Interrupted
from .resolve import pair_in_file

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

CommandError: Any = typer.BadParameter.__mro__[2]
"""What typer raises for a wrong command line: click's ClickException, or that of the click it carries."""

app = typer.Typer(
    name="guidebook",
    help="Model/guide pairs on Pyro and NumPyro: fit, evaluate, diagnose, use.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
PairOption = Annotated[
    str | None,
    typer.Option("--pair", metavar="FILE.py:NAME", help="The programs of a run of your own pair; this runs the file."),
]
EngineOption = Annotated[str | None, typer.Option("--engine", help="pyro or numpyro; default: the run's own.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0)]
DecodingKind = Literal["greedy", "sample", "beam"]
StrategyOption = Annotated[DecodingKind | None, typer.Option("--strategy", help="How words are chosen.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="Of --strategy sample.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Of --strategy sample: only so many words.")]
TopPOption = Annotated[float | None, typer.Option("--top-p", help="Of --strategy sample: only words of this mass.")]
BeamOption = Annotated[int, typer.Option("--width", help="Of --strategy beam.")]
LengthOption = Annotated[int, typer.Option("--max-words", min=1, help="Longest sentence.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Pairs, recipes, specs, engines, and what fits what."""
    from .catalogue import catalogue

    _show(catalogue(), as_json)


@app.command()
def fit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name in recipes/, a TOML file, or FILE.py:NAME.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted settings.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="pyro or numpyro; default: the recipe's.")] = None,
    device: DeviceOption = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME-ENGINE-SEED.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE.npz", help="Arrays, for a pair that takes them.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a recipe by SVI."""
    from .fit import fit

    run = fit(recipe, *(settings or ()), engine=engine, device=device, out=out, seed=seed, data=data, resume=resume)
    valid = [line for line in run.lines if line["kind"] == "valid"]
    last = valid[-1] if valid else {}
    if as_json:
        _print_json({"run": str(run.folder), "pair": run.pair.name, "engine": run.recipe.engine, "valid": last})


@app.command()
def evaluate(
    run: RunFolder,
    split: Annotated[str, typer.Option("--split", help="train, valid or test.")] = "test",
    particles: Annotated[
        int | None,
        typer.Option("--particles", min=1, help="Of the bounds; default 500, and 128 for sequences."),
    ] = None,
    max_sentences: Annotated[int | None, typer.Option("--max-sentences", min=1, help="Only the first so many.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option("--precision", help="Of the vocabulary products.")
    ] = "float32",
    hmc: Annotated[
        int | None,
        typer.Option("--hmc", metavar="ROWS", min=1, help="Besides: log p(x) of so many rows, from HMC draws."),
    ] = None,
    seed: SeedOption = 0,
    engine: EngineOption = None,
    device: DeviceOption = "cpu",
    pair: PairOption = None,
    as_json: AsJson = False,
) -> None:
    """Bounds, KL, mutual information, active units, perplexity."""
    from .evaluate import evaluate

    loaded = _run(run, pair, device, engine)
    with _counting("sentences judged") as progress:
        found = evaluate(
            loaded,
            split=split,
            particles=particles,
            seed=seed,
            max_sentences=max_sentences,
            precision=precision,
            progress=progress,
        )
    if hmc is None:
        _show(found, as_json)
        return
    with _counting("posteriors sampled") as progress:
        marginal = loaded.marginal_likelihood(split=split, rows=hmc, seed=seed, progress=progress)
    if as_json:
        _print_json(found.to_dict() | {"marginal_likelihood": marginal.to_dict()})
    else:
        print(found, marginal, sep="\n")


@app.command()
def compare(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name in recipes/, a TOML file, or FILE.py:NAME.")],
    variation: Annotated[
        str, typer.Argument(metavar="KEY=VALUE,VALUE", help="What differs, e.g. divergence=kl,iwae:8,renyi:0.5.")
    ],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of all.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="pyro or numpyro; default: the recipe's.")] = None,
    device: DeviceOption = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the runs; default runs/compare-NAME.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE.npz", help="Arrays, for a pair that takes them.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, valid or test.")] = "test",
    particles: Annotated[int, typer.Option("--particles", min=1, help="Of the importance-weighted bound.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Fit a recipe with several values of one setting, and set the results side by side."""
    from .compare import compare

    found = compare(
        recipe,
        variation,
        *(settings or ()),
        out=out,
        engine=engine,
        device=device,
        seed=seed,
        split=split,
        particles=particles,
        data=data,
    )
    _show(found, as_json)


@app.command()
def diagnose(
    run: RunFolder,
    split: Annotated[str, typer.Option("--split", help="train, valid or test.")] = "test",
    seed: SeedOption = 0,
    engine: EngineOption = None,
    device: DeviceOption = "cpu",
    pair: PairOption = None,
    as_json: AsJson = False,
) -> None:
    """Write posterior.nc, figures/ and report.html into the run folder."""
    from .diagnose import diagnose

    loaded = _run(run, pair, device, engine)
    with _working("drawing from the posterior"):
        found = diagnose(loaded, split=split, seed=seed)
    _show(found, as_json)


@app.command()
def sample(
    run: RunFolder,
    count: Annotated[int, typer.Option("--count", "--number", "-n", min=1, help="How many.")] = 10,
    strategy: StrategyOption = None,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    width: BeamOption = 5,
    max_words: LengthOption = 60,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of sequences; default: the median of the training data.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for sequences; default RUN/samples.")] = None,
    seed: SeedOption = 0,
    engine: EngineOption = None,
    device: DeviceOption = "cpu",
    pair: PairOption = None,
    as_json: AsJson = False,
) -> None:
    """Sentences from the prior; of a pair of sequences MIDI, WAV or array files and a picture."""
    from .drawn import sample_files
    from .strategies import strategy_of
    from .text import sample

    loaded = _run(run, pair, device, engine)
    if loaded.pair.steps:
        if (strategy, temperature, top_k, top_p, width, max_words) != (None, 1.0, None, None, 5, 60):
            raise BadInput(
                f"{run} is a run of sequences: --strategy and its kin choose words, --steps is for sequences"
            )
        _show(sample_files(loaded, count, steps, out=out, seed=seed), as_json)
        return
    if steps is not None or out is not None:
        raise BadInput(f"{run} is no run of sequences: --steps and --out are for those, --max-words is for sentences")
    chosen = strategy_of(strategy or "sample", temperature, top_k, top_p, width)
    _show(sample(loaded, count, strategy=chosen, max_words=max_words, seed=seed), as_json)


@app.command()
def forecast(
    run: RunFolder,
    row: Annotated[int, typer.Option("--row", min=0, help="Which sequence of the split.")] = 0,
    given: Annotated[
        int | None, typer.Option("--given", min=1, help="Steps that the model is told; default: half.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="To forecast; default: to the end of the sequence.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, valid or test.")] = "test",
    particles: Annotated[int, typer.Option("--particles", min=1, help="Of the filter.")] = 256,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the files; default RUN/forecasts.")] = None,
    seed: SeedOption = 0,
    engine: EngineOption = None,
    device: DeviceOption = "cpu",
    pair: PairOption = None,
    as_json: AsJson = False,
) -> None:
    """What follows the beginning of a sequence, with its uncertainty: a table, a picture, and a continuation to hear."""
    from .drawn import forecast_files

    loaded = _run(run, pair, device, engine)
    found = forecast_files(loaded, row, split=split, given=given, steps=steps, particles=particles, out=out, seed=seed)
    _show(found, as_json)


@app.command()
def reconstruct(
    run: RunFolder,
    sentences: Annotated[list[str] | None, typer.Argument(metavar="[SENTENCE]...", help="Default: of a split.")] = None,
    split: Annotated[str, typer.Option("--split", help="Where sentences come from when none is given.")] = "test",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many of the split.")] = 10,
    latent: Annotated[Literal["mean", "draw"], typer.Option("--latent", help="Posterior mean, or a draw.")] = "mean",
    strategy: StrategyOption = None,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    width: BeamOption = 5,
    seed: SeedOption = 0,
    engine: EngineOption = None,
    device: DeviceOption = "cpu",
    pair: PairOption = None,
    as_json: AsJson = False,
) -> None:
    """Sentences through the latent and back."""
    from .strategies import strategy_of
    from .text import reconstruct

    chosen = strategy_of(strategy or "greedy", temperature, top_k, top_p, width)
    loaded = _run(run, pair, device, engine)
    found = reconstruct(loaded, sentences or None, split=split, count=count, latent=latent, strategy=chosen, seed=seed)
    _show(found, as_json)


@app.command()
def interpolate(
    run: RunFolder,
    a: Annotated[str | None, typer.Argument(metavar="[A]", help="A sentence; default: of the test split.")] = None,
    b: Annotated[str | None, typer.Argument(metavar="[B]", help="Another.")] = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Sentences, both ends included.")] = 7,
    strategy: StrategyOption = None,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    width: BeamOption = 5,
    seed: SeedOption = 0,
    engine: EngineOption = None,
    device: DeviceOption = "cpu",
    pair: PairOption = None,
    as_json: AsJson = False,
) -> None:
    """Sentences on the line between two."""
    from .strategies import strategy_of
    from .text import interpolate

    chosen = strategy_of(strategy or "greedy", temperature, top_k, top_p, width)
    loaded = _run(run, pair, device, engine)
    _show(interpolate(loaded, a, b, steps, strategy=chosen, seed=seed), as_json)


@app.command()
def convert(
    run: RunFolder,
    engine: Annotated[str, typer.Option("--engine", help="pyro or numpyro.")],
    out: Annotated[Path | None, typer.Option("--out", help="New run folder; default RUN-ENGINE.")] = None,
    pair: PairOption = None,
    as_json: AsJson = False,
) -> None:
    """The same weights as a run of the other engine."""
    folder = out or run.with_name(f"{run.name}-{engine}")
    converted = _run(run, pair, "cpu", None).convert(engine, folder)
    if as_json:
        _print_json({"run": str(converted.folder), "engine": engine})
    else:
        print(converted.folder)


def main() -> None:
    """The console script: runs a command and turns what goes wrong into one line and an exit status."""
    keep_freed_memory()
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="guidebook", standalone_mode=False)
        if status == INTERRUPTED:  # what typer makes of Ctrl-C
            _complain("interrupted", INTERRUPTED)
    except (BadInput, BadData) as error:
        status = _complain(str(error), BAD_INPUT)
    except CommandError as error:
        status = _complain(error.format_message(), BAD_INPUT)
    except FailedRun as error:
        status = _complain(str(error), FAILED)
    except Interrupted as error:
        status = _complain(str(error), INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        status = _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        status = 0
    except OSError as error:
        status = _complain(f"{error.filename or 'a file'}: {error.strerror or error}", FAILED)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str, status: int) -> int:
    print(f"guidebook: {' '.join(message.split())}", file=sys.stderr)
    return status


def _run(folder: Path, pair: str | None, device: str, engine: str | None) -> Any:
    from .run import load

    return load(folder, pair=pair_in_file(pair) if pair else None, device=device, engine=engine)


def _show(found: Any, as_json: bool) -> None:
    if as_json:
        _print_json(found.to_dict())
    else:
        print(found)


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(_finite(found), allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _working(what: str) -> Any:
    return Console(stderr=True).status(what)


class _counting:
    """A line on a terminal that counts batches; silent elsewhere."""

    def __init__(self, what: str) -> None:
        self.what, self.console = what, Console(stderr=True)

    def __enter__(self) -> Any:
        self.status = self.console.status(self.what)
        self.status.__enter__()
        return self._count

    def __exit__(self, *error: Any) -> None:
        self.status.__exit__(*error)

    def _count(self, done: int, total: int) -> None:
        self.status.update(f"{self.what}: batch {done} of {total}" if total else f"{self.what}: batch {done}")


if __name__ == "__main__":
    main()
