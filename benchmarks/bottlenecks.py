"""The NVAE beside a plain Transformer and Gaussian bottlenecks, under one protocol.

python -m benchmarks.bottlenecks --runs runs                 every model in turn; those that have a result are left out
python -m benchmarks.bottlenecks NVAE-B-0.05 --runs runs --corpus wikitext2 --seed 1

Writes `benchmarks/results/bottleneck.CORPUS.NAME.SEED.json`.

Each is the recipe `ptb_nvae` with other tables (`MODELS`), trained for the same steps. On the test split: share of vectors
kept and greedy reconstructions from the mean of q(F | x); the bound on −log p(x), of one that has one; samples under a
decoder-only language model of the same sentences, and real sentences under one of the samples; interpolations.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, device
from guidebook.inference import Run, evaluate, fit, interpolation_curve, judge_samples, reconstruct

RESULTS = Path(__file__).resolve().parent / "results"
RECIPE = "ptb_nvae"

PACE = {"ptb": 1, "wikitext2": 2}
"""Times 2,200 steps, since decoders of the longer sentences of WikiText-2 find their memory later."""
VECTORS = "model.prior={kind = 'normal_vectors', dim = 128, share = %s}"
NORMALS = "guide.posterior={kind = 'normal_vectors'}"
POOLED = ["model.prior={kind = 'pooled_normal', dim = 128}", "guide.posterior={kind = 'pooled_normal'}"]
PAPER = "guide.posterior={kind = 'dirichlet_process', objective = 'paper', lambda_weights = %s, lambda_locations = %s}"
MIXTURE = [
    "model.prior={kind = 'dirichlet_process', dim = 128, increment = 0.3, places = 4}",
    "guide.posterior={kind = 'dirichlet_process', objective = 'mixture', gradient = 'score'}",
    "divergence.particles=2",
]
MODELS = {
    "T": ([VECTORS % 1.0, "guide.posterior={kind = 'point_vectors'}"], 0.0),
    "NVAE-B-0.02": ([PAPER % (1.0, 0.02)], 1.0),
    "VT-0.02": ([VECTORS % 1.0, NORMALS], 0.02),
    "VTS-0.5": ([VECTORS % 0.5, NORMALS], 0.02),
    "NVAE-C-0.005": (MIXTURE, 0.005),
    "VTP-0.02": (POOLED, 0.02),
    "NVAE-B-0.5": ([PAPER % (1.0, 0.5)], 1.0),
    "VTS-0.25": ([VECTORS % 0.25, NORMALS], 0.02),
    "NVAE-B-0.1": ([PAPER % (1.0, 0.1)], 1.0),
    "NVAE-C-0.001": (MIXTURE, 0.001),
    "NVAE-C-0.02": (MIXTURE, 0.02),
    "VT-0.1": ([VECTORS % 1.0, NORMALS], 0.1),
    "NVAE-B-0.1-10": ([PAPER % (10.0, 0.1)], 1.0),
    "NVAE-B-0.1-3": ([PAPER % (3.0, 0.1)], 1.0),
}
"""Name, of the model and its weight (of NVAE-B λ_G, and λ_D where it is not 1) or, of VTS, its share of places → tables and the
weight of the KL. That of a mixture counts each of its four places, so that its weights are a fourth of the others' at the
same price."""

DATA = "data={corpus = '%s', tokeniser = {kind = 'words', cap = 5000}, max_sentences = 20000}"
JUDGE = [
    "model.decoder={kind = 'transformer', hidden = 128, layers = 2, heads = 4, dropout = 0.1}",
    "fit.max_steps=2000",
    "fit.optimiser={kind = 'adam', learning_rate = 2e-3, clip = 1.0, "
    "schedule = {kind = 'linear', start = 1.0, stop = 0.05, steps = 2000}}",
]
"""Settings of `ptb_transformer_lm`, the language model."""


def main() -> None:
    arguments = _arguments()
    runs, data = Path(arguments.runs) / arguments.corpus, DATA % arguments.corpus
    judge = fit("ptb_transformer_lm", *JUDGE, data, seed=0, out=runs / "judge", resume=True)
    for name in arguments.names or MODELS:
        path = RESULTS / f"bottleneck.{arguments.corpus}.{name}.{arguments.seed}.json"
        if path.exists() and not arguments.names:
            continue
        settings = [*training(name, PACE[arguments.corpus]), data]
        run = fit(RECIPE, *settings, seed=arguments.seed, out=runs / f"{name}.{arguments.seed}", resume=True)
        about = {"recipe": RECIPE, "name": name, "corpus": arguments.corpus, "settings": settings}
        found = about | measured(run, judge, arguments) | {"device": device(), "commit": arguments.commit or commit()}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(path.name, json.dumps(found["row"]), flush=True)


def training(name: str, pace: int) -> list[str]:
    """Settings of a model. Vectors first, then their price, since priced before decoders find them all of these collapse."""
    tables, weight = MODELS[name]
    ramp = f"{{kind = 'linear', start = 0.0, stop = {weight}, wait = {900 * pace}, steps = {800 * pace}}}"
    return [
        *tables,
        f"divergence.weight={ramp if weight else weight}",
        f"fit.max_steps={2200 * pace}",
        f"fit.optimiser.schedule.steps={2200 * pace}",
        "model.longest=256",
    ]


def measured(run: Run, judge: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """The `row` of the table, and what it was taken from."""
    bound = evaluate(run, particles=arguments.particles, max_sentences=arguments.sentences).to_dict()
    bounds = () if run.recipe.guide.model_dump()["posterior"]["kind"] == "point_vectors" else ("elbo", "iw_nll", "kl")
    copied = reconstruct(run, count=arguments.sentences)
    reverse = run.folder.with_name(f"{run.folder.name}-reverse")
    samples = judge_samples(run, judge, count=arguments.samples, reverse_steps=arguments.reverse_steps, out=reverse)
    curve = interpolation_curve(run, pairs=arguments.pairs, language_model=judge)
    middle = len(curve.weights) // 2
    kept = bound["retained"] or {}
    epochs = [line for line in run.lines if line["kind"] == "valid"]
    row = {
        "retained": kept.get("vectors"),
        "retained_with_prior": kept.get("with_prior"),
        "pseudo_count": kept.get("pseudo_count"),
        "bleu": copied.bleu,
        "exact": copied.exact,
        **{what: bound[what] for what in bounds},
        "forward_perplexity": samples.forward.value,
        "real_perplexity": samples.real.value,
        "reverse_perplexity": samples.reverse and samples.reverse.value,
        "distinct": samples.distinct,
        "middle_bleu": [curve.bleu_a[middle], curve.bleu_b[middle]],
        "middle_novel": curve.novel[middle],
    }
    return {
        "seed": arguments.seed,
        "engine": run.recipe.engine,
        "seconds": epochs[-1]["seconds"],
        "epochs": epochs[-1]["epoch"],
        "row": row,
        "evaluation": bound,
        "samples": samples.to_dict() | {"language_model": "ptb_transformer_lm"},
        "interpolation": curve.to_dict(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)}; default: those without a result")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--corpus", default="ptb", choices=["ptb", "wikitext2"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--particles", type=int, default=20, help="of the bound")
    parser.add_argument("--sentences", type=int, default=500, help="of the test split")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--reverse-steps", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--commit", help="what to write as the commit, when git cannot tell")
    return parser.parse_args()


if __name__ == "__main__":
    main()
