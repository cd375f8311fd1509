"""Fits a recipe or a variant of one, evaluates it and writes `benchmarks/results/NAME.ENGINE.SEED.json` beside the published figure.

python -m benchmarks.reproduce ptb_language_model --engine pyro --seed 0 --runs runs
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, device
from guidebook.inference import evaluate, fit

RESULTS = Path(__file__).resolve().parent / "results"
LI = "Li et al. 2019, PTB test, as quoted by Li et al. 2020"

PUBLISHED = {
    "ptb_language_model": [{"metric": "iw_nll", "value": 101.04, "source": LI, "comparable": "exact likelihood"}],
    "ptb_vae": [
        {
            "metric": "iw_nll",
            "value": 101.04,
            "source": LI,
            "comparable": "the language model's: without tricks the VAE collapses onto it",
        }
    ],
    "ptb_vae_annealed": [{"metric": "iw_nll", "value": 101.28, "source": LI, "comparable": "their −ELBO; KL 0.00"}],
}
"""Name → published figures, in nats per datum."""

SPHERES = {2: (135.73, 132.50), 5: (110.21, 108.43), 10: (93.84, 93.16)}
"""d → IW-NLL of the N-VAE and of the S-VAE (Davidson et al. 2018, table 1)."""

VARIANTS = {
    f"{recipe}_d{d}": (recipe, [f"model.prior.dim={d + more}"])
    for recipe, more in (("mnist_vae", 0), ("mnist_svae", 1))
    for d in SPHERES
}
"""Name → recipe and settings; a name that is not here is a recipe. The sphere of d dimensions is in R^{d+1}."""

PUBLISHED |= {
    f"{recipe}_d{d}": [
        {
            "metric": "iw_nll",
            "value": values[place],
            "source": f"Davidson et al. 2018, table 1, {'NS'[place]}-VAE, d = {d}",
            "comparable": "500 samples, dynamic binarisation",
        }
    ]
    for place, recipe in enumerate(("mnist_vae", "mnist_svae"))
    for d, values in SPHERES.items()
}

MIXTURE = "model.likelihood={kind = 'gaussian_mixture', components = 20, scale = 'softplus'}"
OUTPUTS = {"gauss": [], "gmm": [MIXTURE, "fit.max_steps=308"]}
"""A step of the mixture takes ten times as long: 308 of them are 4 epochs."""
DIGITS = {
    "rnn": ("digits_rnn", []),
    "vrnn_i": ("digits_vrnn", ["model.prior={kind = 'standard_normal', dim = 32}"]),
    "vrnn": ("digits_vrnn", []),
}
VARIANTS |= {
    f"digits_{model}_{output}": (recipe, [*settings, *more])
    for model, (recipe, settings) in DIGITS.items()
    for output, more in OUTPUTS.items()
}
"""The six of Chung et al. 2015, table 1, on other sounds: a density hangs on its data, so that theirs are no measure."""

ELBO = ["divergence.kind=kl", "fit.optimiser.learning_rate=3e-3", "fit.optimiser.schedule=1.0"]
VARIANTS["jsb_vrnn_elbo"] = ("jsb_vrnn", ELBO)

VARIANTS["musedata_vrnn"] = ("nottingham_vrnn", ["data.corpus=musedata"])

PUBLISHED |= {
    name: [
        {
            "metric": "per step",
            "value": value,
            "source": f"Maddison et al. 2017, {data} test",
            "comparable": f"trained by {bound}; the largest of ELBO, IWAE and FIVO of 128 particles",
        }
    ]
    for name, value, data, bound in (
        ("jsb_vrnn", -6.90, "JSB, d = 32,", "FIVO of 4"),
        ("jsb_vrnn_elbo", -8.60, "JSB, d = 32,", "the ELBO"),
        ("nottingham_vrnn", -3.00, "Nottingham, d = 64,", "the ELBO"),
        ("musedata_vrnn", -7.15, "MuseData, d = 256 (here 64),", "the ELBO"),
    )
}
PUBLISHED["jsb_dmm"] = [
    {
        "metric": "ELBO per step",
        "value": -6.87,
        "source": "the deep Markov model of Pyro's tutorial, JSB test",
        "comparable": "5,000 epochs, about 20 hours on a GTX 1080",
    }
]

GATES = {
    "jsb_vrnn": {"filtered.total_step": (">=", -6.9)},
    "jsb_vrnn_elbo": {"elbo.total_step": (">=", -8.6)},
    "jsb_dmm": {"elbo.total_step": (">=", -6.87)},
    "ptb_language_model": {"iw_nll": ("<=", 101.5)},
    "ptb_vae": {"kl": ("<", 0.1), "active_units": ("<=", 0)},
    "ptb_vae_annealed": {"iw_nll": ("<=", 101.8), "kl": ("<", 0.5)},
}
"""Name → metric → bound that our own run should meet."""


def main() -> None:
    arguments = _arguments()
    recipe, settings = VARIANTS.get(arguments.name, (arguments.name, []))
    settings = [*settings, *arguments.settings]
    run = fit(
        recipe,
        *settings,
        engine=arguments.engine,
        seed=arguments.seed,
        out=Path(arguments.runs) / f"{arguments.name}-{arguments.engine}-{arguments.seed}",
        resume=True,
    )
    metrics = evaluate(run, split="test", particles=arguments.particles).to_dict()
    epochs = [line for line in run.lines if line["kind"] == "valid"]
    result = {
        "recipe": arguments.name,
        "settings": settings,
        "engine": arguments.engine,
        "seed": arguments.seed,
        "device": device(),
        "commit": arguments.commit or commit(),
        "seconds": epochs[-1]["seconds"],
        "epochs": epochs[-1]["epoch"],
        "metrics": metrics,
        "published": PUBLISHED.get(arguments.name, []),
        "gate": [
            {"metric": metric, "bound": f"{sign} {bound}", "met": _met(_metric(metrics, metric), sign, bound)}
            for metric, (sign, bound) in GATES.get(arguments.name, {}).items()
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{arguments.name}.{arguments.engine}.{arguments.seed}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("recipe", "seconds", "gate")}))


def _metric(metrics: Any, name: str) -> float:
    """`elbo`, or `elbo.total_step` where a metric has parts."""
    for part in name.split("."):
        metrics = metrics[part]
    return metrics


def _met(value: float, sign: str, bound: float) -> bool:
    return {"<=": value <= bound, "<": value < bound, ">=": value >= bound}[sign]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a recipe, or one of VARIANTS")
    parser.add_argument("settings", nargs="*", help="dotted overrides, key=value")
    parser.add_argument("--engine", default="pyro")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--particles", type=int, help="default 500, and 128 for sequences")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--commit", help="what to write as the commit, when git cannot tell")
    return parser.parse_args()


if __name__ == "__main__":
    main()
