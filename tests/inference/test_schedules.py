"""Schedules as properties: their ends, their middle, their order (text_vaes §10 item 14)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from guidebook.inference.schedules import (
    Constant,
    Cosine,
    Cyclical,
    Linear,
    Logistic,
    NumberOrSchedule,
    Schedule,
)

steps = st.integers(1, 5000)
values = st.floats(0.0, 10.0)
any_step = st.integers(0, 20_000)

schedules = st.one_of(
    st.builds(Constant, value=values),
    st.builds(Linear, start=values, stop=values, steps=steps, wait=st.integers(0, 100)),
    st.builds(Logistic, midpoint=steps, rate=st.floats(1e-4, 1.0), stop=values),
    st.builds(Cyclical, steps=steps, cycles=st.integers(1, 9), ratio=st.floats(0.05, 1.0), start=values, stop=values),
    st.builds(Cosine, steps=steps, start=values, stop=values),
)


@given(values, any_step)
def test_constant_is_its_value_everywhere(value, step):
    assert Constant(value=value).at(step) == Constant(value=value).at(math.inf) == value


@given(values, values, steps, st.integers(0, 100), st.integers(0, 1000))
def test_linear_waits_climbs_and_stays(start, stop, length, wait, later):
    ramp = Linear(start=start, stop=stop, steps=length, wait=wait)
    assert all(ramp.at(step) == start for step in {0, wait // 2, wait})
    assert ramp.at(wait + length / 2) == pytest.approx((start + stop) / 2)
    for step in (wait + length, wait + length + later, math.inf):
        assert ramp.at(step) == pytest.approx(stop)


@given(steps, st.floats(1e-4, 1.0), values)
def test_logistic_is_half_at_its_midpoint_and_whole_at_the_end(midpoint, rate, stop):
    curve = Logistic(midpoint=midpoint, rate=rate, stop=stop)
    assert curve.at(midpoint) == pytest.approx(stop / 2)
    tail = math.exp(-rate * midpoint)
    assert curve.at(0) == pytest.approx(stop * tail / (1 + tail), rel=1e-6, abs=1e-12)
    assert curve.at(midpoint + 1 / rate) == pytest.approx(stop / (1 + math.exp(-1)))
    assert curve.at(math.inf) == pytest.approx(stop)


@given(steps, values, values)
def test_cosine_is_half_way_in_the_middle(length, start, stop):
    curve = Cosine(steps=length, start=start, stop=stop)
    assert curve.at(0) == pytest.approx(start)
    assert curve.at(length / 2) == pytest.approx((start + stop) / 2, abs=1e-9)
    assert curve.at(length) == pytest.approx(stop, abs=1e-9)
    assert curve.at(math.inf) == pytest.approx(stop, abs=1e-9)


@given(schedules.filter(lambda one: one.kind != "cyclical"), any_step, any_step)
def test_all_but_the_cyclical_are_monotone(schedule, one, other):
    early, late = sorted((one, other))
    rising = schedule.at(math.inf) >= schedule.at(0)
    change = schedule.at(late) - schedule.at(early)
    assert (change if rising else -change) >= -1e-12


@given(schedules, any_step)
def test_values_stay_between_the_ends(schedule, step):
    ends = [getattr(schedule, name) for name in ("value", "start", "stop") if hasattr(schedule, name)]
    low = 0.0 if schedule.kind == "logistic" else min(ends)
    assert low - 1e-12 <= schedule.at(step) <= max(ends) + 1e-12


@given(schedules)
def test_schedules_settle(schedule):
    assert schedule.at(math.inf) == pytest.approx(schedule.at(10**9), rel=1e-6, abs=1e-9)


@given(st.integers(1, 2000), st.integers(1, 9), st.floats(0.05, 1.0))
def test_cyclical_starts_every_cycle_at_zero_and_ends_it_at_one(length, cycles, ratio):
    cycles = min(cycles, length)
    schedule = Cyclical(steps=length, cycles=cycles, ratio=ratio)
    weights = np.array([schedule.at(step) for step in range(length)])
    starts = [math.ceil(cycle * length / cycles) for cycle in range(cycles)] + [length]
    for first, after in itertools.pairwise(starts):
        cycle = weights[first:after]
        plateau = np.arange(after - first) >= ratio * (after - first)
        assert cycle[0] == 0.0
        assert (np.diff(cycle) >= 0).all()
        assert (cycle[plateau] == 1.0).all()
        assert (cycle[~plateau] < 1.0).all()
    assert (weights == 0.0).sum() == cycles
    assert schedule.at(length) == schedule.at(math.inf) == 1.0


def test_the_last_cycle_is_complete_when_cycles_do_not_divide_the_steps():
    """10 steps in 3 cycles: starts at 0, 4, 7; the implementation that others copy leaves the tail at its start."""
    schedule = Cyclical(steps=10, cycles=3, ratio=0.5)
    expected = [0, 1 / 2, 1, 1, 0, 2 / 3, 1, 0, 2 / 3, 1]
    assert [schedule.at(step) for step in range(10)] == pytest.approx(expected)


@pytest.mark.parametrize("number", [0, 1, 0.25])
def test_a_bare_number_is_a_constant(number):
    assert TypeAdapter(NumberOrSchedule).validate_python(number) == Constant(value=number)


@pytest.mark.parametrize(
    "wrong",
    [
        -1.0,
        float("inf"),
        float("nan"),
        True,
        "soon",
        {"kind": "linear"},
        {"kind": "linear", "steps": 0},
        {"kind": "linear", "steps": 10, "wait": -1},
        {"kind": "cyclical", "steps": 10, "ratio": 1.5},
        {"kind": "logistic", "rate": 0.0},
        {"kind": "constant", "value": -0.5},
        {"kind": "steep"},
    ],
)
def test_what_is_no_schedule_is_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(NumberOrSchedule).validate_python(wrong)


@given(schedules)
def test_schedules_survive_their_own_dump(schedule):
    assert TypeAdapter(Schedule).validate_python(schedule.model_dump()) == schedule
