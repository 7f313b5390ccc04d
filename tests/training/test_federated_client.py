"""FederatedClient: a script's own loop over the rounds of a federation, with losses, kills and a budget."""

import itertools

import numpy as np
import pytest
import torch

import dpcomp as dp
from dpcomp.core.errors import TermsRefused
from dpcomp.federated import Server
from dpcomp.federated.messages import WITHDRAWAL
from dpcomp.terms import ClientPolicy, FederationTerms
from dpcomp.training.pytorch import FederatedClient, Isolated, make_private
from dpcomp.training.pytorch.rows.parameters import read

torch.set_num_threads(1)
SEED, STEPS = dp.PublicSeed(3), 2
PIPELINE = dp.Pipeline(
    sampling=dp.Poisson(0.5),
    mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
    codec=dp.Codec(sparsify=dp.TopK(0.5), quantize=dp.Uniform(4)),
)
FEATURES = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
DATA = torch.utils.data.TensorDataset(FEATURES, (FEATURES[:, 0] > 0).long())
LOSS = torch.nn.CrossEntropyLoss()


def private():
    """What a process makes at its start: the first weights are the same in each."""
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 2)
    inner = torch.optim.SGD(network.parameters(), lr=0.1)
    return make_private(
        network, inner, DATA, PIPELINE, loss=LOSS, expected_batch_size=15, steps=STEPS, engine=Isolated()
    )


class Federation:
    """A server that closes a round once its only client has sent, and a line to it that may lose messages."""

    def __init__(self, seed=SEED, number=7):
        _, optimizer, _ = private()
        self.number = number
        self.server = Server(PIPELINE.channel, PIPELINE.init_server(optimizer.layout, seed), read(optimizer.model))
        self.sent = 0
        self.lost: dict[int, object] = {}  # which message → what is done with its reply

    def send(self, message):
        number = self.sent
        self.sent += 1
        fault = self.lost.get(number)
        if fault == "question":
            raise ConnectionResetError("the line is down")
        reply = self.server.handle(message, sender=self.number)
        if len(self.server.accepted) == 1:
            self.server.close_round()
        if fault == "reply":
            return None
        return reply[:-1] + bytes([reply[-1] ^ 1]) if fault == "bit" else reply


class Process:
    """A run of the script, from its start to its end or its kill."""

    def __init__(self, federation, ledger, folder=None):
        self.model, optimizer, self.loader = private()
        self.client = FederatedClient(
            optimizer, ledger, federation.send, client=7, seed=SEED, folder=folder, poll_seconds=0
        )

    def train(self, until=None, killed_in=None):
        """Train, and return the numbers of the rounds; a kill comes after the steps of a round."""
        numbers = []
        for number in self.client.rounds(until, steps=STEPS):
            numbers.append(number)
            for inputs, targets in self.loader:
                LOSS(self.model(inputs), targets).backward()
                self.client._optimizer.step()
            if number == killed_in:
                break
        return numbers


def test_a_loop_takes_part_in_every_round_and_ends_with_the_model_of_the_server():
    federation, ledger = Federation(), dp.Ledger()
    process = Process(federation, ledger)
    assert process.train(until=4) == [0, 1, 2, 3]
    assert federation.server.memory.link(7).count == 4
    np.testing.assert_array_equal(read(process.model), federation.server.model)
    assert not np.array_equal(read(process.model), read(private()[1].model))
    assert ledger.guarantee(1e-5).epsilon == PIPELINE.guarantee(4 * STEPS, 1e-5).epsilon
    assert process.train(until=4) == []
    assert process.train(until=5) == [4]


@pytest.mark.parametrize("fault", ["a moved attribute", "a step hook"])
def test_an_optimiser_that_is_not_ready_costs_no_round(fault):
    federation, ledger = Federation(), dp.Ledger()
    process = Process(federation, ledger)
    optimizer = process.client._optimizer
    if fault == "a step hook":
        repair = optimizer.original_optimizer.register_step_post_hook(lambda *_: None).remove
    else:
        optimizer.model._module.scale = 2.0
        repair = lambda: delattr(optimizer.model._module, "scale")  # noqa: E731
    for _ in range(2):
        with pytest.raises(dp.NotPrivate, match=r"moved since|step hooks"):
            process.train(until=2)
    assert ledger.mark.count == 0
    assert not process.client.participant.gives_round_up
    repair()
    assert process.train(until=2) == [0, 1]
    assert ledger.guarantee(1e-5).epsilon == PIPELINE.guarantee(2 * STEPS, 1e-5).epsilon


@pytest.mark.parametrize("fault", ["question", "reply", "bit"])
def test_lost_and_damaged_messages_cost_no_second_charge(fault, caplog):
    federation, ledger = Federation(), dp.Ledger()
    federation.lost = dict.fromkeys((0, 2, 5, 6, 8, 11), fault)  # questions and updates
    assert Process(federation, ledger).train(until=5) == [0, 1, 2, 3, 4]
    assert federation.sent > 12
    assert federation.server.memory.link(7).count == 5
    assert ledger.guarantee(1e-5).epsilon == PIPELINE.guarantee(5 * STEPS, 1e-5).epsilon
    assert ("asked again" in caplog.text) == (fault != "reply")


class OfACohort:
    """A transport that can ask, to a server that asks its only client in some rounds; the line fails at first."""

    def __init__(self, federation, rounds):
        self.federation, self.rounds, self.times = federation, rounds, 0

    def __call__(self, message):
        return self.federation.send(message)

    def asked(self):
        self.times += 1
        if self.times == 1:
            raise ConnectionResetError("the line is down")
        if self.federation.server.memory.shared.version in self.rounds:
            return True
        self.federation.server.close_round()  # with the updates of others
        return False


def test_a_client_is_not_charged_for_a_round_in_which_it_is_not_asked(caplog):
    federation, ledger = Federation(), dp.Ledger()
    process = Process(federation, ledger)
    process.client._send = OfACohort(federation, {1, 4})
    assert process.train(until=6) == [1, 4]
    assert federation.server.memory.link(7).count == 2
    assert ledger.guarantee(1e-5).epsilon == PIPELINE.guarantee(2 * STEPS, 1e-5).epsilon
    assert caplog.text.count("asked again") == 1
    np.testing.assert_array_equal(read(process.model), federation.server.model)


def test_an_answer_about_the_next_round_charges_nothing_for_this_one():
    federation, ledger = Federation(), dp.Ledger()
    process, send = Process(federation, ledger), OfACohort(federation, {0, 1, 2})

    def asked():
        if send.times == 2:
            federation.server.close_round()  # between the version that the client was told and its question
        return OfACohort.asked(send)

    send.asked, process.client._send = asked, send
    assert process.train(until=3) == [0, 2]
    assert not federation.server.refusals
    assert ledger.guarantee(1e-5).epsilon == PIPELINE.guarantee(2 * STEPS, 1e-5).epsilon


@pytest.mark.parametrize("error", [ConnectionResetError, dp.DpcompError])
def test_a_withdrawal_that_the_server_does_not_take_hides_no_reason(error, caplog):
    def refusing(message):
        if WITHDRAWAL.begins(message):
            raise error("no such token")
        return federation.send(message)

    federation, budget = Federation(), dp.Budget(PIPELINE.guarantee(STEPS, 1e-5).epsilon, 1e-5)
    process = Process(federation, dp.Ledger(budget=budget))
    process.client._send = refusing
    assert process.train(until=3) == [0]
    assert "beyond" in str(process.client.budget_refusal)
    assert "no such token" in caplog.text
    np.testing.assert_array_equal(read(process.model), federation.server.model)
    _, optimizer, _ = private()
    terms = terms_of(optimizer)
    federation.server = terms.server(optimizer.layout, read(optimizer.model))
    with pytest.raises(TermsRefused):
        FederatedClient(
            optimizer,
            dp.Ledger(),
            refusing,
            client=7,
            terms=terms,
            policy=ClientPolicy(budget=dp.Budget(0.1, 1e-5)),
            folder=None,
        )


@pytest.mark.parametrize("fault", ["question", "reply"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_last_word_of_a_client_is_said_again_where_no_reply_comes(fault, times, caplog):
    def lossy(message):
        if not WITHDRAWAL.begins(message):
            return federation.send(message)
        said.append(message)
        if len(said) <= times:
            if fault == "question":
                raise ConnectionResetError("the line is down")
            return None
        return federation.send(message)

    said, federation = [], Federation()
    process = Process(federation, dp.Ledger(budget=dp.Budget(PIPELINE.guarantee(STEPS, 1e-5).epsilon, 1e-5)))
    process.client._send = lossy
    assert process.train(until=3) == [0]
    assert len(said) == min(times + 1, 3)
    assert federation.server.withdrawn == ({7: "budget"} if times < 3 else {})
    assert ("was not told" in caplog.text) is (times == 3)


def test_a_server_learns_that_a_client_gives_a_round_up():
    federation, ledger = Federation(), dp.Ledger()
    federation.server = Server(
        PIPELINE.channel, PIPELINE.init_server(private()[1].layout, SEED), read(private()[1].model), clients=8
    )
    process = Process(federation, ledger)
    ledger.charge(PIPELINE.cost, dp.Address(SEED.number, 7, 0), steps=STEPS)  # by a process that was killed

    def send(message):
        reply = federation.send(message)
        if federation.server.given_up:
            assert (federation.server.awaited, federation.server.next_round_only) == (7, 1)
            federation.server.close_round()
            assert (federation.server.awaited, federation.server.next_round_only) == (8, 0)
        return reply

    process.client._send = send
    assert process.train(until=2) == [1]
    assert not federation.server.withdrawn


def test_a_killed_process_forfeits_the_round_that_it_was_charged_for(tmp_path, caplog):
    federation, path = Federation(), tmp_path / "client.db"
    with dp.Ledger.create(path) as ledger:
        first = Process(federation, ledger, tmp_path / "client")
        assert first.train(until=9, killed_in=2) == [0, 1, 2]
    assert federation.server.memory.link(7).count == 2
    with dp.Ledger(path) as ledger:
        second = Process(federation, ledger, tmp_path / "client")

        def send(message):
            reply = federation.send(message)
            if federation.sent == 9:
                federation.server.close_round()  # without this client
            return reply

        second.client._send = send
        assert second.train(until=5) == [3, 4]
        np.testing.assert_array_equal(read(second.model), federation.server.model)
        assert ledger.guarantee(1e-5).epsilon == PIPELINE.guarantee(5 * STEPS, 1e-5).epsilon
    assert caplog.text.count("round 2 was charged before") == 1


def test_a_process_that_ended_before_the_reply_sends_the_same_payload_again(tmp_path):
    federation, path, sent = Federation(), tmp_path / "client.db", []

    def until_the_update(message):
        sent.append(message)
        if len(sent) == 2:
            raise SystemExit
        return federation.send(message)

    with dp.Ledger.create(path) as ledger:
        first = Process(federation, ledger, tmp_path / "client")
        first.client._send = until_the_update
        with pytest.raises(SystemExit):
            first.train()
    pending = first.client.participant.state.pending
    with dp.Ledger(path) as ledger:
        second, later = Process(federation, ledger, tmp_path / "client"), []
        second.client._send = lambda message: later.append(message) or federation.send(message)
        assert second.train(until=2) == [1]
    assert later.count(pending.payload) == 1
    assert federation.server.memory.link(7).count == 2


def test_the_loop_ends_at_the_budget_before_any_noise(caplog):
    budget = dp.Budget(epsilon=PIPELINE.guarantee(3 * STEPS, 1e-5).epsilon + 1e-6, delta=1e-5)
    federation, ledger = Federation(), dp.Ledger(budget=budget)
    process = Process(federation, ledger)
    assert process.train() == [0, 1, 2]
    assert federation.server.withdrawn == {7: "budget"}
    assert "beyond Budget" in str(process.client.budget_refusal)
    assert "beyond Budget" in caplog.text
    assert ledger.guarantee(1e-5).epsilon <= budget.epsilon
    np.testing.assert_array_equal(read(process.model), federation.server.model)


def test_a_server_of_another_federation_is_refused_before_any_charge():
    ledger = dp.Ledger()
    with pytest.raises(dp.VersionMismatch, match="PublicSeed"):
        Process(Federation(seed=dp.PublicSeed(4)), ledger).train(until=1)
    assert ledger.guarantee(1e-5).epsilon == 0


def test_wrong_arguments_are_refused():
    federation, (_, optimizer, _) = Federation(), private()
    inner = optimizer.original_optimizer
    with pytest.raises(TypeError, match=r"FederatedClient\(optimizer\) is a SGD"):
        FederatedClient(inner, dp.Ledger(), federation.send, client=7, seed=SEED, folder=None)
    with pytest.raises(ValueError, match="poll_seconds=-1"):
        FederatedClient(optimizer, dp.Ledger(), federation.send, client=7, seed=SEED, folder=None, poll_seconds=-1)
    client = FederatedClient(optimizer, dp.Ledger(), federation.send, client=7, seed=SEED, folder=None)
    for until, steps in ((-1, 1), (1, 0), (1.0, 1), (1, 2.0)):
        with pytest.raises((ValueError, TypeError), match=r"rounds\((until|steps)\)"):
            client.rounds(until, steps=steps)
    assert federation.sent == 0


def test_a_pass_is_an_epoch_by_default_and_seeds_are_secret():
    network = torch.nn.Linear(4, 2)
    inner = torch.optim.SGD(network.parameters(), lr=0.1)
    pipeline = dp.Pipeline(sampling=dp.Poisson(0.3), mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    made = [make_private(network, inner, DATA, pipeline, loss=LOSS, expected_batch_size=9) for _ in range(2)]
    assert [len(loader) for _, _, loader in made] == [3, 3]
    keys = {optimizer.secret.stream("test").bytes(16) for _, optimizer, _ in made}
    assert len(keys) == 2
    whole = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)))
    with pytest.raises(ValueError, match="give steps="):
        make_private(network, inner, DATA, whole, loss=LOSS, expected_batch_size=9)


def test_rounds_without_an_end_go_on():
    federation = Federation()
    process = Process(federation, dp.Ledger())
    numbers = []
    for number in itertools.islice(process.client.rounds(steps=STEPS), 3):
        numbers.append(number)
        for inputs, targets in process.loader:
            LOSS(process.model(inputs), targets).backward()
            process.client._optimizer.step()
    assert numbers == [0, 1, 2]


def terms_of(optimizer, **others):
    values = {"rounds": 3, "steps": STEPS, "clients": 9, "seed": SEED} | others
    return FederationTerms.agree(PIPELINE, optimizer.layout, read(optimizer.model), **values)


def test_terms_say_seed_rounds_and_steps():
    model, optimizer, loader = private()
    terms, federation, ledger = terms_of(optimizer, learning_rate=0.1), Federation(), dp.Ledger()
    federation.server = terms.server(optimizer.layout, read(model))
    policy = ClientPolicy(budget=dp.Budget(terms.guarantee(1e-5).epsilon, 1e-5))
    client = FederatedClient(optimizer, ledger, federation.send, client=7, terms=terms, policy=policy, folder=None)
    for _ in client.rounds():
        for inputs, targets in loader:
            LOSS(model(inputs), targets).backward()
            optimizer.step()
    assert federation.server.memory.shared.version == 3
    assert ledger.guarantee(1e-5).epsilon == terms.guarantee(1e-5).epsilon
    with pytest.raises(ValueError, match="3 rounds"):
        client.rounds(4)
    with pytest.raises(ValueError, match="2 steps"):
        client.rounds(steps=3)


def test_a_policy_holds_in_each_round_whatever_else_the_ledger_is_charged_for():
    model, optimizer, loader = private()
    terms, federation, ledger = terms_of(optimizer), Federation(), dp.Ledger()
    federation.server = terms.server(optimizer.layout, read(model))
    policy = ClientPolicy(budget=dp.Budget(terms.guarantee(1e-5).epsilon, 1e-5))
    client = FederatedClient(optimizer, ledger, federation.send, client=7, terms=terms, policy=policy, folder=None)
    trained = []
    for number in client.rounds():
        trained.append(number)
        for inputs, targets in loader:
            LOSS(model(inputs), targets).backward()
            optimizer.step()
        if number == 0:  # another federation, which this client joined on the same ledger
            ledger.charge(PIPELINE.cost, dp.Address(SEED.number + 1, 7, 0), steps=STEPS)
    assert trained == [0, 1]
    assert "policy" in str(client.budget_refusal)
    assert federation.server.withdrawn == {7: "budget"}
    assert ledger.guarantee(1e-5).epsilon <= policy.budget.epsilon


def in_two_federations(numbers):
    """Loops over one data set and one ledger, one a federation, each opened while the ledger is empty."""
    ledger = dp.Ledger()
    for number in numbers:
        model, optimizer, loader = private()
        terms, federation = terms_of(optimizer, seed=dp.PublicSeed(number)), Federation(number=number)
        federation.server = terms.server(optimizer.layout, read(model))
        policy = ClientPolicy(budget=dp.Budget(100.0, 1e-5))
        client = FederatedClient(
            optimizer, ledger, federation.send, client=number, terms=terms, policy=policy, folder=None
        )
        yield ledger, federation, client, model, loader


def play(client, model, loader, after=lambda: None):
    for _ in client.rounds(steps=STEPS):
        for inputs, targets in loader:
            LOSS(model(inputs), targets).backward()
            client._optimizer.step()
        after()


def test_two_numbers_of_one_data_set_are_refused_before_the_second_one_is_charged():
    (ledger, _, *first), (_, federation, *second) = in_two_federations([0, 1])
    play(*first)
    with pytest.raises(TermsRefused, match="charges of client 0, and this client has the number 1"):
        play(*second)
    assert ledger.clients == (0,)
    assert federation.server.withdrawn == {1: "policy"}


def test_a_ledger_that_is_marked_as_incomplete_while_the_loop_runs_ends_it_and_the_server_is_told():
    ((ledger, federation, *loop),) = in_two_federations([7])
    with pytest.raises(TermsRefused, match="a second process"):
        play(*loop, after=lambda: ledger.mark_incomplete("a second process"))
    assert federation.server.withdrawn == {7: "policy"}


@pytest.mark.parametrize("why", ["incomplete", "other unit"])
def test_a_ledger_that_takes_no_charge_without_a_policy_ends_the_loop_and_the_server_is_told(why):
    federation, ledger = Federation(), dp.Ledger()
    if why == "incomplete":
        ledger.mark_incomplete("a second process")
    else:
        ledger.charge(dp.Pipeline(unit="client", mechanism=PIPELINE.mechanism).cost, dp.Address(0, 7, 0))
    with pytest.raises((dp.DpcompError, ValueError), match=r"a second process|unit='client'"):
        Process(federation, ledger).train(until=2)
    assert federation.server.withdrawn == {7: "budget"}


def test_a_server_of_another_federation_says_so_where_the_policy_refuses_the_terms_too():
    _, optimizer, _ = private()
    terms, federation, ledger = terms_of(optimizer), Federation(seed=dp.PublicSeed(4)), dp.Ledger()
    policy = ClientPolicy(budget=dp.Budget(terms.guarantee(1e-5).epsilon, 1e-5))
    ledger.charge(PIPELINE.cost, dp.Address(SEED.number + 1, 7, 0), steps=STEPS)
    with pytest.raises(dp.VersionMismatch, match="PublicSeed") as refusal:
        FederatedClient(optimizer, ledger, federation.send, client=7, terms=terms, policy=policy, folder=None)
    assert isinstance(refusal.value.__context__, TermsRefused)


def test_a_client_that_missed_rounds_needs_no_budget_for_them():
    model, optimizer, loader = private()
    terms, federation, ledger = terms_of(optimizer), Federation(), dp.Ledger()
    federation.server = terms.server(optimizer.layout, read(model))
    policy = ClientPolicy(budget=dp.Budget(terms.guarantee(1e-5).epsilon, 1e-5))
    ledger.charge(PIPELINE.cost, dp.Address(SEED.number + 1, 7, 0), steps=STEPS)  # of another federation
    with pytest.raises(TermsRefused, match="3 rounds"):
        FederatedClient(optimizer, ledger, federation.send, client=7, terms=terms, policy=policy, folder=None)
    federation.server.close_round()
    client = FederatedClient(optimizer, ledger, federation.send, client=7, terms=terms, policy=policy, folder=None)
    trained = []
    for number in client.rounds():
        trained.append(number)
        for inputs, targets in loader:
            LOSS(model(inputs), targets).backward()
            optimizer.step()
    assert trained == [1, 2]
    assert ledger.guarantee(1e-5).epsilon <= policy.budget.epsilon
    assert not federation.server.withdrawn


@pytest.mark.parametrize("fault", ["question", "reply", "bit"])
def test_a_lost_message_makes_no_client_withdraw(fault):
    model, optimizer, _ = private()
    terms, federation, ledger = terms_of(optimizer), Federation(), dp.Ledger()
    federation.server, federation.lost = terms.server(optimizer.layout, read(model)), {0: fault, 2: fault}
    policy = ClientPolicy(budget=dp.Budget(terms.guarantee(1e-5).epsilon, 1e-5))
    ledger.charge(PIPELINE.cost, dp.Address(SEED.number + 1, 7, 0), steps=STEPS)  # of another federation
    federation.server.close_round()
    with pytest.raises(TermsRefused, match=r"3 rounds.*the server gave no reply.*since version 0"):
        FederatedClient(optimizer, ledger, federation.send, client=7, terms=terms, policy=policy, folder=None)
    assert federation.sent == 1 and not federation.server.withdrawn
    FederatedClient(optimizer, ledger, federation.send, client=7, terms=terms, policy=policy, folder=None)
    strict = ClientPolicy(budget=policy.budget, least_noise_multiplier=2.0)
    with pytest.raises(TermsRefused, match="noise multiplier"):  # which no version of the server changes
        FederatedClient(optimizer, ledger, federation.send, client=7, terms=terms, policy=strict, folder=None)
    assert federation.server.withdrawn == {7: "policy"}


def test_terms_that_are_not_allowed_are_refused_before_training():
    _, optimizer, _ = private()
    terms, ledger = terms_of(optimizer), dp.Ledger()
    policy, federation = ClientPolicy(budget=dp.Budget(0.1, 1e-5)), Federation()
    federation.server = terms.server(optimizer.layout, read(optimizer.model))
    with pytest.raises(TermsRefused):
        FederatedClient(optimizer, ledger, federation.send, client=7, terms=terms, policy=policy, folder=None)
    assert ledger.mark.count == 0
    assert federation.server.withdrawn == {7: "policy"}
    with pytest.raises(ValueError, match="learning rate"):
        FederatedClient(optimizer, ledger, None, client=7, terms=terms_of(optimizer, learning_rate=0.2), folder=None)
    other = dp.Pipeline(sampling=dp.Poisson(0.5), mechanism=(dp.Clip(1.0), dp.Gaussian(0.9)))
    wrong = FederationTerms.agree(other, optimizer.layout, read(optimizer.model), rounds=3, steps=STEPS, clients=9)
    with pytest.raises(ValueError, match="pipeline of the terms"):
        FederatedClient(optimizer, ledger, None, client=7, terms=wrong, folder=None)
    for arguments in ({}, {"seed": SEED, "terms": terms}, {"seed": SEED, "policy": policy}):
        with pytest.raises(TypeError, match="terms"):
            FederatedClient(optimizer, ledger, None, client=7, folder=None, **arguments)
