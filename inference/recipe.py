"""Recipes: one declarative experiment each, TOML one to one."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from ..guides import PAIRS, Pair
from ..guides.posteriors import Charge
from ..models.errors import BadInput
from ..models.spec import Spec
from .aggressive import Aggressive
from .compatibility import ATTENDED, misfit, off_the_path
from .consistency import Consistency
from .datasets import data_spec
from .divergences import KL, Divergence
from .mistakes import models_in, nearest, sentence
from .refine import Refine
from .schedules import Constant, NumberOrSchedule

Decay = Annotated[NonNegativeFloat, Field(lt=1)]

_BARE_POINT = re.compile(r"[+-]?(\d+\.|\.\d+)([eE][+-]?\d+)?")
"""`.5` and `5.`, which TOML does not have."""

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class Optimiser(Spec):
    """An optimiser. The schedule multiplies the learning rate; clip bounds the global gradient norm over both sides."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: PositiveFloat = 1e-3
    schedule: NumberOrSchedule = Constant()
    clip: PositiveFloat = Field(default=5.0, allow_inf_nan=True, description="inf: no clipping")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), strict=False)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    momentum: NonNegativeFloat = 0.0


class Plateau(Spec):
    """Multiply the learning rate by `factor` and go back to the best weights after `patience` epochs without a better
    validation objective, not before epoch `first_epoch`; stop after `decays` (He et al. 2019: 0.5, 2, 15, 5)."""

    factor: PositiveFloat = Field(default=0.5, lt=1)
    patience: PositiveInt = 2
    first_epoch: NonNegativeInt = 15
    decays: PositiveInt = 5


class Fit(Spec):
    """The `[fit]` table."""

    epochs: PositiveInt = 20
    max_steps: PositiveInt | None = Field(default=None, description="stop after so many steps, whatever the epochs")
    batch_size: PositiveInt = 32
    accumulate: PositiveInt = Field(default=1, description="batches per update (gradient accumulation)")
    optimiser: Optimiser = Optimiser()
    guide_optimiser: Optimiser | None = Field(default=None, description="for the guide's side; its clip is not read")
    word_dropout: NonNegativeFloat = Field(
        default=0.0, le=1, description="share of the decoder's input words hidden, in training"
    )
    select: Literal["best", "last"] = Field(
        default="best", description="weights kept: best validation objective, or the last"
    )
    early_stopping: PositiveInt | None = Field(
        default=None, description="stop after so many epochs without a better one"
    )
    plateau: Plateau | None = None
    aggressive: Aggressive | None = None
    refine: Refine | None = None
    consistency: Consistency | None = None
    truncate: PositiveInt | None = Field(
        default=None, description="steps through which gradients pass, in windows that carry the state on; None: all"
    )
    seed: NonNegativeInt = 0
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        default="float32", description="bfloat16: operands of the large products only"
    )
    checkpoint_seconds: PositiveFloat = Field(default=60.0, description="at least this often, and at every epoch")


class Recipe(Spec):
    """A pair with everything chosen. `model` and `guide` are the tables of the pair's own spec classes."""

    pair: str = "sentence_vae"
    engine: Literal["pyro", "numpyro"] = "pyro"
    model: SerializeAsAny[Spec]
    guide: SerializeAsAny[Spec]
    divergence: Divergence = KL()
    data: SerializeAsAny[BaseModel]
    fit: Fit = Fit()

    @model_validator(mode="after")
    def _one_rule_stops(self) -> Recipe:
        if self.fit.plateau and self.fit.early_stopping:
            raise ValueError("fit.plateau stops by itself: leave fit.early_stopping out")
        if self.fit.plateau and self.fit.select != "best":
            raise ValueError('fit.plateau goes back to the best weights: it needs fit.select = "best"')
        if self.fit.refine and self.fit.consistency:
            raise ValueError("fit.refine and fit.consistency each say what a step minimises: leave one of them out")
        return self

    @property
    def charge(self) -> Charge:
        """What is charged for the latent in training."""
        return getattr(getattr(self.guide, "posterior", None), "charge", "kl")

    @property
    def judged(self) -> Recipe:
        """What a run of it is judged as: a mixture, where training draws and charges what bounds nothing."""
        posterior = getattr(self.guide, "posterior", None)
        if posterior is None or getattr(posterior, "objective", None) != "paper":
            return self
        posterior = posterior.model_copy(update={"objective": "mixture"})
        return self.model_copy(update={"guide": self.guide.model_copy(update={"posterior": posterior})})

    def to_toml(self) -> str:
        return _toml(self.model_dump(mode="json", exclude_none=True))


def parse(raw: Mapping[str, Any], *, pair: Pair | None = None, origin: str = "recipe") -> Recipe:
    """A recipe from plain tables.

    pair: the pair itself when it is not in the table of pairs (`file.py:PAIR`). BadInput: the first thing that is
    wrong, where it stands, and the nearest that would be right.
    """
    chosen = pair or pair_named(str(raw.get("pair", "sentence_vae")), origin)
    tables: dict[str, Any] = {**raw, "pair": chosen.name}
    if chosen.engine is not None:
        if raw.get("engine", chosen.engine) != chosen.engine:
            raise BadInput(f"{origin}: the pair {chosen.name!r} is written in {chosen.engine}; it has no other engine")
        tables["engine"] = chosen.engine
    for side, spec in (("model", chosen.model_spec), ("guide", chosen.guide_spec)):
        tables[side] = _validated(spec, raw.get(side, {}), origin, side)
    tables["data"] = _validated(data_spec(chosen), raw.get("data", {}), origin, "data")
    recipe = _validated(Recipe, tables, origin)
    prior, posterior = getattr(recipe.model, "prior", None), getattr(recipe.guide, "posterior", None)
    why = misfit(prior, posterior, recipe.divergence) if prior and posterior else None
    if why is None and chosen.steps:
        why = off_the_path(recipe.divergence)
        if why is None and recipe.fit.consistency is not None:
            why = (
                f"fit.consistency is of data without steps, and the pair {chosen.name!r} is made of steps: leave it out"
            )
    elif why is None and recipe.divergence.filtering:
        why = f"fivo filters the steps of a sequence, and the pair {chosen.name!r} has none: use the divergence iwae"
    if why is None and recipe.fit.refine and posterior and not posterior.pathwise:
        why = f"fit.refine needs a gradient through draws, and the posterior {posterior.kind!r} has none: leave it out"
    vectors = [key for key in ("refine", "consistency", "aggressive") if getattr(recipe.fit, key)]
    if why is None and vectors and getattr(prior, "support", "") in ATTENDED:
        why = f"fit.{vectors[0]} is for one latent vector a datum, and the pair {chosen.name!r} has sets of them: leave it out"
    if why is None and recipe.fit.refine and getattr(prior, "kind", "") == "vamp":
        why = "fit.refine moves what the encoder gives, and the prior 'vamp' reads the encoder too: use another prior"
    if why is None and recipe.fit.consistency:
        why = recipe.fit.consistency.misfit(chosen, posterior)
    if why:
        raise BadInput(f"{origin}: {why}")
    return recipe


def read(source: str | Path) -> tuple[dict[str, Any], str]:
    """The raw tables of a recipe by name (in `recipes/`) or path, and what to call it.

    Raises:
        BadInput: no such recipe (names the nearest), or it is not TOML.
    """
    path = Path(source)
    if path.suffix != ".toml":
        names = sorted(recipe.stem for recipe in RECIPES.glob("*.toml"))
        if str(source) not in names:
            raise BadInput(
                f"there is no recipe {str(source)!r}{nearest(str(source), names)}; recipes: {', '.join(names)}"
            )
        path = RECIPES / f"{source}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path.name
    except FileNotFoundError:
        raise BadInput(f"there is no recipe file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{path} cannot be read as a recipe in TOML: {error}") from None


def override(recipe: Recipe, settings: Iterable[str], *, pair: Pair | None = None) -> Recipe:
    """`recipe` with dotted settings `fit.max_steps=30`; a value is TOML, or else a string."""
    settings = list(settings)
    tables = recipe.model_dump(mode="json")
    for setting in sorted(settings, key=lambda setting: not setting.partition("=")[0].endswith(".kind")):
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise BadInput(f"{setting!r} is no setting: write key=value, e.g. fit.max_steps=30")
        *parents, last = path.split(".")
        table = tables
        for parent in parents:
            if table.get(parent) is None:
                table[parent] = {}
            table = table[parent]
            if not isinstance(table, dict):
                raise BadInput(f"{setting!r}: {parent!r} is no table, so it has no {last!r}")
        before, table[last] = table.get(last), _value(text)
        if last == "kind":
            _drop_of_other_kinds(table, before, _specs_at(parents, pair or pair_named(recipe.pair)))
    return parse(_pruned(tables), pair=pair, origin="settings" if settings else "recipe")


def pair_named(name: str, origin: str = "recipe") -> Pair:
    if name not in PAIRS:
        raise BadInput(f"{origin}: there is no pair {name!r}{nearest(name, PAIRS)}; pairs: {', '.join(PAIRS)}")
    return PAIRS[name]


def _validated(spec: type[BaseModel], value: Any, origin: str, table: str = "") -> Any:
    try:
        return spec.model_validate(value)
    except ValidationError as error:
        raise BadInput(f"{origin}: {sentence(spec, error, table)}") from None


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Dotted key → its two values, where two recipes differ; None where one has no such key."""
    a, b = (_flat(recipe.model_dump(mode="json", exclude_none=True)) for recipe in (one, other))
    return {key: (a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key)}


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tables.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _specs_at(path: Iterable[str], pair: Pair) -> list[type[BaseModel]]:
    """The spec classes that the table at a dotted path may be of; none where there is no such table."""
    roots = {"model": pair.model_spec, "guide": pair.guide_spec, "data": data_spec(pair)}
    specs: list[type[BaseModel]] = [Recipe]
    for part in path:
        if specs == [Recipe] and part in roots:
            specs = [roots[part]]
            continue
        fields = [spec.model_fields[part] for spec in specs if part in spec.model_fields]
        specs = [found for field in fields for found in models_in(field.annotation)]
    return specs


def _drop_of_other_kinds(table: dict[str, Any], before: Any, specs: list[type[BaseModel]]) -> None:
    """What a table becomes when its kind is set anew: only values that were chosen, of keys that mean the same, stay."""
    fields = {spec.model_fields["kind"].default: spec.model_fields for spec in specs if "kind" in spec.model_fields}
    if table["kind"] not in fields:
        return
    old, new = fields.get(before, {}), fields[table["kind"]]
    for key in {key for known in fields.values() for key in known} - {"kind"}:
        same = key in new and (key not in old or old[key].annotation == new[key].annotation)
        if not same or (key in old and table.get(key) == _plain(old[key].default)):
            table.pop(key, None)


def _plain(default: Any) -> Any:
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else default


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return float(text) if _BARE_POINT.fullmatch(text) else text


def _pruned(tables: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _pruned(value) if isinstance(value, dict) else value for key, value in tables.items() if value is not None
    }


def _toml(tables: Mapping[str, Any], prefix: str = "") -> str:
    """TOML of nested tables of scalars and lists: values first, then sub-tables."""
    lines = [f"{key} = {_inline(value)}" for key, value in tables.items() if not isinstance(value, Mapping)]
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            lines += ["", f"[{prefix}{key}]", _toml(value, f"{prefix}{key}.")]
    return "\n".join(lines).strip("\n") + ("" if prefix else "\n")


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return repr(value)
