"""All that differs between the two languages, in mirrored rooms, loaded by name and lazily."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..models.errors import BadInput

ENGINES = {"pyro": ("torch", "pyro"), "numpyro": ("jax", "numpyro", "equinox", "optax")}


def load(name: str) -> ModuleType:
    """The room of the engine `name`.

    Raises:
        BadInput: no such engine, or its libraries are not installed (names the extra to install).
    """
    if name not in ENGINES:
        raise BadInput(f"there is no engine {name!r}: choose one of {', '.join(ENGINES)}")
    try:
        for library in ENGINES[name]:
            importlib.import_module(library)
    except ImportError as error:
        raise BadInput(
            f"the engine {name!r} needs {error.name or 'a library'}, which is not installed: "
            f"pip install 'guidebook[{name}]'"
        ) from error
    return importlib.import_module(f"{__name__}.{name}")


def installed() -> list[str]:
    """The engines whose libraries can be found here, without importing them."""
    from importlib.util import find_spec

    return [name for name, libraries in ENGINES.items() if all(find_spec(library) for library in libraries)]
