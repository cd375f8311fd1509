"""`report.html`: one page that needs no other file, with what a person wants to know of a run."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from html import escape

from .evaluation import Evaluation
from .generated import Interpolation, Reconstructions, Samples, describe
from .sequence_evaluation import SequenceEvaluation
from .tables import html_table

STYLE = """
body { font: 16px/1.55 system-ui, Roboto, Helvetica, Arial, sans-serif; color: #222; background: #fff;
       max-width: 60rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; font-weight: 650; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
p.about { color: #666; margin: .2rem 0 1.4rem; }
p.verdict { background: #f2f6fa; border-left: 4px solid #0072B2; padding: .8rem 1rem; }
p.verdict.unused { background: #fdf4ee; border-color: #D55E00; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e8e8e8; vertical-align: top;
         font-weight: 400; }
th { color: #666; font-size: .85rem; } td { font-variant-numeric: tabular-nums; }
td.n { color: #888; white-space: nowrap; width: 1%; }
td b { font-weight: 600; color: #0072B2; } td span { color: #999; }
img { max-width: 100%; display: block; margin: .4rem 0 1rem; }
.note { color: #666; font-size: .9rem; }
pre { background: #f7f7f7; padding: .9rem 1.1rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; color: #0072B2; }
"""

CAPTIONS = {
    "training": "Lines: training data, with dropout. Dots: validation data, without.",
    "kl_per_dimension": "Largest first. Blue: active, the mean varies over the data (variance > 0.01).",
    "forecast": "The second half of the first sequence of the split, from 256 particles that were told its first half.",
    "samples": "Drawn from the model.",
    "latent": "Left: one draw for each datum. Right: blue carries information, grey is noise; "
    "where their sum is not 1, q(z) is not the prior.",
}


def page(
    title: str,
    evaluation: Evaluation | SequenceEvaluation,
    pictures: Mapping[str, bytes],
    texts: Sequence[Reconstructions | Interpolation | Samples],
    recipe: str,
    note: str = "",
) -> str:
    """The page. pictures: name → PNG; recipe: its TOML; note: what the numbers are of."""
    parts = [
        f"<h1>{escape(title)}</h1><p class='about'>{escape(evaluation.title)}</p>",
        _verdict(evaluation),
        "<h2>Numbers</h2>" + html_table(evaluation.rows(), ("", "value", "unit"), numbers=(1,)),
        f"<p class='note'>{escape(' '.join([note, *_analytic(evaluation)]))}</p>",
        *(_picture(name, png) for name, png in pictures.items()),
        *(_text(result) for result in texts),
        f"<h2>Recipe</h2><details><summary>recipe.toml</summary><pre>{escape(recipe)}</pre></details>",
    ]
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    head += "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    return f"<!doctype html>\n<html lang='en'><head>{head}</head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _verdict(evaluation: Evaluation | SequenceEvaluation) -> str:
    kind = "verdict" if evaluation.used is not False else "verdict unused"
    return f"<p class='{kind}'>{escape(evaluation.verdict)}</p>"


def _analytic(evaluation: Evaluation | SequenceEvaluation) -> list[str]:
    """Which KLs are exact, and why a number is missing: never left to be guessed."""
    if isinstance(evaluation, SequenceEvaluation):
        return []
    how = {
        "analytic": "analytic",
        "sampled": "log q − log p at the draws, a Monte Carlo estimate",
        "bound": "an upper bound, L_D + L_G",
        "penalty": "−log p(z) at the points, a penalty in its place",
    }
    kls = [f"KL of {name}: {how[site.kl_from]}." for name, site in evaluation.sites.items()]
    return kls + [f"No {key}: {reason}." for key, reason in evaluation.notes.items()]


def _picture(name: str, png: bytes) -> str:
    heading = name.replace("_", " ").replace("kl", "KL")
    heading = heading[0].upper() + heading[1:]
    source = base64.b64encode(png).decode()
    caption = f"<p class='note'>{escape(CAPTIONS[name])}</p>" if name in CAPTIONS else ""
    return f"<h2>{heading}</h2><img alt='{escape(heading)}' src='data:image/png;base64,{source}'>{caption}"


def _text(result: Reconstructions | Interpolation | Samples) -> str:
    if isinstance(result, Reconstructions):
        return _reconstructions(result)
    heading = "Interpolation" if isinstance(result, Interpolation) else "Samples"
    note = f"<p class='note'>{escape(result.title)}.</p>"
    rows = "".join(f"<tr><td class='n'>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in result.rows())
    return f"<h2>{heading}</h2>{note}<table>{rows}</table>"


def _reconstructions(result: Reconstructions) -> str:
    """Each sentence over its reconstruction, the words that came back in colour."""
    rows = "".join(
        f"<tr><td class='n'>{n + 1}</td><td>{escape(seen)}<br>{_marked(seen.split(), back.split())}</td></tr>"
        for n, (seen, back) in enumerate(zip(result.seen, result.reconstructions, strict=True))
    )
    note = (
        f"From {result.source}, {describe(result.strategy)}. BLEU {result.bleu:.1f} "
        f"on these {len(result.sentences)}. In colour: words that came back, in order."
    )
    return f"<h2>Reconstructions</h2><p class='note'>{escape(note)}</p><table>{rows}</table>"


def _marked(seen: list[str], back: list[str]) -> str:
    parts, at = [], 0
    for block in SequenceMatcher(None, seen, back, autojunk=False).get_matching_blocks():
        lost, kept = " ".join(back[at : block.b]), " ".join(back[block.b : block.b + block.size])
        parts += [f"<span>{escape(lost)}</span>"] if lost else []
        parts += [f"<b>{escape(kept)}</b>"] if kept else []
        at = block.b + block.size
    return " ".join(parts) or "<span>(no words)</span>"
