"""With the same weights and the same latents both engines give the same numbers, to 1e-6 in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from guidebook.engines.protocol import OptimiserSpec
from guidebook.guides import PAIRS
from guidebook.inference import (
    CUBO,
    IWAE,
    KL,
    SVGD,
    TVO,
    FDivergence,
    Fisher,
    FreeBits,
    GeometricJensenShannon,
    InfoVAE,
    Renyi,
    ReweightedWakeSleep,
    Stein,
    TargetRate,
)
from guidebook.models import BadInput

pytestmark = pytest.mark.usefixtures("_float64")
SENTENCE_VAE = PAIRS["sentence_vae"]
V, Z, S = 11, 3, 3
RECURRENT = [name for name, pair in PAIRS.items() if pair.text and name != "nvae"]
CLOSE = {"rtol": 1e-6, "atol": 1e-12}
BOTH_SIDES = ("model", "guide")


ATTENDED = {
    "mixture": ({"kind": "dirichlet_process", "places": 2}, {"kind": "dirichlet_process", "gradient": "implicit"}),
    "stratified": ({"kind": "dirichlet_process"}, {"kind": "dirichlet_process", "objective": "stratified"}),
    "paper": ({"kind": "dirichlet_process"}, {"kind": "dirichlet_process", "objective": "paper"}),
    "vectors": ({"kind": "normal_vectors", "share": 0.6}, {"kind": "normal_vectors"}),
    "pooled": ({"kind": "pooled_normal"}, {"kind": "pooled_normal", "pooling": "max"}),
}
"""What a decoder attends to: prior and posterior."""


def small(spec, kind, tied):
    """The pair's own tables, small: every part, a few dimensions. Large weights, so that all of them matter."""
    if kind in ATTENDED:
        prior, posterior = ATTENDED[kind]
        stack = {"hidden": 4, "layers": 1, "heads": 2, "feedforward": 5, "dropout": 0.0}
        parts = {
            "prior": prior | {"dim": Z},
            "decoder": stack | {"tie_embeddings": tied},
            "longest": 8,
            "posterior": posterior,
            "encoder": stack,
        }
        return spec.model_validate({name: part for name, part in parts.items() if name in spec.model_fields})
    recurrent = {"kind": kind, "embedding": 5, "hidden": 5, "initial_scale": 0.6, "embedding_scale": 1.0}
    parts = {
        "prior": {"dim": Z},
        "decoder": recurrent | {"dropout": 0.0, "tie_embeddings": tied},
        "encoder": recurrent | {"embedding": 4, "hidden": 6},
        "posterior": {"initial_scale": 0.8},
    }
    return spec.model_validate({name: part for name, part in parts.items() if name in spec.model_fields})


def networks_of(pair, kind, tied):
    return pair.realisable(small(pair.model_spec, kind, tied), small(pair.guide_spec, kind, tied), V)


@pytest.fixture(
    params=[
        *((pair, kind, tied) for pair in RECURRENT for kind in ("lstm", "gru") for tied in (False, True)),
        *(("nvae", kind, kind != "mixture") for kind in ATTENDED),
    ],
    ids=lambda chosen: "-".join((*chosen[:2], "tied" if chosen[2] else "untied")),
)
def chosen(request):
    name, kind, tied = request.param
    return PAIRS[name], networks_of(PAIRS[name], kind, tied)


@pytest.fixture
def batch(both):
    words = ([4, 5, 6, 7], [8, 4], [], [10, 10, 9])
    return both.sentences(*words, width=6, filler=1, unknown=((0, 2), (3, 1)))


def pair_of_programs(both, pair, networks, batch, particles=1, same=True, **settings):
    """The pair on both engines with the same weights and the same noise in the guide's draws."""
    rng = np.random.default_rng(5)
    shape = (len(batch["weight"]),) if particles == 1 else (particles, len(batch["weight"]))
    event = {"z": (Z,), "F": (2, 8, Z + 1)}
    noise = {site: rng.standard_normal(shape + event[site]) for site in pair.sites if site in event}
    settings = {"data_size": 40, "divergence": KL(particles=particles)} | settings
    found = []
    for engine in both.engines:
        program = both.program(engine, both.replaying(engine, pair, noise), networks, **settings)
        found.append((program, program.init(batch)))
    if same:
        (first, state), (second, other) = found
        found[1] = (second, second.load_weights(other, first.weights(state)))
    return found


def assert_same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], err_msg=name, **(tolerance or CLOSE))


def test_initial_weights_are_equal_by_seed(both, chosen, batch):
    pair, networks = chosen
    for seed in (0, 3):
        first, second = (
            program.weights(state)
            for program, state in pair_of_programs(both, pair, networks, batch, same=False, seed=seed)
        )
        assert_same(first, second, rtol=0)
    sides = [program.sides(state) for program, state in pair_of_programs(both, pair, networks, batch)]
    assert sides[0] == sides[1]
    assert set(sides[0].values()) == ({"model"} if pair.guide is None else {"model", "guide"})


@pytest.mark.parametrize("particles", [1, S])
def test_terms_agree_per_site(both, chosen, batch, particles):
    pair, networks = chosen
    (pyro, state), (numpyro, other) = pair_of_programs(both, pair, networks, batch, particles)
    ours = pyro.terms(state, batch, seed=1, particles=particles)
    theirs = numpyro.terms(other, batch, seed=1, particles=particles)
    for table in ("log_likelihood", "log_prior", "log_posterior", "kl"):
        assert_same(getattr(ours, table), getattr(theirs, table))
    np.testing.assert_allclose(ours.elbo(), theirs.elbo(), **CLOSE)
    assert ours.elbo().shape == (particles, len(batch["weight"]))
    if particles > 1:
        draws = (
            program.draws(s, batch, seed=1, particles=particles) for program, s in ((pyro, state), (numpyro, other))
        )
        assert_same(*draws)
    for site, q in pyro.posterior(state, batch).items():
        p = numpyro.posterior(other, batch)[site]
        assert q.family == p.family
        assert_same({"loc": q.loc, "scale": q.scale}, {"loc": p.loc, "scale": p.scale})
    if pair.guide is not None and particles > 1:
        weights = [
            program.log_weights(s, batch, seed=1, particles=particles, rows=1000)
            for program, s in ((pyro, state), (numpyro, other))
        ]
        np.testing.assert_allclose(*weights, **CLOSE)
        np.testing.assert_allclose(weights[0], ours.log_weight(), **CLOSE)


def check_gradients(both, pair, networks, batch, divergence):
    found = pair_of_programs(both, pair, networks, batch, divergence.particles, divergence=divergence)
    (ours, info), (theirs, other) = (both.gradients(program, state, batch, weight=0.625) for program, state in found)
    assert_same(info, other)
    norms = [{name: np.linalg.norm(value) for name, value in table.items()} for table in (ours, theirs)]
    assert_same(*norms)
    for name, value in ours.items():
        assert np.linalg.norm(theirs[name] - value) <= 1e-6 * norms[0][name], name
    still = [
        f"{n}.{w}" for n, net in networks.items() for w, start in net.spec.layout(**net.sizes).items() if start.fixed
    ]
    if "prior" in networks and networks["prior"].spec.support == "pooled":  # attention to one vector has no choice
        still += [f"decoder.memory_{part}_0" for part in ("query", "key", "norm", "norm_bias")]
    assert all((norm > 0) == (name not in still) for name, norm in norms[0].items())
    assert info["gradient_norm"] == pytest.approx(np.sqrt(sum(norm**2 for norm in norms[0].values())))


def test_gradients_agree_per_parameter(both, chosen, batch):
    check_gradients(both, *chosen, batch, KL())


@pytest.mark.parametrize(
    "divergence",
    [
        KL(particles=S),
        *(KL(free_bits=FreeBits(nats=2.0, per=per)) for per in ("dimension", "sentence", "batch")),
        *(KL(estimator=estimator, particles=S) for estimator in ("sampled", "stl", "score")),
        KL(estimator="stl"),
        *(IWAE(particles=S, estimator=estimator) for estimator in ("pathwise", "stl", "dreg")),
        Renyi(particles=S, alpha=0.5, estimator="stl"),
        CUBO(particles=S),
        TVO(particles=S),
        FDivergence(particles=S, f="jensen_shannon"),
        FDivergence(particles=S, tail_adaptive=True),
        FDivergence(particles=S, f="total_variation", estimator="score"),
        ReweightedWakeSleep(particles=S),
        SVGD(particles=S),
        TargetRate(nats=2.0, strength=3.0),
        GeometricJensenShannon(alpha=0.3),
        Fisher(),
        *(Stein(kernel=kernel, bandwidth=0.7) for kernel in ("imq", "rbf")),
        InfoVAE(distance="stein", alpha=0.5),
    ],
    ids=lambda d: (
        " ".join(str(value) for key, value in d.model_dump(exclude_defaults=True).items() if key != "kind") or d.kind
    ),
)
def test_gradients_agree_under_every_objective(both, batch, divergence):
    check_gradients(both, SENTENCE_VAE, networks_of(SENTENCE_VAE, "gru", True), batch, divergence)


OPTIMISERS = {
    "adam": OptimiserSpec("adam"),
    "adam with decay": OptimiserSpec("adam", betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1),
    "adamw": OptimiserSpec("adamw", weight_decay=0.1),
    "sgd": OptimiserSpec("sgd"),
    "momentum and decay": OptimiserSpec("sgd", momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("clip", [None, 0.25])
@pytest.mark.parametrize("kind", OPTIMISERS)
def test_three_steps_of_every_optimiser_agree(both, batch, kind, clip):
    networks = networks_of(SENTENCE_VAE, "gru", False)
    optimisers = {side: OPTIMISERS[kind] for side in BOTH_SIDES}
    found = pair_of_programs(both, SENTENCE_VAE, networks, batch, optimisers=optimisers, clip=clip)
    weights = []
    for program, state in found:
        begun = program.weights(state)
        for step in range(3):
            state, info = program.step(state, [batch], both.control(step, rate=2.0**-6))
        weights.append(program.weights(state))
        assert float(info["gradient_norm"]) > 0.25  # the bound is tight
        assert max(np.abs(weights[-1][name] - begun[name]).max() for name in begun) > 1e-3
    assert_same(*weights)


def test_sides_have_their_own_optimisers_and_batches_accumulate(both, batch):
    networks = networks_of(SENTENCE_VAE, "lstm", True)
    optimisers = {"model": OptimiserSpec("sgd"), "guide": OptimiserSpec("adam")}
    short = both.sentences([4, 9], [5], [6, 6], [7], [8, 8], width=3)
    weights = []
    for program, state in pair_of_programs(both, SENTENCE_VAE, networks, batch, optimisers=optimisers):
        begun = program.weights(state)
        mean = {}
        for one in (batch, short):
            found, _ = both.gradients(*plain(both, program, networks, batch, begun), one)
            mean = {name: mean.get(name, 0) + value / 2 for name, value in found.items()}
        state, _ = program.step(state, [batch, short], both.control(rate=0.5))
        weights.append(program.weights(state))
        model = [name for name, side in program.sides(state).items() if side == "model"]
        assert_same({name: begun[name] - weights[-1][name] for name in model}, {name: mean[name] / 2 for name in model})
    assert_same(*weights)


def plain(both, program, networks, batch, weights):
    """The same programs and weights under plain SGD."""
    engine = type(program).__module__.split(".")[-2]
    other = both.program(engine, program.pair, networks, data_size=40)
    return other, other.load_weights(other.init(batch), weights)


def test_weights_of_another_pair_are_refused_by_name(both, engine, batch):
    networks = networks_of(SENTENCE_VAE, "gru", False)
    program = both.program(engine, SENTENCE_VAE, networks, data_size=40)
    state = program.init(batch)
    weights = program.weights(state)
    missing = {name: value for name, value in weights.items() if name != "decoder.output"}
    for wrong in (
        missing,
        weights | {"decoder.output": np.zeros((2, 2))},
        missing | {"decoder.outputs": weights["decoder.output"]},
    ):
        with pytest.raises(BadInput, match=r"decoder\.output"):
            program.load_weights(state, wrong)


def test_a_float32_mode_leaks_nowhere(both, batch):
    """float64 asked for where JAX has it not is refused, not silently halved."""
    pair = PAIRS["language_model"]
    networks = networks_of(pair, "gru", False)
    with jax.enable_x64(False), pytest.raises(BadInput, match="64-bit"):
        both.program("numpyro", pair, networks, data_size=40)
    single = both.program("numpyro", pair, networks, data_size=40, dtype="float32")
    assert {value.dtype for value in single.weights(single.init(batch)).values()} == {np.dtype(np.float32)}
