"""Recipes: TOML one to one, dotted settings, and the sentence that says what is wrong and what would be right."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidebook.guides import PAIRS, Pair
from guidebook.inference.divergences import IWAE, FDivergence, Renyi
from guidebook.inference.recipe import RECIPES, differences, override, parse, read
from guidebook.inference.resolve import pair_in_file, resolve
from guidebook.models.errors import BadInput

NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
QUICKSTART = parse(read("quickstart")[0])

rates = st.floats(1e-8, 1e3)
schedules = st.one_of(
    st.builds(lambda v: f"{v!r}", st.floats(0, 5)),
    st.builds(lambda n, w: f'{{kind="linear", steps={n}, wait={w}}}', st.integers(1, 9999), st.integers(0, 99)),
    st.builds(lambda n, c: f'{{kind="cyclical", steps={n}, cycles={c}}}', st.integers(1, 9999), st.integers(1, 9)),
    st.builds(lambda m: f'{{kind="logistic", midpoint={m}}}', st.integers(1, 9999)),
)
settings = st.lists(
    st.one_of(
        st.builds(lambda n: f"model.prior.dim={n}", st.integers(1, 512)),
        st.builds(lambda k: f"model.decoder.kind={k}", st.sampled_from(["lstm", "gru"])),
        st.builds(lambda k: f'guide.encoder={{kind="{k}"}}', st.sampled_from(["lstm", "gru"])),
        st.builds(lambda s: f"divergence.weight={s}", schedules),
        st.builds(lambda n: f'divergence.free_bits={{nats={n!r}, per="sentence"}}', st.floats(0.1, 50)),
        st.builds(lambda r: f"fit.optimiser.learning_rate={r!r}", rates),
        st.builds(lambda s: f"fit.optimiser.schedule={s}", schedules),
        st.builds(lambda k: f"fit.guide_optimiser.kind={k}", st.sampled_from(["adam", "adamw", "sgd"])),
        st.just("fit.optimiser.clip=inf"),
        st.just("fit.plateau={}"),
        st.builds(lambda n: f"fit.max_steps={n}", st.integers(1, 10**9)),
        st.builds(
            lambda text: f"data.corpus={json.dumps(text)}",  # bare, "false" would be no word
            st.text(st.characters(min_codepoint=65, max_codepoint=122), min_size=5),
        ),
        st.sampled_from(['data.tokeniser={kind="bpe", size=300}', "data.tokeniser.kind=word_piece", "data.buckets=3"]),
    ),
    max_size=6,
)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_reads_and_survives_toml(name):
    recipe = parse(read(name)[0])
    again = parse(tomllib.loads(recipe.to_toml()))
    assert again == recipe
    assert differences(again, recipe) == {}
    assert recipe.to_toml() == again.to_toml()


@given(settings)
def test_any_settings_survive_toml(chosen):
    recipe = override(QUICKSTART, chosen)
    assert parse(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize(
    ("short", "spec"),
    [
        ("iwae", IWAE()),
        ("iwae:4", IWAE(particles=4)),
        ("renyi:0.5", Renyi(alpha=0.5)),
        ("f_divergence:hellinger", FDivergence(f="hellinger")),
    ],
)
def test_the_short_form_of_a_divergence(short, spec):
    assert override(QUICKSTART, [f"divergence={short}"]).divergence == spec
    assert parse({"divergence": short}).divergence == spec


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_string_survives_toml(text):
    data = QUICKSTART.data.model_copy(update={"corpus": text})
    recipe = QUICKSTART.model_copy(update={"data": data})
    assert tomllib.loads(recipe.to_toml())["data"]["corpus"] == text


def test_every_pair_has_a_recipe_of_defaults():
    for name in PAIRS:
        assert parse({"pair": name}).pair == name


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("fitt.epochs=3", r"unknown key 'fitt' \(did you mean 'fit'\?\)"),
        ("fit.epoch=3", r"unknown key 'fit.epoch' \(did you mean 'epochs'\?\)"),
        ("model.decoder.embeding=3", r"'model.decoder.embeding' \(did you mean 'embedding'\?\)"),
        ("divergence.weight.stepz=3", r"'divergence.weight.stepz' \(did you mean 'steps'\?\)"),
        ("fit.guide_optimiser.learn_rate=3", r"'fit.guide_optimiser.learn_rate' \(did you mean 'learning_rate'\?\)"),
        (
            "model.decoder.kind=lstn",
            r"model.decoder.kind = 'lstn' is unknown \(did you mean 'lstm'\?\); known: lstm, gru",
        ),
        ("divergence.kind=kll", r"did you mean 'kl'\?"),
        ("data.tokeniser=bpe", r"'bpe' is wrong: a table would be right, data.tokeniser = \{kind = \"bpe\"\}$"),
        ("divergence=iwea:4", r"divergence.kind = 'iwea' is unknown \(did you mean 'iwae'\?\)"),
        ("divergence=iwae:0.5", r"divergence.particles = 0.5 is wrong: .*integer"),
        ("fit.consistency=1.0", r"a table would be right, fit.consistency = \{KEY = VALUE\}$"),
        ("divergence.weight.kind=linnear", r"did you mean 'linear'\?"),
        ("data.tokeniser.kind=wordz", r"did you mean 'words'\?"),
        ("fit.optimiser.kind=adamm", r"did you mean 'adam'\?"),
        ("engine=pyrro", r"engine = 'pyrro' is unknown \(did you mean 'pyro'\?\)"),
        ("pair=sentence_vea", r"no pair 'sentence_vea' \(did you mean 'sentence_vae'\?\)"),
        ("fit.epochs=three", r"fit.epochs = 'three' is wrong: .*integer"),
        ("fit.epochs=true", r"fit.epochs = True is wrong: .*integer"),
        ('fit.epochs="3"', r"fit.epochs = '3' is wrong: .*integer"),
        ("fit.optimiser.learning_rate=true", r"learning_rate = True is wrong: .*number"),
        ('fit.optimiser.betas=["0.9", 0.9]', r"fit.optimiser.betas.0 = '0.9' is wrong: .*number"),
        ('divergence.weight="0.5"', r"divergence.weight = '0.5' is wrong"),
        ("data.buckets=true", r"data.buckets = True is wrong: .*integer"),
        ("data.lowercase=1", r"data.lowercase = 1 is wrong: .*boolean"),
        ("fit.epochs=0", r"fit.epochs = 0 is wrong: .*greater than 0"),
        ("model.prior.dim=2.5", r"model.prior.dim = 2.5 is wrong: .*integer"),
        ("model=3", r"model = 3 is wrong"),
        ("divergence.weight=soon", r"divergence.weight = 'soon' is wrong"),
        ("divergence.weight=inf", r"divergence.weight.*finite"),
        ("fit.optimiser.learning_rate=-1e-3", r"fit.optimiser.learning_rate = -0.001 is wrong: .*greater than 0"),
        ("fit.optimiser.learning_rate=nan", r"fit.optimiser.learning_rate = nan is wrong"),
        ("fit.optimiser.learning_rate=inf", r"fit.optimiser.learning_rate = inf is wrong"),
        ("fit.optimiser.betas=[0.9, 1.0]", r"fit.optimiser.betas.1 = 1.0 is wrong: .*less than 1"),
        ("fit.word_dropout=1.5", r"fit.word_dropout = 1.5 is wrong"),
        ("model.decoder.tie_embeddings=true", r"tie_embeddings needs embedding = hidden"),
        ("fit.epochs.more=3", r"'epochs' is no table, so it has no 'more'"),
        ("data.tokeniser={size=300}", r"data.tokeniser lacks its kind"),
        ("fit.optimiser.schedule={kind='linear'}", r"fit.optimiser.schedule.steps is missing"),
        ("fit.epochs", r"is no setting: write key=value"),
        ("=3", r"is no setting: write key=value"),
        ("data.valid=x.txt", r"data: .*valid and test go together"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(setting, said):
    with pytest.raises(BadInput) as error:
        override(QUICKSTART, [setting])
    assert re.search(said, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["fit.plateau={}", "fit.early_stopping=3"], "leave fit.early_stopping out"),
        (["fit.plateau={}", "fit.select=last"], 'needs fit.select = "best"'),
    ],
)
def test_rules_that_stop_must_agree(rules, said):
    with pytest.raises(BadInput, match=said):
        override(QUICKSTART, rules)


def test_dotted_settings_reach_into_tables_and_make_those_that_are_missing():
    recipe = override(
        QUICKSTART,
        ["model.prior.dim=5", "fit.plateau.patience=4", "fit.guide_optimiser.learning_rate=0.5", "data.corpus=a b"],
    )
    assert (recipe.model.prior.dim, recipe.fit.plateau.patience) == (5, 4)
    assert recipe.fit.guide_optimiser.learning_rate == 0.5
    assert recipe.data.corpus == "a b"
    assert recipe.fit.batch_size == QUICKSTART.fit.batch_size


@pytest.mark.parametrize(("written", "meant"), [("1", 1.0), ("1e-3", 1e-3), (".5", 0.5), ("5.", 5.0), ("1_0.0", 10.0)])
def test_a_number_is_written_as_one_likes(written, meant):
    rate = override(QUICKSTART, [f"fit.optimiser.learning_rate={written}"]).fit.optimiser.learning_rate
    assert type(rate) is float
    assert rate == meant


def test_a_new_kind_keeps_the_keys_it_knows_and_drops_those_of_the_old():
    recipe = override(
        QUICKSTART, ["model.decoder.kind=gru", "divergence.weight.kind=cyclical", "divergence.weight.cycles=3"]
    )
    assert (recipe.model.decoder.kind, recipe.model.decoder.hidden) == ("gru", QUICKSTART.model.decoder.hidden)
    assert (recipe.divergence.weight.kind, recipe.divergence.weight.steps) == (
        "cyclical",
        QUICKSTART.divergence.weight.steps,
    )
    assert override(QUICKSTART, ["divergence.weight.kind=constant"]).divergence.weight.value == 1.0
    assert override(QUICKSTART, ["data.tokeniser.size=300", "data.tokeniser.kind=bpe"]).data.tokeniser.size == 300
    scheduled = override(QUICKSTART, ["fit.optimiser.schedule.kind=linear", "fit.optimiser.schedule.steps=7"])
    assert scheduled.fit.optimiser.schedule.steps == 7


def test_a_typing_mistake_survives_a_new_kind_and_is_named():
    with pytest.raises(BadInput, match=r"divergence.weight.cyclez.*did you mean 'cycles'"):
        override(QUICKSTART, ["divergence.weight.cyclez=3", "divergence.weight.kind=cyclical"])


def test_differences_name_dotted_keys():
    other = override(QUICKSTART, ["fit.max_steps=7", "model.decoder.hidden=8", "divergence.weight=0.5"])
    found = differences(QUICKSTART, other)
    assert found["fit.max_steps"] == (None, 7)
    assert found["model.decoder.hidden"] == (QUICKSTART.model.decoder.hidden, 8)
    assert found["divergence.weight.kind"] == ("linear", "constant")
    assert "model.decoder.embedding" not in found


def test_recipes_by_name_and_by_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(QUICKSTART.to_toml(), encoding="utf-8")
    assert resolve("quickstart")[0] == resolve(path)[0] == resolve(str(path))[0] == QUICKSTART
    assert [resolve(source)[2] for source in ("quickstart", path)] == ["quickstart", "mine"]
    assert resolve("quickstart", engine="numpyro", seed=3)[0].fit.seed == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"pair = ", "cannot be read as a recipe in TOML"),
        (b"\xff\xfe", "cannot be read as a recipe in TOML"),
        (None, "no recipe file"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, said):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=said):
        resolve(path)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(BadInput, match=r"no recipe 'quikstart' \(did you mean 'quickstart'\?\)"):
        resolve("quikstart")


PAIR_FILE = """
from guidebook.guides import Pair

def model(batch, data_size):
    pass

MINE = Pair(model=model, name="mine", engine="numpyro", data={"x": [1.0, 2.0]})
"""


def test_a_pair_in_a_file(tmp_path):
    path = tmp_path / "my_pair.py"
    path.write_text(PAIR_FILE, encoding="utf-8")
    recipe, pair, name = resolve(f"{path}:MINE", ["fit.epochs=3"])
    assert (recipe.engine, recipe.pair, recipe.fit.epochs, name) == ("numpyro", "mine", 3, "mine")
    assert pair.name == "mine"
    assert parse(tomllib.loads(recipe.to_toml()), pair=pair) == recipe
    with pytest.raises(BadInput, match=r"no Pair called 'MINES' \(did you mean 'MINE'\?\)"):
        pair_in_file(f"{path}:MINES")
    with pytest.raises(BadInput, match="written in numpyro; it has no other engine"):
        resolve(f"{path}:MINE", engine="pyro")
    with pytest.raises(BadInput, match=r"data.corpus = 'x' is unknown; known: mnist"):
        resolve(f"{path}:MINE", ["data.corpus=x"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file"),
        ("import a_library_nobody_has", "needs a_library_nobody_has, which is not installed"),
        ("1 / 0", "fails when it is run: ZeroDivisionError"),
        ("def f(:", "fails when it is run: SyntaxError"),
        ("", "has no Pair called 'PAIR'; it has none"),
    ],
)
def test_a_file_without_a_pair(tmp_path, content, said):
    path = tmp_path / "my_pair.py"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=said):
        resolve(f"{path}:PAIR")


def test_arrays_go_to_pairs_of_arrays_only(tmp_path):
    pair = Pair(model=lambda batch, size: None, engine="pyro")
    assert resolve(pair, data={"x": [1.0]})[1].data == {"x": [1.0]}
    odd = tmp_path / 'a "b\\c.npz'
    assert resolve(pair, data=odd)[0].data.file == str(odd)
    with pytest.raises(BadInput, match="takes sentences, not arrays"):
        resolve("quickstart", data={"x": [1.0]})
    with pytest.raises(BadInput, match=r"unknown key 'data.file'"):
        resolve("quickstart", data=tmp_path / "x.npz")
