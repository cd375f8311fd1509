"""What pydantic found wrong, as one sentence: where, what, and the nearest that would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def sentence(spec: type[BaseModel], error: ValidationError, table: str = "") -> str:
    """The first mistake in `error`, which validating `spec` as the table `table` raised."""
    first = error.errors()[0]
    path, owner = _place(spec, first["loc"])
    path = [table, *path] if table else path
    where, value, context = ".".join(path), first["input"], first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            names = list(owner.model_fields) if owner else []
            return f"unknown key {where!r}{nearest(path[-1], names)}; known: {', '.join(names) or 'none'}"
        case "union_tag_invalid":
            expected = [name.strip("'") for name in context["expected_tags"].split(", ")]
            return f"{where}.kind = {context['tag']!r} is unknown{nearest(context['tag'], expected)}; known: {', '.join(expected)}"
        case "union_tag_not_found":
            return f"{where} lacks its kind, e.g. {where}.kind = ..."
        case "literal_error":
            expected = [name.strip("'") for name in context["expected"].replace(" or ", ", ").split(", ")]
            return f"{where} = {value!r} is unknown{nearest(str(value), expected)}; known: {', '.join(expected)}"
        case "model_type" | "model_attributes_type":
            table = f'kind = "{value}"' if isinstance(value, str) else "KEY = VALUE"
            return f"{where} = {value!r} is wrong: a table would be right, {where} = {{{table}}}"
        case "missing":
            return f"{where} is missing"
        case "value_error":
            return f"{where}: {context['error']}" if where else str(context["error"])
        case _:
            return f"{where} = {value!r} is wrong: {first['msg'][0].lower()}{first['msg'][1:]}"


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest of `names`, or nothing."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _place(spec: type[BaseModel], location: tuple[Any, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """The dotted path a person wrote (pydantic adds the kinds of unions), and the spec that owns its last key."""
    path: list[str] = []
    owners: list[type[BaseModel]] = [spec]
    owner: type[BaseModel] | None = spec
    for part in location:
        tagged = [candidate for candidate in owners if _kind(candidate) == part]
        if tagged and path and (owner is None or part not in owner.model_fields):
            owners, owner = tagged, tagged[0]
            continue
        path.append(str(part))
        field = owner.model_fields.get(str(part)) if owner else None
        if field is not None:
            owners = list(models_in(field.annotation))
            owner, last = (owners[0] if len(owners) == 1 else None), owner
        else:
            last = owner
    return path, last if location else spec


def _kind(spec: type[BaseModel]) -> str | None:
    field = spec.model_fields.get("kind")
    return field.default if field else None


def models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    """The spec classes an annotation admits."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def kinds(annotation: Any) -> dict[str, Any]:
    """Kind → spec class of a role."""
    return {spec.model_fields["kind"].default: spec for spec in models_in(annotation) if "kind" in spec.model_fields}
