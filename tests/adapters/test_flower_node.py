"""A node of Flower, message by message: what it charges, what it sends, and the folder in which it keeps both."""

from types import SimpleNamespace

import pytest

pytest.importorskip("flwr")

import torch

import dpcomp as dp
from dpcomp.adapters.flower import prepare_node, simulated_folders
from dpcomp.adapters.flower.node import opened_node
from dpcomp.federated import Server, TrustedRelease
from dpcomp.federated.absence import Keep
from dpcomp.terms import ClientPolicy, client_policy
from dpcomp.training.pytorch import Isolated, make_private
from dpcomp.training.pytorch.rows.parameters import layout_of, read
from tests.adapters.flower_ends import (
    GENEROUS,
    LOSS,
    NODES,
    PIPELINE,
    RATE,
    STEPS,
    TRUSTED,
    data_of,
    network,
    terms_of,
)

DELTA = 1e-5


def opened(folder, terms, module):
    model = layout_of(module), read(module)
    return opened_node(folder, terms, 1, model, absence_policy=Keep(), nonprivate_metrics=())


def test_a_node_sends_nothing_beyond_the_rounds_that_its_ledger_was_charged_for(tmp_path):
    pipeline = dp.Pipeline(unit="client", trust="server", sampling=dp.Poisson(1.0), mechanism=TRUSTED.mechanism)
    terms, module = terms_of(pipeline, rounds=2, least_updates=0), network()
    prepare_node(tmp_path, GENEROUS)
    release = TrustedRelease(pipeline=pipeline, secret=dp.SecretSeed(), ledger=dp.Ledger(), divisor=3.0)
    memory = pipeline.init_server(layout_of(module), terms.seed, first_model=read(module), run_id=terms.run_id)
    server = Server(pipeline.channel, memory, read(module), trusted_release=release, clients=3)  # it heeds no terms
    answer, sent = None, 0
    for _ in range(4):
        with opened(tmp_path, terms, network()) as node:
            messages = node.follow(answer)
            if node.may_train:
                node.begin(module)
                with torch.no_grad():
                    module.weight += 1.0
                messages += node.update()
                sent += 1
            question = node.question()
        for message in messages:
            server.handle(message, sender=1)
        if answer is not None and server.memory.shared.version < 2:
            server.close_round()
        answer = server.handle(question, sender=1)
    assert (sent, server.memory.link(1).count, messages) == (2, 2, [])  # at the last version there is nothing to send
    server.close_round()
    answer = server.handle(question, sender=1)
    with opened(tmp_path, terms, network()) as node, pytest.raises(dp.core.errors.TermsRefused, match="has closed 3"):
        node.follow(answer)
    spent = dp.Ledger.read(tmp_path / "ledger.db").guarantee(DELTA).epsilon
    assert spent == terms.guarantee(DELTA).epsilon


def test_an_optimiser_that_is_not_ready_costs_a_node_no_round(tmp_path):
    terms, module = terms_of(rounds=2), network()
    prepare_node(tmp_path, GENEROUS)
    server, answer = terms.server(layout_of(module), read(module)), None
    for _ in range(2):
        with opened(tmp_path, terms, network()) as node:
            node.follow(answer)
            answer = server.handle(node.question(), sender=1)
    with opened(tmp_path, terms, network()) as node:
        node.follow(answer)
        model, optimizer, loader = private(terms)
        handle = optimizer.original_optimizer.register_step_pre_hook(lambda *_: None)
        with pytest.raises(dp.NotPrivate, match="step hooks"):
            node.begin(optimizer)
        assert not node._ledger.clients
        assert not node.giving_up()
        handle.remove()
        node.begin(optimizer)
        for inputs, targets in loader:
            LOSS(model(inputs), targets).backward()
            optimizer.step()
        (payload,) = node.update()
    server.handle(payload, sender=1)
    assert server.memory.link(1).count == 1


def private(terms):
    module = network()
    inner = torch.optim.SGD(module.parameters(), lr=RATE)
    given = {"loss": LOSS, "expected_batch_size": 15, "steps": STEPS, "engine": Isolated()}
    return make_private(module, inner, data_of(1), terms.pipeline, **given)


@pytest.mark.parametrize("how", [prepare_node, lambda folder, policy: simulated(folder.parent, policy)])
def test_a_folder_that_was_half_made_is_finished(how, tmp_path, monkeypatch):
    folder = tmp_path / f"{NODES[2]:016x}"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client_policy, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            how(folder, GENEROUS)
    assert [path.name for path in folder.iterdir()] == ["ledger.db"]
    other = ClientPolicy(budget=dp.Budget(1.0, DELTA))
    with pytest.raises(dp.DpcompError, match="a budget is never changed"):
        how(folder, other)
    how(folder, GENEROUS)
    assert ClientPolicy.read(folder / "client.toml") == GENEROUS
    with dp.Ledger(folder / "ledger.db") as ledger:
        assert ledger.budget == GENEROUS.budget


def simulated(root, policy):
    return simulated_folders(root, policy)(SimpleNamespace(node_id=NODES[2]))


def test_a_folder_that_was_made_or_charged_is_not_made_anew(tmp_path):
    prepare_node(tmp_path, GENEROUS)
    with pytest.raises(dp.DpcompError, match="exists already"):
        prepare_node(tmp_path, ClientPolicy(budget=dp.Budget(1.0, DELTA)))
    assert ClientPolicy.read(tmp_path / "client.toml") == GENEROUS
    with dp.Ledger(tmp_path / "ledger.db") as ledger:
        ledger.charge(PIPELINE.cost, dp.Address(0, 1, 0))
    (tmp_path / "client.toml").unlink()
    with pytest.raises(dp.DpcompError, match=r"was charged, and no client\.toml"):
        prepare_node(tmp_path, GENEROUS)
    assert not (tmp_path / "client.toml").exists()
