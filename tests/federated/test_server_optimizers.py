"""Adam, Yogi and Adagrad at the server: the steps of the paper, kept by the server, and refused behind feedback."""

from dataclasses import replace

import numpy as np
import pytest

import dpcomp as dp
from dpcomp.federated import ServerAdagrad, ServerAdam, ServerOptimizer, ServerYogi, TimedOut
from dpcomp.federated.server.optimizers import ServerRule
from tests.federated.ends import LAYOUT, NOISE, PIPELINE, participant_of, server_of, talk, trained

RULES = [
    ServerAdam(learning_rate=0.03, momentum=0.8, second_momentum=0.95, adaptivity=0.02),
    ServerYogi(learning_rate=0.05, momentum=0.7, second_momentum=0.9, adaptivity=0.05),
    ServerAdagrad(learning_rate=0.2, momentum=0.3, adaptivity=0.01),
]
PLAIN = dp.Pipeline(mechanism=NOISE, feedback=False)


def of_the_paper(rule, deltas):
    """The steps of Algorithm 2 of Reddi et al. 2021, number by number."""
    steps = []
    m, v = 0.0, rule.adaptivity**2
    for delta in deltas:
        m = rule.momentum * m + (1 - rule.momentum) * delta
        if isinstance(rule, ServerAdagrad):
            v += delta**2
        elif isinstance(rule, ServerAdam):
            v = rule.second_momentum * v + (1 - rule.second_momentum) * delta**2
        else:
            v -= (1 - rule.second_momentum) * delta**2 * np.sign(v - delta**2)
        steps.append(rule.learning_rate * m / (v**0.5 + rule.adaptivity))
    return steps


def mean_of(values):
    layout = dp.Layout.of(len(values))
    return dp.Update(values=np.asarray(values), layout=layout, address=dp.Address(run=0, client=dp.SERVER, round=0))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_steps_are_those_of_the_paper(rule):
    deltas, moments = np.random.default_rng(5).normal(size=(6, 4)) * [0.001, 0.1, 1.0, 30.0], {}
    assert isinstance(rule, ServerRule)
    steps = []
    for delta in deltas:
        step, moments = rule.step(mean_of(delta), moments)
        steps.append(step.dense())
    expected = np.transpose([of_the_paper(rule, column) for column in deltas.T])
    np.testing.assert_allclose(steps, expected, rtol=2e-4)


@pytest.mark.parametrize("rule", [RULES[1], ServerOptimizer(momentum=0.5)], ids=lambda rule: type(rule).__name__)
def test_a_restarted_server_goes_on_with_its_moments(rule, tmp_path):
    def models(restarts):
        server = server_of(PLAIN, optimizer=rule, folder=tmp_path / str(restarts))
        client, found = participant_of(PLAIN), []
        for _ in range(3):
            talk(client, server, TimedOut())
            talk(client, server, trained(client, PLAIN))
            server.close_round()
            found.append(server.model.tobytes())
            if restarts:
                server.restart()
        server.close()
        return found

    assert models(restarts=True) == models(restarts=False)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_behind_feedback_it_is_asked_for_by_name(rule):
    with pytest.raises(ValueError, match="behind_feedback=True"):
        server_of(PIPELINE, optimizer=rule)
    server_of(PIPELINE, optimizer=replace(rule, behind_feedback=True))
    server_of(PLAIN, optimizer=rule)


def test_a_step_keeps_the_claim_of_its_mean():
    memory = PLAIN.init_client(LAYOUT, dp.PublicSeed(0), 0)
    permit = dp.Ledger().charge(PLAIN.cost, memory.address)
    released = PLAIN.release([np.zeros((1, LAYOUT.size))], memory, dp.SecretSeed(), permit)
    for rule in RULES:
        assert rule.step(released, {})[0].claim == released.claim
        assert rule.step(mean_of(np.ones(3)), {})[0].claim == mean_of(np.ones(3)).claim


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_largest_update_makes_no_step_that_is_not_finite(rule):
    step, moments = rule.step(mean_of([2.0**64, 1.0]), {})
    step, _ = rule.step(mean_of([1.0, 1.0]), moments)
    assert np.isfinite(step.dense()).all()


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": -1.0}, {"learning_rate": np.inf}, {"momentum": 1.0}, {"adaptivity": 0.0}, {"adaptivity": 1e-13}],
)
@pytest.mark.parametrize("kind", [ServerAdam, ServerYogi, ServerAdagrad])
def test_numbers_outside_their_range_are_refused(kind, wrong):
    with pytest.raises(ValueError, match=kind.__name__):
        kind(**wrong)


def test_a_second_momentum_outside_its_range_is_refused():
    for kind in (ServerAdam, ServerYogi):
        with pytest.raises(ValueError, match="second_momentum"):
            kind(second_momentum=1.0)
        with pytest.raises(TypeError, match="behind_feedback"):
            kind(behind_feedback=1)
