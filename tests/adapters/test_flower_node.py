"""A node of Flower, message by message: what it charges, what it sends, and the folder in which it keeps both."""

import pytest

pytest.importorskip("flwr")

import torch

import dpcomp as dp
from dpcomp.adapters.flower import prepare_node
from dpcomp.adapters.flower.node import opened_node
from dpcomp.federated import Server, TrustedRelease
from dpcomp.federated.absence import Keep
from dpcomp.training.pytorch.rows.parameters import layout_of, read
from tests.adapters.flower_ends import GENEROUS, TRUSTED, network, terms_of

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
