"""A run: a folder with everything that a fit left, and the fitted pair realised from it."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Corpus, Data, Tokeniser
from ..engines import load as load_engine
from ..engines.protocol import OptimiserSpec, Program, Settings, State
from ..guides import PAIRS, Pair
from ..models.errors import BadInput
from ..models.nvae import NVAEModel
from ..models.vae import VAEModel
from .datasets import ArrayData, Arrays, Dataset, SequenceData, SequenceSpec, TextData
from .files import read_arrays, read_metrics, write, write_arrays
from .recipe import Optimiser, Recipe, parse, read
from .tables import number

if TYPE_CHECKING:
    import pandas as pd

EVALUATION_ROWS = 64
"""Rows of an evaluation batch: the results do not depend on it."""


class Run:
    """A run folder, lazily read.

    Attributes:
        folder: `recipe.toml`, `tokeniser.json`, `weights.safetensors`, `state.safetensors`, `metrics.jsonl`, ….
        recipe, pair: what was fitted.
        dataset: the data; the corpus is looked up (or rebuilt) from the recipe.
        program, state: the pair realised on its engine with the run's weights.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        pair: Pair,
        *,
        device: str = "cpu",
        dataset: Dataset | None = None,
    ) -> None:
        self.folder, self.recipe, self.pair, self.device = folder, recipe, pair, device
        self.precision = "float32"
        if dataset is not None:
            self.dataset = dataset

    @cached_property
    def dataset(self) -> Any:
        found = dataset_of(self.recipe, self.pair, tokeniser=self.folder / "tokeniser.json")
        if found.fingerprint != self._about.get("fingerprint", found.fingerprint):
            raise BadInput(
                f"the data of {self.folder} have changed since it was fitted, so its splits may hold what it was trained "
                "on: a run is judged with the same data"
            )
        return found

    @property
    def corpus(self) -> Corpus:
        return self.dataset.corpus

    @cached_property
    def tokeniser(self) -> Tokeniser:
        return Tokeniser.load(self.folder / "tokeniser.json")

    @cached_property
    def program(self) -> Program:
        return self.realised(self._data_size)

    def realised(self, data_size: int) -> Program:
        """The pair on the run's engine for so many rows; weights are not loaded yet."""
        width = self.tokeniser.size if self.pair.text else self.dataset.width
        recipe = self.recipe.judged
        if recipe.fit.precision != "float64":  # bfloat16 is a way to train
            recipe = recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"precision": self.precision})})
        return program_of(recipe, self.pair, width, data_size, device=self.device)

    @cached_property
    def state(self) -> State:
        state = self.program.init(self._example)
        broken = [name for name, weight in self.weights.items() if not np.isfinite(weight).all()]
        if broken:
            raise BadInput(
                f"{self.folder / 'weights.safetensors'} is damaged: {broken[0]!r} holds values that are not finite"
            )
        try:
            return self.program.load_weights(state, self.weights)
        except BadInput as error:
            raise BadInput(f"{self.folder / 'weights.safetensors'}: {error}") from None

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Engine-neutral name → array."""
        return read_arrays(self.folder / "weights.safetensors")[0]

    def marginal_likelihood(self, **settings: Any) -> Any:
        """log p(x) from draws by Hamiltonian Monte Carlo: `inference.marginal.marginal_likelihood`."""
        from .marginal import marginal_likelihood

        return marginal_likelihood(self, **settings)

    def judged_in(self, precision: str) -> Run:
        """The same run, judged with vocabulary products of "float32" or "bfloat16" operands."""
        if precision not in ("float32", "bfloat16"):
            raise BadInput(f"a run is judged in float32 or bfloat16, not in {precision!r}")
        other = Run(self.folder, self.recipe, self.pair, device=self.device, dataset=self.__dict__.get("dataset"))
        other.precision = precision
        return other

    def judged_by(self, divergence: Any) -> Run:
        """The same run, realised for another divergence."""
        recipe = self.recipe.model_copy(update={"divergence": divergence})
        other = Run(self.folder, recipe, self.pair, device=self.device, dataset=self.__dict__.get("dataset"))
        other.precision = self.precision
        return other

    def batches(self, split: str) -> Any:
        return self.dataset.batches(split, batch_size=EVALUATION_ROWS)

    def on(self, engine: str) -> Run:
        """The same run on another engine: the weights carry over by name."""
        if engine == self.recipe.engine:
            return self
        if self.pair.engine is not None:
            raise BadInput(f"the pair {self.pair.name!r} is written in {self.pair.engine}; it does not run on {engine}")
        load_engine(engine)
        recipe = self.recipe.model_copy(update={"engine": engine})
        return Run(self.folder, recipe, self.pair, device=self.device, dataset=self.__dict__.get("dataset"))

    def convert(self, engine: str, out: str | Path) -> Run:
        """Writes this run as one of another engine: recipe, weights, tokeniser and history; no optimiser state."""
        other, folder = self.on(engine), Path(out)
        if (folder / "recipe.toml").exists():
            raise BadInput(f"{folder} already holds a run: choose another --out")
        _ = other.state
        for name in ("tokeniser.json", "metrics.jsonl"):
            if (self.folder / name).exists():
                write(folder / name, (self.folder / name).read_bytes())
        write_arrays(folder / "weights.safetensors", self.weights, self._about)
        write(folder / "recipe.toml", other.recipe.to_toml().encode())
        return Run(folder, other.recipe, self.pair, device=self.device)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """`metrics.jsonl` as dictionaries."""
        return read_metrics(self.folder / "metrics.jsonl")

    def history(self, kind: str = "train") -> pd.DataFrame:
        """Metrics as a table indexed by step: kind "train" (averages since the line before) or "valid" (epochs)."""
        import pandas as pd  # here: slow to import, and most commands do without

        rows = [line for line in self.lines if line["kind"] == kind]
        return pd.DataFrame(rows).drop(columns="kind").set_index("step") if rows else pd.DataFrame()

    @property
    def losses(self) -> np.ndarray:
        """The trained objective, nats per datum, averaged between lines of the history."""
        return np.array([line["objective"] for line in self.lines if line["kind"] == "train"])

    def __repr__(self) -> str:
        valid = [line for line in self.lines if line["kind"] == "valid"]
        last = (
            f"epoch {valid[-1]['epoch']}: valid ELBO {number(valid[-1]['elbo'], 2)}, KL {valid[-1]['kl']:.2f}"
            if valid
            else "no epoch yet"
        )
        return f"Run({str(self.folder)!r}, {self.recipe.pair} on {self.recipe.engine}; {last})"

    @property
    def _about(self) -> dict[str, Any]:
        return read_arrays(self.folder / "weights.safetensors", arrays=False)[1]

    @property
    def _data_size(self) -> int:
        size = self._about.get("data_size")
        if not isinstance(size, int):
            raise BadInput(f"{self.folder / 'weights.safetensors'} is damaged: its header lacks data_size")
        return size

    @property
    def _example(self) -> dict[str, np.ndarray]:
        """A batch of the right shapes for the first run of the programs."""
        if not self.pair.text:
            return self.dataset.batches("train", batch_size=self.recipe.fit.batch_size).batch(0)
        tokens = np.array([[1, 4, 2]] * 2, np.int32)
        return {
            "tokens": tokens,
            "inputs": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "lengths": np.array([2, 2], np.int32),
            "weight": np.ones(2, np.float32),
            "index": np.arange(2, dtype=np.int32),
        }


def load(folder: str | Path, *, pair: Pair | None = None, device: str = "cpu", engine: str | None = None) -> Run:
    """The run in `folder`.

    pair: the pair of a native run, whose programs no file of ours can hold. BadInput: no run there, or an incomplete
    or damaged one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"there is no run folder {folder}")
    if not (folder / "recipe.toml").is_file():
        raise BadInput(f"{folder} is no run: recipe.toml is missing")
    read_arrays(folder / "weights.safetensors", arrays=False)
    raw, _ = read(folder / "recipe.toml")
    lost = [table for table in ("pair", "divergence", "data", "fit") if table not in raw]
    if lost:
        raise BadInput(f"{folder / 'recipe.toml'} is truncated: it has no {lost[0]!r}")
    name = str(raw["pair"])
    if pair is None and name not in PAIRS:
        raise BadInput(f"the programs of {folder} are the pair {name!r} in a file of your own: add --pair FILE.py:NAME")
    recipe = parse(raw, pair=pair, origin=str(folder / "recipe.toml"))
    chosen = pair or PAIRS[recipe.pair]
    if chosen.text and not (folder / "tokeniser.json").is_file():
        raise BadInput(f"{folder} is no complete run: tokeniser.json is missing (fit --resume puts it back)")
    load_engine(engine or recipe.engine)
    run = Run(folder, recipe, chosen, device=device)
    return run.on(engine) if engine else run


def dataset_of(recipe: Recipe, pair: Pair, *, tokeniser: Path | None = None, progress: Any = None) -> Dataset:
    """The data of a recipe. tokeniser: a saved one, in place of training one."""
    if isinstance(recipe.data, Data):
        text = TextData(recipe.data, tokeniser=tokeniser, progress=progress)
        if isinstance(recipe.model, NVAEModel):
            splits = (text.corpus.train, text.corpus.valid, text.corpus.test)
            recipe.model.refuse(max(len(split.histogram) for split in splits) - 1)
        return text
    if isinstance(recipe.data, SequenceSpec):
        sequences = SequenceData(recipe.data, pair.data)
        if likelihood := getattr(recipe.model, "likelihood", None):
            for split in sequences.splits.values():
                likelihood.refuse(split.steps)
        return sequences
    assert isinstance(recipe.data, Arrays)
    found = ArrayData(recipe.data, pair.data)
    if isinstance(recipe.model, VAEModel):
        found.splits = {split: recipe.model.checked(arrays) for split, arrays in found.splits.items()}
    return found


def program_of(recipe: Recipe, pair: Pair, width: int, data_size: int, *, device: str = "cpu") -> Program:
    """The pair of a recipe realised on its engine."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise BadInput(f"there is no device {device!r}: cpu, cuda or cuda:1 would be right")
    fit = recipe.fit
    settings = Settings(
        data_size=data_size,
        objective=recipe.divergence.objective(),
        seed=fit.seed,
        device=device,
        dtype="float64" if fit.precision == "float64" else "float32",
        precision="bfloat16" if fit.precision == "bfloat16" else "float32",
        optimisers={"model": _optimiser(fit.optimiser), "guide": _optimiser(fit.guide_optimiser or fit.optimiser)},
        clip=None if np.isinf(fit.optimiser.clip) else fit.optimiser.clip,
        consistency=fit.consistency.weight if fit.consistency else None,
        refinement=fit.refine.refinement() if fit.refine else None,
        truncate=fit.truncate,
    )
    networks = pair.realisable(recipe.model, recipe.guide, width) if pair.engine is None else {}
    return load_engine(recipe.engine).Program(pair, networks, settings)


def _optimiser(spec: Optimiser) -> OptimiserSpec:
    return OptimiserSpec(spec.kind, spec.betas, spec.eps, spec.weight_decay, spec.momentum)
