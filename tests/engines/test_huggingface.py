"""Tiny random BART and Marian from disk with denoising attention: the identity, generation, priors, the formula by hand."""

from __future__ import annotations

import copy
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.special import softmax
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from guidebook.engines.huggingface import attentions, empirical_priors, load_priors, regularised, save_priors
from guidebook.engines.identity import EmpiricalPrior
from guidebook.models.errors import BadInput

P, HEADS, PAD, WORDS = 32, 2, 29, 30
ROOT = (P / HEADS) ** 0.5
SIZES = {
    "vocab_size": WORDS,
    "d_model": P,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 32,
    "init_std": 0.15,
    "dropout": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
}
MODELS = {
    "bart": lambda: BartForConditionalGeneration(BartConfig(**SIZES, decoder_start_token_id=2)),
    "marian": lambda: MarianMTModel(MarianConfig(**SIZES, decoder_start_token_id=PAD, scale_embedding=True)),
}
NAMES = {
    kind: [f"model.{side}.layers.{layer}.{leaf}" for layer in range(2)]
    for kind, side, leaf in (
        ("encoder", "encoder", "self_attn"),
        ("cross", "decoder", "encoder_attn"),
        ("decoder", "decoder", "self_attn"),
    )
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("no test goes to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def tiny(name, folder, bias=True):
    """Written and read; gains, shifts and norms of words differ as training makes them, so that log α does.

    Of the seeds one with which the models write more than one word.
    """
    torch.manual_seed(6)
    model = MODELS[name]()
    for key, each in model.named_parameters():
        if "norm" in key and key.endswith("weight"):
            each.data.copy_(torch.randn_like(each).exp())
        elif key.endswith("bias"):
            torch.nn.init.normal_(each, std=0.3 if "norm" in key else 0.5)
    model.model.shared.weight.data.mul_(torch.linspace(0.5, 1.5, WORDS)[torch.randperm(WORDS), None])
    if not bias:
        for layer in model.modules():
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj") if hasattr(layer, "q_proj") else ():
                getattr(layer, projection).bias = None
        return model.eval()
    model.save_pretrained(folder)
    return AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True)


def batch(seed=1):
    """Sources of 8, 5 and 2 words, targets of 6, 3 and 1."""
    torch.manual_seed(seed)
    there = torch.arange(8) < torch.tensor([8, 5, 2])[:, None]
    said = torch.arange(6) < torch.tensor([6, 3, 1])[:, None]
    return {
        "input_ids": torch.randint(3, PAD, (3, 8)).where(there, PAD),
        "attention_mask": there.long(),
        "labels": torch.randint(3, PAD, (3, 6)).where(said, -100),
    }


@pytest.fixture(scope="module", params=MODELS)
def given(request, tmp_path_factory):
    model = tiny(request.param, tmp_path_factory.mktemp(request.param))
    double, priors = copy.deepcopy(model).double(), empirical_priors(model, [batch(), batch(2)])
    return SimpleNamespace(model=model, double=double, priors=priors, name=request.param)


@torch.no_grad()
def logits(model, **more):
    return model(**batch(), **more).logits


def apart(one, other):
    return float((one - other).abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("rule", ["exact", "reference"])
def test_far_from_the_prior_the_model_is_the_pretrained_one(given, dtype, tolerance, rule):
    model = copy.deepcopy(given.model).to(dtype)
    made = regularised(model, given.priors, tau_alpha=10, tau_sigma=0, rule=rule)
    assert sum("Denoising" in type(each).__name__ for each in made.modules()) == 6
    assert apart(logits(made), logits(model)) < tolerance
    with_all = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        found, expected = made(**batch(), **with_all), model(**batch(), **with_all)
    for got, wanted in zip(found.decoder_hidden_states, expected.decoder_hidden_states, strict=True):
        assert apart(got, wanted) < 10 * tolerance


@pytest.mark.parametrize("kind", NAMES)
def test_every_kind_has_its_own_tau(given, kind):
    start = logits(given.double)
    assert apart(logits(regularised(given.double, given.priors, tau_alpha={kind: -3})), start) > 0.1
    assert apart(logits(regularised(given.double, given.priors, tau_alpha={kind: 1000})), start) < 1e-6
    assert apart(logits(regularised(given.double, given.priors, tau_alpha=1000)), start) < 1e-12


@pytest.mark.parametrize(("rule", "bias"), [("exact", True), ("exact", False), ("reference", True)])
def test_one_layer_is_the_mixture_taken_term_by_term(given, rule, bias, tmp_path):
    """Each kind at τ_α = 0, τ_σ = 0.3 and τ_μ = 0.9; keys have a bias that must not count."""
    model = given.double if bias else tiny(given.name, tmp_path, bias=False).double()
    made = regularised(model, given.priors, tau_alpha=0, tau_sigma=0.3, tau_mu=0.9, rule=rule)
    rng = np.random.default_rng(0)
    y, x = 1.5 * rng.standard_normal((2, 3, P)), 1.5 * rng.standard_normal((2, 5, P))
    there = np.arange(5) < np.array([5, 3])[:, None]
    for kind, (name, _) in NAMES.items():
        plain, layer, prior = model.get_submodule(name), made.get_submodule(name), given.priors[name]
        if kind == "cross":
            mask = torch.as_tensor(there)[:, None, None, :]
            found = layer(torch.as_tensor(y), torch.as_tensor(x), attention_mask=mask)[0]
            queries, seen = y, np.broadcast_to(there[:, None], (2, 3, 5))
        else:
            found = layer(torch.as_tensor(x))[0]
            queries, seen = x, np.broadcast_to(np.tri(5, dtype=bool) if kind == "decoder" else True, (2, 5, 5))
        expected = by_hand(plain, prior, queries, x, seen, rule)
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def by_hand(layer, prior, y, x, seen, rule):
    """The layer's output, one query and one component after the other."""
    weights = {each: getattr(layer, each) for each in ("q_proj", "k_proj", "v_proj", "out_proj")}
    w = {each: linear.weight.detach().double().numpy() for each, linear in weights.items()}
    c = {
        each: np.zeros(P) if linear.bias is None else linear.bias.detach().double().numpy()
        for each, linear in weights.items()
    }
    query, d = y @ w["q_proj"].T + c["q_proj"], P // HEADS
    out = np.empty((*y.shape[:2], P))
    for b, q, h in np.ndindex(*y.shape[:2], HEADS):
        head = slice(h * d, (h + 1) * d)
        u = query[b, q, head] @ w["k_proj"][head]
        vectors = x[b, seen[b, q]]
        log_alpha = np.array([prior.log_alpha, *(vectors**2).sum(-1) / (2 * ROOT)])
        mean = np.array([prior.loc, *(0.9 * vectors + 0.1 * prior.loc)])
        variance = np.array([prior.variance] + len(vectors) * [0.3**2 * prior.variance])
        s = ROOT + variance
        terms = u * mean / s - mean**2 / (2 * s) - np.log(s) / 2 - (rule == "exact") * u**2 / (2 * s)
        weight = softmax(log_alpha + terms.sum(-1))
        v = weight @ (variance / s * u + ROOT / s * mean)
        out[b, q, head] = v @ w["v_proj"][head].T + c["v_proj"][head]
    return out @ w["out_proj"].T + c["out_proj"]


def test_the_log_odds_of_the_prior_fall_by_a_standard_deviation_for_each_unit_of_tau_alpha(given):
    """Of the first layer of each kind, the inputs of which other kinds' taus alone can change."""
    model, taus = given.double, np.array([1.0, 0.0, -2.0])
    for kind, records in (
        ("encoder", "encoder_attentions"),
        ("cross", "cross_attentions"),
        ("decoder", "decoder_attentions"),
    ):
        odds = []
        for tau in taus:
            made = regularised(model, given.priors, tau_alpha={kind: tau})
            made.set_attn_implementation("eager")
            with torch.no_grad():
                weights = made(**batch(), output_attentions=True)[records][0]
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
            share = weights[..., 0].numpy()
            odds.append(np.log(share) - np.log(weights[..., 1:].sum(-1).numpy()))
        assert (np.diff(odds, axis=0) > 0).all()
        slope = np.diff(odds, axis=0) / np.diff(taus)[:, None, None, None]
        np.testing.assert_allclose(slope, -given.priors[NAMES[kind][0]].log_alpha_scale, rtol=1e-6)


def test_both_implementations_agree(given):
    made = regularised(given.double, given.priors, tau_alpha=0, tau_sigma=0.2)
    fused = logits(made)
    made.set_attn_implementation("eager")
    assert apart(logits(made), fused) < 1e-10


def generated(model, **more):
    few = {key: each for key, each in batch().items() if key != "labels"}
    return model.generate(**few, max_new_tokens=12, do_sample=False, **more)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation(given, search):
    """At the identity what the model writes; elsewhere with the cache what is written without it."""
    model = given.double
    plain = generated(model, **search)
    assert len(plain[:, 1:].unique()) > 2
    assert torch.equal(generated(regularised(model, given.priors), **search), plain)
    made = regularised(model, given.priors, tau_alpha=0, tau_sigma=0.3)
    found = generated(made, **search)
    assert torch.equal(found, generated(made, use_cache=False, **search))
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("name", ["mbart", "whisper"])
def test_relatives_of_bart(name):
    """One that normalises before attention, and one that hears: its keys have no bias."""
    torch.manual_seed(0)
    few = batch()
    if name == "mbart":
        model = MBartForConditionalGeneration(MBartConfig(**SIZES, decoder_start_token_id=2))
    else:
        heard = {"num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 20, "decoder_start_token_id": 2}
        sizes = {key: each for key, each in SIZES.items() if key != "max_position_embeddings"}
        model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **heard, begin_suppress_tokens=None))
        few = {"input_features": torch.randn(3, 8, 16, dtype=torch.float64), "labels": few["labels"]}
    for key, each in model.named_parameters():
        if "norm" in key:
            torch.nn.init.normal_(each)
    model = model.double().eval()
    priors = empirical_priors(model, [few])
    with torch.no_grad():
        expected = model(**few).logits
        assert apart(regularised(model, priors, tau_alpha=1000)(**few).logits, expected) < 1e-10
    made = regularised(model, priors, tau_alpha=0, tau_sigma=0.3)
    few.pop("labels")
    each = [made.generate(**few, max_new_tokens=8, num_beams=2, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*each)


def test_a_step_with_the_cache_is_a_step_of_the_whole(given):
    made = regularised(given.double, given.priors, tau_alpha=0, tau_sigma=0.3)
    source = {key: each for key, each in batch().items() if key != "labels"}
    ids = torch.randint(3, PAD, (3, 5))
    with torch.no_grad():
        whole = made(**source, decoder_input_ids=ids).logits
        past, steps = None, []
        for piece in ids.split([2, 1, 2], -1):
            out = made(**source, decoder_input_ids=piece, past_key_values=past, use_cache=True)
            past = out.past_key_values
            steps.append(out.logits)
    assert apart(torch.cat(steps, 1), whole) < 1e-10


def test_what_is_hidden_changes_nothing_and_the_prior_is_always_seen(given):
    made = regularised(given.double, given.priors, tau_alpha=0, tau_sigma=0.3)
    few = batch()
    long = {
        "input_ids": torch.nn.functional.pad(few["input_ids"], (0, 3), value=7),
        "attention_mask": torch.nn.functional.pad(few["attention_mask"], (0, 3)),
        "labels": few["labels"],
    }
    with torch.no_grad():
        assert apart(made(**long).logits, made(**few).logits) < 1e-10
        nothing = made(**few | {"attention_mask": torch.zeros_like(few["attention_mask"])})
    assert nothing.logits.isfinite().all()


def test_priors_are_the_moments_of_the_hidden_states(given):
    """Which the model itself hands out: both models normalise after attention, which so reads the states as they are."""
    calls, model = [], given.model.train()
    found = empirical_priors(model, (batch(seed) for seed in (1, 2)), calls.append)
    assert calls == [1, 2]
    assert all(each.training for each in model.modules())
    model.eval()
    states = {name: [] for names in NAMES.values() for name in names}
    for seed in (1, 2):
        few = batch(seed)
        with torch.no_grad():
            out = model(**few, output_hidden_states=True)
        source = few["attention_mask"].bool().numpy()
        target = np.arange(6) < np.array([6, 4, 2])[:, None]  # the first word, and all but the last
        for layer in range(2):
            each = (out.encoder_hidden_states[layer], out.encoder_last_hidden_state, out.decoder_hidden_states[layer])
            for (kind, names), x in zip(NAMES.items(), each, strict=True):
                states[names[layer]].append(x.double().numpy()[target if kind == "decoder" else source])
    assert set(found) == set(states)
    for name, rows in states.items():
        x = np.concatenate(rows)
        log_alpha = (x**2).sum(-1) / (2 * ROOT)
        expected = x.mean(0), x.var(0, ddof=1), log_alpha.mean(), log_alpha.std(ddof=1)
        for got, wanted in zip(found[name], expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_ids_of_the_decoder_say_what_labels_do(given):
    few = batch()
    start = given.model.config.decoder_start_token_id
    ids = torch.cat([torch.full((3, 1), start), few.pop("labels")[:, :-1]], -1)
    expected = empirical_priors(given.model, [batch()])
    read = ids.where(ids != -100, PAD)
    mask = {"decoder_attention_mask": (ids != -100).long()}
    for more in ({}, mask):
        found = empirical_priors(given.model, [few | {"decoder_input_ids": read} | more])
        for name, prior in expected.items():
            for got, wanted in zip(found[name], prior, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_the_model_is_left_alone_and_priors_come_back_from_disk(given, tmp_path):
    before = {name: each.clone() for name, each in given.model.state_dict().items()}
    save_priors(given.priors, tmp_path / "priors.safetensors")
    read = load_priors(tmp_path / "priors.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["priors.safetensors"]
    taus = {"tau_alpha": -1, "tau_sigma": {"cross": 0.1}, "tau_mu": {"encoder": 0.8}}
    made = regularised(given.model, given.priors, **taus)
    assert torch.equal(logits(regularised(given.model, read, **taus)), logits(made))
    made.half()
    after = given.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(each, after[name]) for name, each in before.items())


@pytest.mark.parametrize(("tau_alpha", "tau_sigma"), [(10, 0), (0, 0.3)])
def test_half_precision_keeps_what_large_norms_leave(given, tau_alpha, tau_sigma):
    """One layer at |x|² / (2 r) of 50 in bfloat16, beside float64 of the same rounded weights and vectors."""
    rounded = copy.deepcopy(given.model).to(torch.bfloat16).requires_grad_(False)
    x = np.random.default_rng(3).standard_normal((2, 6, P))
    x = torch.as_tensor(x * np.sqrt(50 * 2 * ROOT / (x**2).sum(-1, keepdims=True))).bfloat16()
    name = NAMES["encoder"][0]
    layer = rounded.get_submodule(name)
    for each in (layer.q_proj, layer.k_proj):
        each.weight.mul_(0.2)
    made = regularised(rounded, given.priors, tau_alpha, tau_sigma)
    with torch.no_grad():
        found = made.get_submodule(name)(x)[0].double()
        precise = regularised(rounded.double(), given.priors, tau_alpha, tau_sigma)
        expected = precise.get_submodule(name)(x.double())[0]
    assert apart(found, expected) < 0.02 * float(expected.abs().max())


def changed(model, change):
    layer = model.get_submodule(NAMES["cross"][1])
    change(layer)
    return model


def refused(match, model):
    with pytest.raises(BadInput, match=match):
        attentions(model)


def grouped(layer):
    layer.k_proj = layer.v_proj = torch.nn.Linear(P, P // HEADS)


def test_attention_of_another_kind_is_refused_by_name():
    t5 = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    refused(r"SelfAttention \(T5Attention\).*relative position", T5ForConditionalGeneration(t5))
    gpt = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=2)
    refused("GPT2LMHeadModel is no encoder-decoder", GPT2LMHeadModel(gpt))
    make = MODELS["bart"]
    where = NAMES["cross"][1].replace(".", r"\.") + r" \(BartAttention\).*"
    refused(where + r"2 heads of queries but 1 of keys \(grouped\)", changed(make(), grouped))
    refused(where + "no linear v_proj", changed(make(), lambda layer: delattr(layer, "v_proj")))
    refused(where + "does not say its head_dim", changed(make(), lambda layer: delattr(layer, "head_dim")))
    refused(where + "scales its logits by 1,", changed(make(), lambda layer: setattr(layer, "scaling", 1.0)))
    normed = changed(make(), lambda layer: setattr(layer, "q_norm", torch.nn.LayerNorm(P // HEADS)))
    refused(where + "q_norm beside its projections", normed)


def test_other_input_is_refused(given, tmp_path):
    model, priors = given.model, given.priors
    with pytest.raises(BadInput, match="is one already"):
        regularised(regularised(model, priors), priors)
    name = NAMES["encoder"][0]
    for wrong, match in (
        ({}, f"no prior of {name}"),
        (priors | {name: EmpiricalPrior(np.zeros(3), np.ones(3), 1.0, 1.0)}, "of width 3, the layer of 32"),
        (priors | {name: priors[name]._replace(variance=-np.ones(P))}, "variance below 0"),
    ):
        with pytest.raises(BadInput, match=match):
            regularised(model, wrong)
    for wrong, match in (
        ({"tau_alpha": {"self": 1}}, "not of 'self'"),
        ({"tau_sigma": 2.0}, "shares"),
        ({"tau_alpha": float("nan")}, "not nan"),
        ({"tau_alpha": {"cross": "ten"}}, "not 'ten'"),
        ({"rule": "other"}, "exact or reference"),
    ):
        with pytest.raises(BadInput, match=match):
            regularised(model, priors, **wrong)
    few = batch()
    with pytest.raises(BadInput, match="decoder_input_ids or labels"):
        empirical_priors(model, [{key: each for key, each in few.items() if key != "labels"}])
    with pytest.raises(BadInput, match=f"{name}: .*two vectors"):
        empirical_priors(model, [])
    with pytest.raises(BadInput, match="Linear is no encoder-decoder"):
        regularised(torch.nn.Linear(2, 2), priors)
    with pytest.raises(BadInput, match="cannot be written"):
        save_priors(priors, tmp_path / "none" / "priors")
    with pytest.raises(BadInput, match="not a safetensors file"):
        load_priors(tmp_path)
    with pytest.raises(BadInput, match="does not exist"):
        load_priors(tmp_path / "none")
    (tmp_path / "other").write_bytes(b"no such file")
    with pytest.raises(BadInput, match="not a safetensors file"):
        load_priors(tmp_path / "other")
    save_file({f"{name}.loc": np.zeros(P)}, tmp_path / "half")
    with pytest.raises(BadInput, match="does not hold loc, variance"):
        load_priors(tmp_path / "half")
    flash = copy.deepcopy(model)
    flash.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(BadInput, match="eager and sdpa, not flash_attention_2"):
        regularised(flash, priors)
