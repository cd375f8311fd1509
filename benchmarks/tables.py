"""Writes the tables of README and docs from the files in benchmarks/results.

    python benchmarks/tables.py            renews every table
    python benchmarks/tables.py --check    exit status 1 where a table does not show what the results hold

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`: `quality` and `sequences` (from
RECIPE.ENGINE.SEED.json), `bottlenecks` (from bottleneck.CORPUS.NAME.SEED.json), `speed` (from speed.DEVICE.json: `{"device": …, "measurements": [{"name", "ours_ms", "hand_ms",
…}]}`), what is first asked of each, `measured` and `faster`, or `compatibility` (from the specs).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)
NONE = "–"

QUALITY = {
    "elbo": "ELBO",
    "iw_nll": "IW-NLL",
    "perplexity": "perplexity",
    "kl": "KL",
    "mi": "MI",
    "active_units": "active units",
}
STEPS = {"elbo": "ELBO", "iw": "IWAE", "filtered": "FIVO"}
RUN = ("published", "gate", "device", "epochs", "minutes")
LOOPS = ("ours", "ours_bfloat16", "hand", "stock", "plain", "floor")
RATIOS = {
    "ours / hand": ("ours", "hand"),
    "stock / ours": ("stock", "ours"),
    "ours / plain": ("ours", "plain"),
    "ours / floor": ("ours", "floor"),
    "bfloat16 / floor": ("ours_bfloat16", "floor"),
}


def read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{path.relative_to(ROOT)} is not JSON: {error}") from error


def speed_results() -> list[dict[str, Any]]:
    return [read(path) for path in sorted(RESULTS.glob("speed.*.json"))]


def quality_results() -> list[dict[str, Any]]:
    others = ("speed.", "bottleneck.")
    return [read(path) for path in sorted(RESULTS.glob("*.json")) if not path.name.startswith(others)]


def of_sequences(result: Mapping[str, Any]) -> bool:
    return "filtered" in result["metrics"]


def number(value: Any) -> str:
    """Three or four digits that matter; "–" where there is no number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return NONE
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def quality() -> str:
    results = [result for result in quality_results() if not of_sequences(result)]
    if not results:
        return "_Not measured yet._\n"
    columns = ["recipe", "engine", "seed", *QUALITY.values(), *RUN]
    return table(columns, map(quality_row, results))


def sequences() -> str:
    """Total-step averages, nats per step."""
    results = [result for result in quality_results() if of_sequences(result)]
    if not results:
        return "_Not measured yet._\n"
    columns = ["recipe", "engine", "seed", *STEPS.values(), "particles", "KL", *RUN]
    return table(columns, map(sequences_row, results))


def sequences_row(result: Mapping[str, Any]) -> list[str]:
    metrics = result["metrics"]
    return [
        f"`{result['recipe']}`",
        result["engine"],
        str(result["seed"]),
        *(f"{metrics[key]['total_step']:.3f}" for key in STEPS),
        number(metrics["particles"]),
        number(metrics["kl"]),
        *run_cells(result),
    ]


BOTTLENECK = {
    "retained": "vectors kept",
    "retained_with_prior": "with the prior's",
    "bleu": "BLEU",
    "exact": "exact",
    "kl": "KL",
    "iw_nll": "IW-NLL",
    "forward_perplexity": "forward",
    "real_perplexity": "real",
    "reverse_perplexity": "reverse",
    "distinct": "distinct",
    "middle": "middle",
    "middle_novel": "new",
}


def bottlenecks() -> str:
    """The models of `benchmarks/bottlenecks.py`, of each corpus by how well they reconstruct."""
    results = [read(path) for path in sorted(RESULTS.glob("bottleneck.*.json"))]
    if not results:
        return "_Not measured yet._\n"
    results.sort(key=lambda result: (result["corpus"], -result["row"]["bleu"]))
    where = f"{results[0]['device']}, minutes of training: {min_max([r['seconds'] / 60 for r in results])}.\n\n"
    return where + table(["corpus", "model", *BOTTLENECK.values()], map(bottleneck_row, results))


def min_max(values: Sequence[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"


def bottleneck_row(result: Mapping[str, Any]) -> list[str]:
    row = result["row"]
    middle = " / ".join(number(value) for value in row["middle_bleu"])
    cells = (middle if key == "middle" else number(row.get(key)) for key in BOTTLENECK)
    return [result["corpus"], f"`{result['name']}`", *cells]


def run_cells(result: Mapping[str, Any]) -> list[str]:
    """The cells of `RUN`."""
    seconds = result.get("seconds")
    return [
        published(result.get("published")),
        gate(result.get("gate")),
        result.get("device", NONE),
        number(result.get("epochs")),
        number(seconds and round(seconds / 60)),
    ]


def quality_row(result: Mapping[str, Any]) -> list[str]:
    metrics = result["metrics"]
    return [
        f"`{result['recipe']}`",
        result["engine"],
        str(result["seed"]),
        *(number(metrics.get(key)) for key in QUALITY),
        *run_cells(result),
    ]


def published(claims: Any) -> str:
    """One or several `{metric, value, source, comparable}`."""
    claims = [claims] if isinstance(claims, Mapping) else claims or []
    return "; ".join(map(claim, claims)) or NONE


def claim(each: Mapping[str, Any]) -> str:
    words = [each.get("metric", ""), number(each.get("value")), f"({each.get('source', 'no source')}"]
    comparable = each.get("comparable")
    return " ".join(filter(None, words)) + (f": {comparable})" if comparable else ")")


def gate(bounds: Any) -> str:
    """One or several `{metric, bound, met}`; `bound` is a number or words such as "<= 102"."""
    bounds = [bounds] if isinstance(bounds, Mapping) else bounds or []
    return "; ".join(verdict(each) for each in bounds) or NONE


def verdict(each: Mapping[str, Any]) -> str:
    bound = each.get("bound")
    words = [each.get("metric", ""), bound if isinstance(bound, str) else number(bound)]
    return " ".join([*filter(None, words), "met" if each.get("met") else "**not met**"])


def speed() -> str:
    results = speed_results()
    return "\n".join(map(speed_table, results)) if results else "_Not measured yet: `make bench`._\n"


def speed_table(result: Mapping[str, Any]) -> str:
    columns = ["measurement", "unit", *(loop.replace("_", " ") for loop in LOOPS), *RATIOS, "target"]
    return f"{result['device']}:\n\n{table(columns, map(speed_row, result['measurements']))}"


def speed_row(entry: Mapping[str, Any]) -> list[str]:
    unit = "MiB" if "ours_mib" in entry else "ms"
    values = {loop: entry.get(f"{loop}_{unit.lower()}") for loop in LOOPS}
    shown = [number(value) for value in values.values()]
    ratios = [ratio(values[above], values[below]) for above, below in RATIOS.values()]
    return [entry["name"].replace("_", " "), unit, *shown, *ratios, gate(entry.get("targets"))]


def ratio(above: Any, below: Any) -> str:
    return number(float(above) / float(below)) if above and below else NONE


def measured() -> str:
    """A recipe and an engine a row, where there is a published figure: the mean over seeds, and the standard deviation."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in quality_results():
        if result.get("published"):
            found.setdefault((result["recipe"], result["engine"]), []).append(result)
    columns = ["recipe", "engine", "seeds", "measure", "ours", "published"]
    return table(columns, (measured_row(*names, results) for names, results in found.items()))


def measured_row(recipe: str, engine: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    what, unit, values = asked(results)
    mean, deviation = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    spread = "" if deviation is None else f" ± {deviation:.2f}"
    value = "; ".join(f"{number(each['value'])} ({each['source'].split(',')[0]})" for each in results[0]["published"])
    return [f"`{recipe}`", engine, str(len(values)), f"{what}, {unit}", number(mean) + spread, value]


def asked(results: Sequence[Mapping[str, Any]]) -> tuple[str, str, list[float]]:
    """What is published of a recipe, its unit, and a value a result; of bounds per step the largest, if none is named."""
    metrics = [result["metrics"] for result in results]
    if of_sequences(results[0]):
        claimed = results[0]["published"][0]["metric"]
        largest = max(STEPS, key=lambda bound: statistics.fmean(one[bound]["total_step"] for one in metrics))
        bound = next((key for key, name in STEPS.items() if claimed.startswith(name)), largest)
        return STEPS[bound], "nats per step", [one[bound]["total_step"] for one in metrics]
    return QUALITY["iw_nll"], "nats", [one["iw_nll"] for one in metrics]


def faster() -> str:
    """Training steps beside the library's own and a loop by hand."""
    columns = ["training step", *(name for name in RATIOS if "floor" not in name and "plain" not in name)]
    parts = []
    for result in speed_results():
        steps = [entry for entry in result["measurements"] if "stock_ms" in entry and "hand_ms" in entry]
        rows = [[line[0], *line[-1 - len(RATIOS) :][: len(columns) - 1]] for line in map(speed_row, steps)]
        parts.append(f"{result['device']}:\n\n{table(columns, rows)}")
    return "\n".join(parts)


def compatibility() -> str:
    """What fits each posterior, from the matrix that `guidebook list --json` prints."""
    from guidebook.inference.compatibility import matrix

    priors: dict[str, set[str]] = {}
    divergences: dict[str, dict[str, set[str]]] = {}
    for row in matrix():
        found = divergences.setdefault(row["posterior"], {})
        if row["fits"]:
            priors.setdefault(row["posterior"], set()).add(row["prior"])
            found.setdefault(row["divergence"], set()).add(row["estimator"] or "")
    rows = [
        [f"`{posterior}`", ", ".join(sorted(priors[posterior])), "; ".join(map(_with_estimators, found.items()))]
        for posterior, found in divergences.items()
    ]
    return table(["posterior", "priors", "divergences (estimators)"], rows)


def _with_estimators(fits: tuple[str, set[str]]) -> str:
    kind, estimators = fits
    named = ", ".join(sorted(filter(None, estimators)))
    return f"{kind} ({named})" if named else kind


TABLES = {
    "measured": measured,
    "faster": faster,
    "quality": quality,
    "sequences": sequences,
    "bottlenecks": bottlenecks,
    "speed": speed,
    "compatibility": compatibility,
}


def renewed(text: str) -> str:
    """The page with each table as the results have it."""
    return MARKED.sub(lambda found: f"{found[1]}{block(found['name'])}{found[3]}", text)


def block(name: str) -> str:
    if name not in TABLES:
        raise SystemExit(f"no table {name!r}: there are {', '.join(TABLES)}")
    return TABLES[name]()


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a table is stale")
    check = parser.parse_args(arguments).check
    stale = [page for page in pages() if renewed(text := page.read_text(encoding="utf-8")) != text]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'stale, run benchmarks/tables.py' if check else 'renewed'}")
        if not check:
            page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(bool(check and stale))


if __name__ == "__main__":
    main()
