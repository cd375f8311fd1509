"""From what a user names to a recipe and its pair."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engines import installed
from ..guides import PAIRS, Pair
from ..models.errors import BadInput
from .mistakes import nearest
from .recipe import Recipe, override, pair_named, parse, read


def resolve(
    recipe: str | Path | Recipe | Pair,
    settings: Iterable[str] = (),
    *,
    engine: str | None = None,
    seed: int | None = None,
    data: Any = None,
) -> tuple[Recipe, Pair, str]:
    """The recipe with all overrides, its pair (with `data`), and a short name for the run folder."""
    pair = recipe if isinstance(recipe, Pair) else None
    raw: Mapping[str, Any] = {}
    origin = name = "recipe"
    if isinstance(recipe, Recipe):
        raw, name = recipe.model_dump(mode="json", exclude_none=True), recipe.pair
    elif isinstance(recipe, Pair):
        name = recipe.name
    elif ".py:" in str(recipe):
        pair = pair_in_file(str(recipe))
        name = pair.name
    else:
        raw, origin = read(recipe)
        name = Path(recipe).stem
    more = list(settings)
    if engine is not None:
        more.append(f"engine={engine}")
    if seed is not None:
        more.append(f"fit.seed={seed}")
    if isinstance(data, (str, Path)):
        more.append(f"data.file={json.dumps(str(data), ensure_ascii=False)}")
    elif data is not None:
        pair = replace(pair or pair_named(str(raw.get("pair", "sentence_vae")), origin), data=data)
        if pair.text:
            raise BadInput(f"the pair {pair.name!r} takes sentences, not arrays: name them with data.corpus=FILE")
    if not raw and pair is not None and pair.engine is None and engine is None:
        raw = {"engine": (installed() or ["pyro"])[0]}
    parsed = parse(raw, pair=pair, origin=origin)
    if more:
        parsed = override(parsed, more, pair=pair)
    return parsed, pair or PAIRS[parsed.pair], name


def pair_in_file(source: str) -> Pair:
    """The `Pair` called NAME in `FILE.py:NAME`. Running the file is what the user asks for here.

    Raises:
        BadInput: no such file or name, or it is no Pair, or the file fails (says where).
    """
    file, _, name = source.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise BadInput(f"there is no file {file} (a pair is named FILE.py:NAME)")
    spec = importlib.util.spec_from_file_location(f"guidebook_pair_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise BadInput(f"{file} needs {error.name or error}, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise BadInput(f"{file} fails when it is run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    found = getattr(module, name, None)
    if not isinstance(found, Pair):
        pairs = [key for key, value in vars(module).items() if isinstance(value, Pair)]
        raise BadInput(f"{file} has no Pair called {name!r}{nearest(name, pairs)}; it has {', '.join(pairs) or 'none'}")
    return found
