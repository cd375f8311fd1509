"""What `evaluate` found, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import numpy as np

from .measures import Retained
from .tables import html_table, number, text_table


@dataclass(frozen=True, repr=False)
class SiteEvaluation:
    """One latent site, in nats per datum.

    Attributes:
        kl: E_x KL(q(z | x) ‖ p(z)).
        kl_from: "analytic", or "sampled": log q − log p at the draws; or what stands in its place, a "bound" from above or
            a "penalty", −log p(z) at a point.
        kl_per_dimension: where the KL is analytic and elementwise.
        dimensions: D, where q(z | x) is the same size for every row.
        active_units: dimensions whose posterior mean varies over the data, variance above 0.01.
        family: of q(z | x); None where it hangs on another latent's draw.
    """

    kl: float
    kl_from: str
    kl_per_dimension: list[float] | None
    dimensions: int | None
    active_units: int | None
    family: str | None


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A fitted pair on one split. Definitions: `docs` and the functions of `inference.metrics`.

    All in nats per sentence (per datum when the data are arrays) unless said otherwise.

    Attributes:
        sentences: N. tokens: W, predicted tokens with end marks; None when the data are not sentences.
        elbo: −(reconstruction + kl), unweighted and without free bits; dropout and word dropout off. None of points.
        reconstruction: −E_q log p(x | z), over all `observed` sites. kl: over all latent sites.
        kl_per_dimension: of all sites one after the other; None if a site's KL does not split.
        iw_nll: −log of the importance-weighted bound with `particles` draws; exact where there is no latent,
            None of points and where a latent is shared by all data.
        iw_nll_standard_error: its Monte Carlo error on this split.
        iw_effective_particles: how many particles carry the weight, averaged over the data.
        perplexity: exp(N · iw_nll / W) per `perplexity_unit`, end marks counted; `perplexity_bound` says from
            which bound. perplexity_elbo: the same from the ELBO.
        mi: mutual information of sentence and latent under q; at most mi_ceiling = log N.
        active_units: dimensions whose posterior mean has a variance above 0.01.
        kl_aggregate: KL(q(z) ‖ p(z)) = kl − mi.
        sites: latent site → its part. notes: key → why it is None.
        retained: what a nonparametric bottleneck keeps, `inference.measures.Retained`.
    """

    sentences: int
    tokens: int | None
    elbo: float | None
    reconstruction: float
    kl: float
    kl_per_dimension: list[float] | None
    iw_nll: float | None
    iw_nll_standard_error: float | None
    iw_effective_particles: float | None
    particles: int
    perplexity: float | None
    perplexity_unit: str | None
    perplexity_bound: str | None
    perplexity_elbo: float | None
    mi: float | None
    mi_ceiling: float | None
    active_units: int | None
    kl_aggregate: float | None
    unit: str
    sites: Mapping[str, SiteEvaluation]
    observed: tuple[str, ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    retained: Retained | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """Where the numbers come from: pair, engine, split, seed."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what `about` holds stands first."""
        found = asdict(self)
        return {**found.pop("about"), **found}

    @property
    def dimensions(self) -> int | None:
        """D over all latent sites."""
        sizes = [site.dimensions for site in self.sites.values()]
        return None if None in sizes else sum(sizes)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def rows(self) -> list[tuple[str, str, str]]:
        """What, how much, in which unit: the table for people."""
        unit, analytic = self.unit, ", ".join(f"{name} {site.kl_from}" for name, site in self.sites.items())
        error = "" if self.iw_nll_standard_error is None else f" ± {self.iw_nll_standard_error:.3f}"
        rows = [
            ("ELBO", number(self.elbo), self._why("elbo", unit)),
            ("reconstruction", number(self.reconstruction), f"{unit}, −E log p({', '.join(self.observed)} | z)"),
            ("KL", number(self.kl), f"{unit}" + (f" ({analytic})" if analytic else "")),
            (
                "IW-NLL",
                number(self.iw_nll),
                self._why("iw_nll", f"{unit}{error}, {self.perplexity_bound or self.bound}"),
            ),
        ]
        if self.tokens is not None:
            rows += [
                (
                    "perplexity",
                    number(self.perplexity, 2),
                    self._why("iw_nll", f"per {self.perplexity_unit}, end marks counted"),
                ),
                (
                    "perplexity (ELBO)",
                    number(self.perplexity_elbo, 2),
                    self._why("elbo", f"per {self.perplexity_unit}"),
                ),
            ]
        if self.retained:
            below = {f" of F_{layer}": one for layer, one in enumerate(self.retained.below, 1)}
            for site, kept in {**below, "": self.retained}.items():
                share = f"share of the words'; {number(kept.with_prior)} with the prior component"
                unknown = "under an empirical prior pseudo-counts are known up to a factor"
                rows += [
                    (f"vectors retained{site}", number(kept.vectors), unknown if kept.vectors is None else share),
                    (
                        f"pseudo-counts{site}",
                        number(kept.pseudo_count),
                        f"in all, the prior component's {kept.prior_share:.0%}",
                    ),
                ]
        if self.sites:
            of = f"of {self.dimensions}" if self.dimensions is not None else ""
            most = f"nats, at most {number(self.mi_ceiling)}"
            rows += [
                ("mutual information", number(self.mi), self._why("mi", most)),
                ("KL(q(z) ‖ p(z))", number(self.kl_aggregate), self._why("kl_aggregate", "nats")),
                ("active units", number(self.active_units), self._why("active_units", of)),
            ]
        return rows

    @property
    def bound(self) -> str:
        """How `iw_nll` bounds the negative log-likelihood."""
        return f"importance-weighted, {self.particles} particles" if self.sites else "exact likelihood"

    @property
    def title(self) -> str:
        about = " · ".join(str(self.about[key]) for key in ("pair", "engine", "split") if key in self.about)
        count = f"{self.sentences:,} {'rows' if self.tokens is None else 'sentences'}"
        tokens = "" if self.tokens is None else f", {self.tokens:,} {self.perplexity_unit}s with end marks"
        return f"{about + ': ' if about else ''}{count}{tokens}"

    def _why(self, key: str, otherwise: str) -> str:
        return self.notes.get(key, otherwise)

    def __repr__(self) -> str:
        return f"Evaluation of {self.title}\n{text_table(self.rows())}\n  {self.verdict}"

    def _repr_html_(self) -> str:
        table = html_table(self.rows(), ("", "value", "unit"), numbers=(1,))
        return f"<p><b>{escape(self.title)}</b></p>{table}<p>{escape(self.verdict)}</p>"

    @property
    def verdict(self) -> str:
        """One sentence: is the latent used? KL, MI, active units and KL(q(z) ‖ p(z)) say it only together."""
        if not self.sites:
            return "There is no latent: the likelihood is exact."
        return f"{self._judgement()} ({', '.join(self._evidence())})."

    @property
    def used(self) -> bool | None:
        """Whether the latent says something about the data; None: there is none, or it was not measured."""
        if not self.sites:
            return None
        if self.active_units != 0 and self.elbo is None:
            return None
        if self.kl < 0.1 or self.active_units == 0:
            return False
        return None if self.mi is None else self.mi >= 0.1 * min(self.kl, self.mi_ceiling or self.kl)

    def _judgement(self) -> str:
        if self.used is None and self.elbo is None:
            return "The latent is points; how much they say about the data was not measured"
        if self.kl < 0.1:
            return "The latent is not used: the posterior has collapsed onto the prior"
        if self.active_units == 0:
            return "The latent is not used: the posterior's mean hardly varies with the data"
        if self.used is None:
            return "The posterior differs from the prior; how much it says about the data was not measured"
        if not self.used:
            return "The posterior differs from the prior but says next to nothing about the data"
        used = "The latent is used"
        if self.mi is not None and self.mi > 0.95 * (self.mi_ceiling or np.inf):
            used += "; the mutual information is at its ceiling, so the true one may be larger"
        if self.kl_aggregate is not None and self.kl_aggregate > max(1.0, 0.5 * self.kl):
            used += "; the aggregate posterior is far from the prior, so prior samples will be poorer"
        return used

    def _evidence(self) -> list[str]:
        of = f" of {self.dimensions}" if self.dimensions is not None else ""
        evidence = [f"{'−log p(z)' if self.elbo is None else 'KL'} {self.kl:.2f} nats"]
        if self.mi is not None:
            evidence.append(f"mutual information {self.mi:.2f} of at most {self.mi_ceiling:.2f}")
        if self.active_units is not None:
            evidence.append(f"{self.active_units}{of} units active")
        if self.kl_aggregate is not None:
            evidence.append(f"KL(q(z) ‖ p(z)) {self.kl_aggregate:.2f}")
        return evidence
