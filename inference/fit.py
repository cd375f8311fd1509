"""`fit`: one loop for both engines. What it needs to go on is State and `Position`; what a person sees is Info."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ..engines import load as load_engine
from ..engines.memory import keep_freed_memory
from ..engines.protocol import Control, Info, Program, State
from ..engines.seeds import derive
from ..guides import Pair
from ..models.errors import BadInput, FailedRun, Interrupted
from .accounting import tokens_of
from .aggressive import GUIDE, MODEL, Aggressive, InnerLoop, refuse_one_side
from .checkpoint import ALL_DONE, Position, kept, refuse_empirical, refuse_other_settings, restore, save
from .consistency import Views, is_binary
from .datasets import Dataset, TextData
from .evaluate import validate_program
from .files import Metrics, read_arrays, write, write_arrays
from .first_weights import first_weights
from .interruption import stop_requested
from .particles import refuse_large
from .progress import Display, display
from .recipe import Recipe
from .resolve import resolve
from .run import EVALUATION_ROWS, Run, dataset_of, program_of

LOG_EVERY = 50
_GRADIENT = "gradient_norm/"


def fit(
    recipe: str | Path | Recipe | Pair,
    *settings: str,
    out: str | Path | None = None,
    engine: str | None = None,
    device: str = "cpu",
    seed: int | None = None,
    resume: bool = False,
    data: Any = None,
    progress: bool | None = None,
) -> Run:
    """Fits a recipe and returns its run.

    Args:
        recipe: a name in `recipes/`, a TOML file, `file.py:NAME`, a `Recipe`, or a `Pair`.
        settings: dotted overrides, `"fit.max_steps=30"`.
        out: the run folder; by default `runs/NAME-ENGINE-SEED`.
        resume: go on with the run in `out`; only `fit.epochs` and `fit.max_steps` may have changed.
        data: arrays for a pair whose data are arrays, datum axis first: a dict, or the path of an .npz.
        progress: a live display on standard error; None: where that is a terminal, else a line an epoch; False: nothing.

    Raises:
        BadInput: anything wrong with recipe, data or folder. FailedRun: a value that is not finite (names the site), a
        full disk. Interrupted: Ctrl-C, after saving.
    """
    keep_freed_memory()
    chosen, pair, name = resolve(recipe, settings, engine=engine, seed=seed, data=data)
    refuse_empirical(chosen)
    load_engine(chosen.engine)
    folder = Path(out) if out is not None else Path("runs") / f"{name}-{chosen.engine}-{chosen.fit.seed}"
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file: --out names a folder")
    exists = (folder / "recipe.toml").exists()
    if exists and not resume:
        raise BadInput(f"{folder} already holds a run: go on with --resume, or choose another --out")
    if exists:
        refuse_other_settings(folder, chosen, pair)
    with display(progress) as show:
        show.note(f"reading {getattr(chosen.data, 'corpus', None) or 'the data'}")
        stored = folder / "tokeniser.json"
        dataset = dataset_of(
            chosen, pair, tokeniser=stored if exists and stored.exists() else None, progress=show.count
        )
        return Fitting(chosen, pair, dataset, folder, device, show, exists).run()


class Fitting:
    """One call of `fit`; its dataset may be another than the recipe names."""

    def __init__(
        self, recipe: Recipe, pair: Pair, dataset: Dataset, folder: Path, device: str, show: Display, resume: bool
    ) -> None:
        self.recipe, self.pair, self.dataset, self.folder, self.show = recipe, pair, dataset, folder, show
        fit = recipe.fit
        refuse_large(self)
        self.batches = self._training(fit.seed)
        self.validation = dataset.batches("valid", batch_size=EVALUATION_ROWS)
        self.per_epoch = math.ceil(self.batches.steps_per_epoch / fit.accumulate)
        self.last_step = min(fit.epochs * self.per_epoch, fit.max_steps or math.inf)
        self.program: Program = program_of(recipe, pair, dataset.width, self.batches.data_size, device=device)
        self.state: State = self.program.init(self.batches.batch(0))
        self.position = Position(carried=recipe.divergence.carried())
        self.moved: set[tuple[str, ...]] = set()
        self.inner = self._inner_loop(fit.aggressive) if fit.aggressive else None
        if resume:
            self._resume()
        else:
            self._start()
        self.run_object = Run(folder, recipe, pair, device=device, dataset=dataset)

    def _training(self, seed: int) -> Any:
        fit = self.recipe.fit
        found = self.dataset.batches(
            "train", batch_size=fit.batch_size, seed=seed, shuffle=True, word_keep=1.0 - fit.word_dropout
        )
        if fit.consistency is None:
            return found
        return Views(
            fit.consistency, found, seed, is_binary(self.dataset, getattr(self.recipe.model, "likelihood", None))
        )

    def _inner_loop(self, spec: Aggressive) -> InnerLoop:
        fit = self.recipe.fit
        refuse_one_side(self.program, self.state, self.pair.name)
        validate_program(self.program, self.state, [self.validation.batch(0)], fit.seed, None, 1, True)
        batches = self._training(derive(fit.seed, "inner"))
        return InnerLoop(spec, self.program, batches, fit.accumulate, self._finite)

    def run(self) -> Run:
        self.show.start(self.recipe, self.batches, int(self.last_step), self.position.step, self.folder)
        if not self.position.finished:
            accumulate = self.recipe.fit.accumulate
            stream = self.batches.stream(self.position.step * accumulate, int(self.last_step) * accumulate)
            with closing(stream), stop_requested() as stop:
                self._loop(stream, stop)
        self.show.end(self.position.finished, self.folder)
        return self.run_object

    def _loop(self, stream: Iterator[Any], stop: list[int]) -> None:
        position = self.position
        saved = started = time.monotonic()
        before, pending = position.seconds, None
        accumulate = self.recipe.fit.accumulate
        while position.step < self.last_step and not position.finished:
            control = self.control(position.step)
            batches = [next(stream) for _ in range(accumulate)]
            inner: dict[str, Any] = {}
            if self.inner and position.lagging:
                self.state, taken = self.inner.run(self.state, control, position.inner)
                inner, position.inner = {"inner_steps": taken - position.inner}, taken
                control = control._replace(sides=MODEL)
                self.moved.add(GUIDE)
            self.moved.add(control.sides)
            self.state, info = self.program.step(self.state, batches, control)
            info |= inner
            if pending:
                self._account(*pending)
            pending = (control, info, sum(map(tokens_of, batches)))
            position.step += 1
            position.seconds = before + time.monotonic() - started
            at_epoch = position.step % self.per_epoch == 0 or position.step == self.last_step
            due = time.monotonic() - saved > self.recipe.fit.checkpoint_seconds
            if at_epoch or due or stop or position.carried or position.step % LOG_EVERY == 0:
                self._account(*pending)
                pending = None
                if at_epoch or position.step % LOG_EVERY == 0:
                    self._log(control)
            if at_epoch:
                self._validate()
            if position.step >= self.last_step and not position.finished:
                position.finished = ALL_DONE
            if at_epoch or due or stop:
                self._save()
                saved = time.monotonic()
            if stop and not position.finished:
                raise Interrupted(f"interrupted at step {position.step}; go on with --resume --out {self.folder}")

    def control(self, step: int) -> Control:
        """Schedules are pure functions of the step; the plateau's factor and what the divergence carries come on top."""
        fit = self.recipe.fit
        sides = {"model": fit.optimiser, "guide": fit.guide_optimiser or fit.optimiser}
        rates = {side: o.learning_rate * o.schedule.at(step) * self.position.rate for side, o in sides.items()}
        weight, carried = self.recipe.divergence.weight.at(step), self.position.carried
        return Control(step, {"weight": weight, **carried} if carried else weight, rates)

    def _account(self, control: Control, info: Info, tokens: int) -> None:
        """Adds one step to the averages of the next line and to what is carried."""
        values, window = self._finite(control, info), defaultdict(float, self.position.window)
        for key, value in (values | {"steps": 1.0, "tokens": float(tokens)}).items():
            window[key] += value
        self.position.window = dict(window)
        self.position.carried = self.recipe.divergence.adapted(self.position.carried, values)
        self.show.step(self.position.step)

    def _finite(self, control: Control, info: Info) -> dict[str, float]:
        """The values of a step; refuses to go on from one that is not finite."""
        values = {key: float(value) for key, value in info.items() if not key.startswith(_GRADIENT)}
        broken = [key for key, value in values.items() if not math.isfinite(value)]
        if broken == ["gradient_norm"]:
            broken += [key for key, value in info.items() if key.startswith(_GRADIENT) and not math.isfinite(value)]
        if broken:
            raise FailedRun(self._blame(control.step, broken))
        return values

    def _blame(self, step: int, broken: list[str]) -> str:
        named = sorted((key for key in broken if "/" in key), key=lambda key: not key.startswith("kl/"))
        term, _, site = (named or broken)[0].partition("/")
        what = f"the {term.replace('_', ' ').replace('kl', 'KL')}"
        if named and named[0].startswith(_GRADIENT):
            shown = ", ".join(repr(key.removeprefix(_GRADIENT)) for key in named[:3])
            what = f"the gradient of {shown}{f' and {len(named) - 3} more' if named[3:] else ''}"
        elif site:
            what += f" of site {site!r}"
        return f"step {step}: {what} is not finite; {kept(self.folder)}. A lower learning rate, or a tighter clip, is the usual cure"

    def _log(self, control: Control) -> None:
        window, position = self.position.window, self.position
        rows = window.pop("rows")
        steps = window.pop("steps")
        line: dict[str, Any] = {
            "kind": "train",
            "step": position.step,
            "epoch": position.step / self.per_epoch,
            "objective": window.pop("objective") / rows,
            "gradient_norm": window.pop("gradient_norm") / steps,
            "weight": self.recipe.divergence.weight.at(control.step),
            **position.carried,
            "learning_rate": control.learning_rate["model"],
            "tokens": window.pop("tokens"),
            "seconds": round(position.seconds, 3),
        }
        if "inner_steps" in window:
            line["inner_steps"] = window.pop("inner_steps")
        sites = {key: value / rows for key, value in window.items()}
        line["reconstruction"] = -sum(value for key, value in sites.items() if key.startswith("log_likelihood/"))
        line["kl"] = sum((value for key, value in sites.items() if key.startswith("kl/")), 0.0)
        line["elbo"] = -line["reconstruction"] - line["kl"] if self.recipe.charge != "penalty" else None
        self.metrics.append(line | sites)
        position.window = {}
        self.show.metrics(line)

    def _validate(self) -> None:
        fit, position = self.recipe.fit, self.position
        divergence = self.recipe.divergence
        final = divergence.weight.at(math.inf)
        found = validate_program(
            self.program,
            self.state,
            self.validation,
            fit.seed,
            lambda terms: divergence.reported(terms, final),
            divergence.particles,
            self.inner is not None,
            self.recipe.charge,
        )
        epoch = math.ceil(position.step / self.per_epoch)
        line = {"kind": "valid", "step": position.step, "epoch": epoch, "seconds": round(position.seconds, 3), **found}
        if not math.isfinite(found["objective"]):
            raise FailedRun(
                f"epoch {epoch}: the validation objective is not finite; the weights before are kept in {self.folder}"
            )
        better = found["objective"] < position.best
        if better:
            position.best, position.best_epoch, position.since_best = found["objective"], epoch, 0
        else:
            position.since_best += 1
        if better or fit.select == "last":
            self._save_weights()
        self.metrics.append(line | {"best": better, "compilations": self.program.compilations})
        self.show.epoch(line, better)
        self._adapt(epoch)
        if self.inner:
            position.lagging = position.lagging and found["mi"] >= position.information
            position.information = found["mi"]
        shapes, moved = len(self.batches.shapes), len(self.moved)
        if self.program.compilations > shapes * moved:
            raise FailedRun(
                f"{self.program.compilations} compilations for {shapes} shapes of batches and {moved} choices of sides: "
                "this is a defect of guidebook"
            )

    def _adapt(self, epoch: int) -> None:
        """Early stopping, or a lower learning rate from the best weights on."""
        fit, position = self.recipe.fit, self.position
        if fit.early_stopping and position.since_best >= fit.early_stopping:
            position.finished = f"no better validation objective for {fit.early_stopping} epochs"
        plateau = fit.plateau
        if plateau and position.since_best >= plateau.patience and epoch >= plateau.first_epoch:
            position.rate *= plateau.factor
            position.decays += 1
            position.since_best = 0
            best = read_arrays(self.folder / "weights.safetensors")[0]
            self.state = self.program.load_weights(self.state, best)
            if position.decays >= plateau.decays:
                position.finished = f"the learning rate was lowered {plateau.decays} times"

    def _start(self) -> None:
        weights = first_weights(self.program.weights(self.state), self.recipe, self.pair, self.dataset)
        self.state = self.program.load_weights(self.state, weights)
        self._write_tokeniser()
        self.metrics = Metrics(self.folder / "metrics.jsonl", keep_until=-1)
        self._save_weights()
        self._save()
        self._write_recipe()  # last: a folder with a recipe is a run that can go on

    def _resume(self) -> None:
        self.state, self.position = restore(self.folder, self.program, self.state, self.dataset.fingerprint)
        if self.position.finished == ALL_DONE and self.position.step < self.last_step:
            self.position.finished = ""
        if not self.position.finished and self.position.step >= self.last_step:
            raise BadInput(
                f"{self.folder} is at step {self.position.step} already: more than {self.last_step} steps would be right"
            )
        self._write_tokeniser()
        self._write_recipe()
        self.metrics = Metrics(self.folder / "metrics.jsonl", keep_until=self.position.step)

    def _write_recipe(self) -> None:
        write(self.folder / "recipe.toml", self.recipe.to_toml().encode())

    def _write_tokeniser(self) -> None:
        if isinstance(self.dataset, TextData):
            write(self.folder / "tokeniser.json", self.dataset.tokeniser.to_json().encode())

    def _save(self) -> None:
        save(self.folder, self.program, self.state, self.position, self.dataset.fingerprint)

    def _save_weights(self) -> None:
        size, fingerprint = self.batches.data_size, self.dataset.fingerprint
        about = {"step": self.position.step, "data_size": size, "fingerprint": fingerprint}
        write_arrays(self.folder / "weights.safetensors", self.program.weights(self.state), about)
