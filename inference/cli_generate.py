"""The commands on what a run makes: sentences and sequences, and what they are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..models.errors import BadInput
from .terminal import (
    AsJson,
    BeamOption,
    DeviceOption,
    EngineOption,
    LengthOption,
    PairOption,
    RunFolder,
    SeedOption,
    StrategyOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    loaded_run,
    print_json,
    show,
)


def sample(
    run: RunFolder,
    count: Annotated[int, typer.Option("--count", "--number", "-n", min=1, help="How many.")] = 10,
    strategy: StrategyOption = None,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    width: BeamOption = 5,
    max_words: LengthOption = None,
    words: Annotated[
        int | None,
        typer.Option("--words", min=1, help="Of an nvae: n of p(F | n), end mark counted; default: drawn from p(n)."),
    ] = None,
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

    loaded = loaded_run(run, pair, device, engine)
    if loaded.pair.steps:
        if (strategy, temperature, top_k, top_p, width, max_words, words) != (None, 1.0, None, None, 5, None, None):
            raise BadInput(
                f"{run} is a run of sequences: --strategy and its kin choose words, --steps is for sequences"
            )
        show(sample_files(loaded, count, steps, out=out, seed=seed), as_json)
        return
    if steps is not None or out is not None:
        raise BadInput(f"{run} is no run of sequences: --steps and --out are for those, --max-words is for sentences")
    chosen = strategy_of(strategy or "sample", temperature, top_k, top_p, width)
    show(sample(loaded, count, strategy=chosen, max_words=max_words, words=words, seed=seed), as_json)


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

    loaded = loaded_run(run, pair, device, engine)
    found = forecast_files(loaded, row, split=split, given=given, steps=steps, particles=particles, out=out, seed=seed)
    show(found, as_json)


def reconstruct(
    run: RunFolder,
    sentences: Annotated[list[str] | None, typer.Argument(metavar="[SENTENCE]...", help="Default: of a split.")] = None,
    split: Annotated[str, typer.Option("--split", help="Where sentences come from when none is given.")] = "test",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many of the split.")] = 10,
    latent: Annotated[Literal["mean", "draw"], typer.Option("--latent", help="Posterior mean, or a draw.")] = "mean",
    keep: Annotated[
        float, typer.Option("--keep", help="Of an nvae: only the heaviest components, of this share of the weight.")
    ] = 1.0,
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
    loaded = loaded_run(run, pair, device, engine)
    found = reconstruct(
        loaded,
        sentences or None,
        split=split,
        count=count,
        latent=latent,
        strategy=chosen,
        keep=keep,
        seed=seed,
    )
    show(found, as_json)


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
    loaded = loaded_run(run, pair, device, engine)
    show(interpolate(loaded, a, b, steps, strategy=chosen, seed=seed), as_json)


def judge(
    run: RunFolder,
    language_model: Annotated[
        Path, typer.Option("--language-model", metavar="RUN", help="A run of the pair language_model, same vocabulary.")
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Samples.")] = 1000,
    split: Annotated[str, typer.Option("--split", help="Real text: train, valid or test.")] = "test",
    reverse_steps: Annotated[
        int | None,
        typer.Option(
            "--reverse-steps",
            min=0,
            help="Of the language model of the samples; default: as RUN's; 0: none is trained.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Keep that language model in this folder.")] = None,
    pairs: Annotated[
        int,
        typer.Option(
            "--pairs",
            min=0,
            help="Besides: curves of interpolation between so many pairs of sentences, drawn in RUN/figures.",
        ),
    ] = 0,
    strategy: StrategyOption = None,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    width: BeamOption = 5,
    max_words: Annotated[
        int | None, typer.Option("--max-words", min=1, help="Longest sample; default: as in the training data.")
    ] = None,
    seed: SeedOption = 0,
    engine: EngineOption = None,
    device: DeviceOption = "cpu",
    pair: PairOption = None,
    as_json: AsJson = False,
) -> None:
    """Forward and reverse perplexity of samples, and curves of interpolation."""
    from .figures import png
    from .files import write
    from .generation import judge_samples
    from .interpolation import interpolation_curve
    from .strategies import strategy_of

    loaded, judging = loaded_run(run, pair, device, engine), loaded_run(language_model, None, device, engine)
    found = judge_samples(
        loaded,
        judging,
        count=count,
        split=split,
        strategy=strategy_of(strategy or "sample", temperature, top_k, top_p, width),
        max_words=max_words,
        seed=seed,
        reverse_steps=reverse_steps,
        out=out,
    )
    if not pairs:
        show(found, as_json)
        return
    curve = interpolation_curve(loaded, pairs=pairs, split=split, language_model=judging, seed=seed)
    picture = loaded.folder / "figures" / "interpolation.png"
    write(picture, png(curve.picture()))
    if as_json:
        print_json(found.to_dict() | {"interpolation": curve.to_dict() | {"picture": str(picture)}})
    else:
        print(found, curve, f"  picture  {picture}", sep="\n")
