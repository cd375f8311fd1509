"""The command line: the functions of this package by name. Errors are one line on standard error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..data import BadData
from ..engines.memory import keep_freed_memory
from ..models.errors import BadInput, FailedRun, Interrupted
from .cli_generate import forecast, interpolate, judge, reconstruct, sample
from .terminal import (
    AsJson,
    DeviceOption,
    EngineOption,
    PairOption,
    RunFolder,
    SeedOption,
    counting,
    loaded_run,
    print_json,
    show,
    working,
)

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


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Pairs, recipes, specs, engines, and what fits what."""
    from .catalogue import catalogue

    show(catalogue(), as_json)


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
        print_json({"run": str(run.folder), "pair": run.pair.name, "engine": run.recipe.engine, "valid": last})


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

    loaded = loaded_run(run, pair, device, engine)
    with counting("sentences judged") as progress:
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
        show(found, as_json)
        return
    with counting("posteriors sampled") as progress:
        marginal = loaded.marginal_likelihood(split=split, rows=hmc, seed=seed, progress=progress)
    if as_json:
        print_json(found.to_dict() | {"marginal_likelihood": marginal.to_dict()})
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
    show(found, as_json)


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

    loaded = loaded_run(run, pair, device, engine)
    with working("drawing from the posterior"):
        found = diagnose(loaded, split=split, seed=seed)
    show(found, as_json)


for command in (sample, forecast, reconstruct, interpolate, judge):
    app.command()(command)


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
    converted = loaded_run(run, pair, "cpu", None).convert(engine, folder)
    if as_json:
        print_json({"run": str(converted.folder), "engine": engine})
    else:
        print(converted.folder)


@app.command()
def regularise(
    run: RunFolder,
    tau_alpha: Annotated[
        float, typer.Option("--tau-alpha", help="Log weight of vectors against the prior, in standard deviations.")
    ] = 10.0,
    tau_sigma: Annotated[
        float, typer.Option("--tau-sigma", help="Standard deviations, as a share of the prior's.")
    ] = 0.0,
    tau_mu: Annotated[
        float, typer.Option("--tau-mu", help="Share of the vector in a mean; the rest is the prior's.")
    ] = 1.0,
    out: Annotated[Path | None, typer.Option("--out", help="New run folder; default RUN-regularised.")] = None,
    engine: EngineOption = None,
    device: DeviceOption = "cpu",
    as_json: AsJson = False,
) -> None:
    """A plain Transformer autoencoder as a nonparametric one, without training."""
    from .regularised import regularised

    folder = out or run.with_name(f"{run.name}-regularised")
    with counting("sentences read") as progress:
        found = regularised(loaded_run(run, None, device, engine), folder, tau_alpha, tau_sigma, tau_mu, progress)
    if as_json:
        print_json({"run": str(found.folder), "tau_alpha": tau_alpha, "tau_sigma": tau_sigma, "tau_mu": tau_mu})
    else:
        print(found.folder)


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


if __name__ == "__main__":
    main()
