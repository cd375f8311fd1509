"""Where a program computes: two devices made of one CPU, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import jax, numpy as np
from guidebook import engines
from guidebook.engines.protocol import Control, Settings
from guidebook.guides import Pair
from guidebook.inference import KL
from guidebook.models import MLP

asked, default, expected = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
every = jax.devices()
stock = jax.devices
jax.devices = lambda platform=None: every if platform == "gpu" else stock(platform)

def model(ppl, batch, nets):
    prior, decoder = (ppl.module(name, nets[name]) for name in ("prior", "decoder"))
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(prior(ppl.zeros((1,))), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), 0.5).to_event(1), obs=batch.x)

def guide(ppl, batch, nets):
    encoder = ppl.module("encoder", nets["encoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", ppl.dist.Normal(encoder(batch.x), 0.5).to_event(1))

networks = {name: MLP(inputs=1, outputs=1, hidden=()) for name in ("prior", "decoder", "encoder")}
pair = Pair(model, guide, networks=networks)
room = engines.load("numpyro")
jax.config.update("jax_default_device", every[default])
before = jax.live_arrays()
known = {id(array) for array in before}
batch = {"x": np.ones((4, 1), np.float32), "index": np.arange(4, dtype=np.int32), "weight": np.ones(4, np.float32)}
program = room.Program(pair, pair.realisable(None, None), Settings(4, KL().objective(), device=asked))
state = program.init(batch)
state = program.load_slots(program.load_weights(state, program.weights(state)), program.slots(state))
control = Control(0, 1.0, {"model": 0.1, "guide": 0.1})
state, info = program.step(state, [batch], control)
state, more = program.step(state, [batch, batch], control)
kept = program.terms(state, batch, seed=0, particles=2), program.draws(state, batch, seed=0, particles=2)
program.log_weights(state, batch, seed=0, particles=4, rows=8)
new = [array for array in jax.live_arrays() if id(array) not in known]
assert len(new) > 20
assert {device for array in new for device in array.devices()} == {every[expected]}
assert jax.numpy.ones(1).devices() == {every[default]}
"""


@pytest.mark.parametrize(("asked", "default", "expected"), [("cpu", 1, 0), ("cuda:1", 0, 1)])
def test_a_program_computes_on_its_device(asked, default, expected):
    """Whatever JAX's default is, and that stays as it is."""
    two = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", SCRIPT, asked, str(default), str(expected)]
    done = subprocess.run(command, env=two, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_gpu_that_is_not_there_is_refused():
    jax = pytest.importorskip("jax")
    from guidebook import engines
    from guidebook.engines.protocol import Settings
    from guidebook.guides import Pair
    from guidebook.inference import KL
    from guidebook.models import BadInput

    number = len(jax.devices()) if jax.default_backend() == "gpu" else 0
    settings = Settings(4, KL().objective(), device=f"cuda:{number}")
    with pytest.raises(BadInput, match=rf"'cuda:{number}' was asked for and JAX finds (no|\d+) GPU here"):
        engines.load("numpyro").Program(Pair(print, None), {}, settings)


def test_both_sides_share_the_forward_pass():
    """Of an estimator that parts them, the second side costs backward passes alone: one loop each of both networks."""
    jax = pytest.importorskip("jax")
    import numpy as np

    from guidebook import engines
    from guidebook.engines.protocol import Settings
    from guidebook.guides import PAIRS
    from guidebook.guides.sentence_guide import SentenceGuide
    from guidebook.inference import KL
    from guidebook.models.sentence_vae import SentenceModel

    ids = np.full((2, 5), 7, np.int32)
    batch = {"tokens": ids, "inputs": ids, "targets": ids, "lengths": np.full(2, 4, np.int32)}
    batch |= {"weight": np.ones(2, np.float32), "index": np.arange(2, dtype=np.int32)}

    def loops(estimator):
        pair, objective = PAIRS["sentence_vae"], KL(estimator=estimator).objective()
        networks = pair.realisable(SentenceModel(), SentenceGuide(), 9)
        program = engines.load("numpyro").Program(pair, networks, Settings(2, objective))
        arguments = program.init(batch).parameters, program.arrays(batch), np.uint32(0), np.uint32(0), 1.0
        traced = jax.make_jaxpr(lambda *given: program._traced_gradient(*given, ("model", "guide")))(*arguments)
        return str(traced).count("= scan[")

    assert loops("sampled") == 4
    assert loops("stl") == 4 + 2
