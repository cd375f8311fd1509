"""What there is: pairs, recipes, specs and engines, read from the code itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from ..engines import ENGINES, installed
from ..guides import PAIRS, Encoder, Posterior
from ..guides.measures import MeasurePosterior
from ..models import Decoder, Prior
from ..models.measures import MeasurePrior
from .compatibility import matrix
from .divergences import Divergence
from .mistakes import kinds
from .recipe import RECIPES
from .schedules import Schedule
from .strategies import Strategy
from .tables import text_table

ROLES: dict[str, Any] = {
    "priors": Prior,
    "posteriors": Posterior,
    "priors of what is attended to": MeasurePrior,
    "posteriors of what is attended to": MeasurePosterior,
    "encoders": Encoder,
    "decoders": Decoder,
    "divergences": Divergence,
    "schedules": Schedule,
    "decoding": Strategy,
}


@dataclass(frozen=True, repr=False)
class Catalogue:
    """Names of everything a recipe can name."""

    pairs: dict[str, str]
    recipes: list[str]
    specs: dict[str, dict[str, str]]
    engines: dict[str, bool]
    matrix: list[dict[str, Any]]
    """Every prior × posterior × divergence × estimator: whether they fit, and why not."""

    def to_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def __repr__(self) -> str:
        parts = ["pairs", _names(self.pairs), "recipes", _names(dict.fromkeys(self.recipes, ""))]
        for role, named in self.specs.items():
            parts += [role, _names(named)]
        here = [
            (name, "installed" if there else f"pip install 'guidebook[{name}]'") for name, there in self.engines.items()
        ]
        return "\n".join([*parts, "engines", _names(dict(here))])


def catalogue() -> Catalogue:
    here = installed()
    return Catalogue(
        pairs={name: _summary(sys.modules[pair.model_spec.__module__]) for name, pair in PAIRS.items()},
        recipes=sorted(path.stem for path in RECIPES.glob("*.toml")),
        specs={
            role: {kind: _summary(spec) for kind, spec in kinds(annotation).items()}
            for role, annotation in ROLES.items()
        },
        engines={name: name in here for name in ENGINES},
        matrix=list(matrix()),
    )


def _summary(thing: Any) -> str:
    """The first paragraph of its docstring, in one line."""
    return " ".join((thing.__doc__ or "").strip().partition("\n\n")[0].split()).rstrip(":,")


def _names(table: dict[str, str]) -> str:
    return text_table(table.items(), right=())
