"""FederationTerms: one file from which both ends are built, and which tells federations apart."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import tomli_w

import dpcomp as dp
from dpcomp.core.calls import as_toml_table
from dpcomp.core.errors import ConfigError, VersionMismatch
from dpcomp.federated import (
    Participant,
    Reject,
    ReplyReceived,
    Server,
    ServerOptimizer,
    TimedOut,
    Trained,
    TrustedRelease,
    Weigh,
)
from dpcomp.federated.server.optimizers import ServerAdam
from dpcomp.terms import FederationTerms

D = 40
FIRST = np.linspace(-1, 1, D).astype(np.float32)
LAYOUT = {"weight": (6, 6), "bias": (4,)}
PIPELINES = {
    "example": dp.Pipeline(
        sampling=dp.Poisson(0.1),
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
        codec=dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(4), entropy=dp.RangeCoder()),
    ),
    "support first": dp.Pipeline(mechanism=(dp.RandomK(0.1, per="client"), dp.Clip(1.0), dp.Gaussian(2.0))),
    "client": dp.Pipeline(unit="client", mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), feedback=False),
    "trusted": dp.Pipeline(
        unit="client", trust="server", sampling=dp.Poisson(0.5), mechanism=(dp.Clip(1.0), dp.Gaussian(1.0))
    ),
}


BY_TIME = {"least_updates": 0, "round_seconds": 5.0}  # as the rounds of a trusted server are closed


def agree(pipeline=PIPELINES["example"], **others):
    values = {"rounds": 3, "steps": 1, "clients": 5} | others
    return FederationTerms.agree(pipeline, LAYOUT, FIRST, **values)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize(
    "others",
    [
        {},
        {"learning_rate": 0.1, "largest_update": 1220.0, "least_updates": 2, "round_seconds": 30.0},
        {"server_rule": ServerAdam(learning_rate=0.01, behind_feedback=True), "seed": dp.PublicSeed(2**64 - 1)},
        {"server_rule": ServerOptimizer(learning_rate=0.5), "late_policy": Weigh(max_age=3)},
    ],
)
def test_a_file_gives_back_the_terms(name, others, tmp_path):
    if name == "trusted":
        others = {key: value for key, value in (others | BY_TIME).items() if key != "late_policy"}
    terms = agree(PIPELINES[name], **others)
    terms.write(tmp_path / "federation.toml")
    read = FederationTerms.read(tmp_path / "federation.toml")
    assert read == terms
    assert (read.digest, read.run_id) == (terms.digest, terms.run_id)
    terms.write(tmp_path / "federation.toml")  # the same again changes nothing
    with pytest.raises(dp.DpcompError, match="holds other terms"):
        agree(PIPELINES[name], **others).write(tmp_path / "federation.toml")


def test_every_term_is_in_the_digest():
    terms = agree(PIPELINES["example"], learning_rate=0.1, largest_update=9.0, round_seconds=1.0)
    changed = {
        "pipeline": PIPELINES["support first"],
        "parameters": D + 1,
        "layout": bytes(8),
        "first_model": bytes(8),
        "nonce": bytes(16),
        "seed": dp.PublicSeed(1),
        "rounds": 4,
        "steps": 2,
        "clients": 6,
        "learning_rate": None,
        "server_rule": ServerOptimizer(learning_rate=0.5),
        "late_policy": Weigh(max_age=1),
        "largest_update": 9.5,
        "least_updates": 2,
        "round_seconds": 2.0,
    }
    assert set(changed) == set(terms.__dataclass_fields__)
    digests = {replace(terms, **{name: value}).digest for name, value in changed.items()}
    assert len(digests | {terms.digest}) == len(changed) + 1


@pytest.mark.parametrize("name", ["example", "support first", "client"])
def test_both_ends_are_built_from_the_terms(name):
    pipeline = PIPELINES[name]
    terms = agree(pipeline)
    server, ledger = terms.server(LAYOUT, FIRST), dp.Ledger()
    client = terms.participant(LAYOUT, FIRST, client=4, ledger=ledger)
    assert server.memory.genesis.run_id == terms.run_id == client.state.memory.genesis.run_id
    for message in client.handle(TimedOut()):
        client.handle(ReplyReceived(server.handle(message, sender=4)))
    memory = client.state.memory
    permit = ledger.charge(pipeline.cost, memory.address)
    update = pipeline.release([np.ones((1, D), np.float32)], memory, dp.SecretSeed(), permit)
    for message in client.handle(Trained(update)):
        client.handle(ReplyReceived(server.handle(message, sender=4)))
    assert server.memory.link(4).count == client.state.memory.link.count == 1


@pytest.mark.parametrize(
    "change", [{"rounds": 4}, {"learning_rate": 0.2}, {"nonce": bytes(16)}, {"largest_update": 1.0}]
)
def test_an_end_with_other_terms_is_refused_by_the_other(change):
    terms = agree()
    server, other = terms.server(LAYOUT, FIRST), replace(terms, **change)
    client = other.participant(LAYOUT, FIRST, client=4, ledger=dp.Ledger())
    (question,) = client.handle(TimedOut())
    with pytest.raises(VersionMismatch, match="another federation"):
        client.handle(ReplyReceived(server.handle(question, sender=4)))
    assert server.refusals == {"run": 1}


def test_two_agreements_are_two_federations_with_two_seeds():
    one, two = agree(), agree()
    assert one.run_id != two.run_id
    assert one.seed != two.seed


def test_a_client_goes_on_from_its_folder_under_its_terms_alone(tmp_path):
    terms = agree()
    with dp.Ledger.create(tmp_path / "ledger.db") as ledger:
        client = terms.participant(LAYOUT, FIRST, client=4, ledger=ledger, folder=tmp_path / "client")
        assert isinstance(client, Participant)
        client.handle(TimedOut())
        terms.participant(LAYOUT, FIRST, client=4, ledger=ledger, folder=tmp_path / "client")
        with pytest.raises(dp.DpcompError, match="give another folder"):
            agree(seed=terms.seed).participant(LAYOUT, FIRST, client=4, ledger=ledger, folder=tmp_path / "client")


def test_a_trusted_server_needs_its_secrets_and_others_take_none():
    trusted, other = agree(PIPELINES["trusted"], **BY_TIME), agree()
    with pytest.raises(ValueError, match="give both"):
        trusted.server(LAYOUT, FIRST)
    with pytest.raises(ValueError, match="neither elsewhere"):
        other.server(LAYOUT, FIRST, secret=dp.SecretSeed(), ledger=dp.Ledger())
    ledger = dp.Ledger()
    server = trusted.server(LAYOUT, FIRST, secret=dp.SecretSeed(), ledger=ledger)
    server.close_round()
    assert ledger.guarantee(1e-5).epsilon == trusted.pipeline.guarantee(1, 1e-5).epsilon


def test_another_model_is_refused_before_anything_is_made():
    terms = agree()
    with pytest.raises(VersionMismatch, match="begin with the weights that were agreed on"):
        terms.server(LAYOUT, FIRST + 1)
    with pytest.raises(VersionMismatch, match="same names and shapes"):
        terms.server({"weight": (4, 9), "bias": (4,)}, FIRST)
    with pytest.raises(ValueError, match=r"shape \(39,\)"):
        terms.server(LAYOUT, FIRST[1:])
    with pytest.raises(ValueError, match="client"):
        terms.participant(LAYOUT, FIRST, client=5, ledger=dp.Ledger())


@dataclass(frozen=True)
class OwnRule(ServerOptimizer):
    """A rule that a server could have, and that no file of terms can name."""


@dataclass(frozen=True)
class OwnLatePolicy:
    """The same for late updates."""

    max_age: int = 2

    def weight(self, age):
        return 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rounds": 0}, "rounds"),
        ({"rounds": 2.5}, "rounds"),
        ({"clients": 2**32}, "clients"),
        ({"steps": 0}, "steps"),
        ({"rounds": 10**9, "steps": 10**9}, "product"),
        ({"least_updates": 6}, "least_updates"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"largest_update": -1.0}, "largest_update"),
        ({"round_seconds": float("inf")}, "round_seconds"),
        ({"seed": 3}, "PublicSeed"),
        ({"server_rule": Weigh(max_age=3)}, "server_rule"),
        ({"late_policy": ServerAdam()}, "late_policy"),
        ({"late_policy": 3}, "late_policy"),
        ({"late_policy": Reject}, "late_policy"),
        ({"server_rule": ServerAdam}, "server_rule"),
        ({"server_rule": OwnRule()}, r"server_rule=OwnRule.*ServerOptimizer"),
        ({"late_policy": OwnLatePolicy()}, r"late_policy=OwnLatePolicy.*Weigh"),
        ({"pipeline": PIPELINES["client"], "steps": 2}, "steps=1"),
    ],
)
def test_values_that_make_no_terms_are_refused(change, words):
    with pytest.raises((TypeError, ValueError), match=words):
        agree(**change)


SHARED = dp.Pipeline(
    unit="client",
    trust="server",
    sampling=dp.Poisson(0.1),
    mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
    codec=dp.Codec(quantize=dp.ExactGaussian(cohort=5)),
    downlink=dp.Codec(),
    feedback=False,
)
DIFFERENCES = dp.Pipeline(
    mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), codec=dp.Codec(sparsify=dp.TopK(0.2)), feedback=dp.EF21()
)


@pytest.mark.parametrize(
    ("pipeline", "values", "words"),
    [
        (PIPELINES["trusted"], {"round_seconds": 5.0}, "least_updates=1 after seconds=5.0"),
        (PIPELINES["trusted"], {"least_updates": 0}, "least_updates=0 after seconds=None"),
        (PIPELINES["trusted"], BY_TIME | {"late_policy": Weigh(max_age=1)}, r"Weigh\(.*under a trusted server"),
        (SHARED, BY_TIME | {"clients": 100}, r"ExactGaussian\(cohort=5\): with 100 clients"),
        (PIPELINES["example"], {"server_rule": ServerOptimizer(momentum=0.9)}, "behind feedback"),
        (DIFFERENCES, {"late_policy": Weigh(max_age=2)}, "a difference that counts less"),
    ],
)
def test_terms_with_which_no_server_starts_are_refused_where_they_are_made_and_read(pipeline, values, words, tmp_path):
    with pytest.raises((dp.NotPrivate, ValueError), match=words) as agreed:
        agree(pipeline, **values)
    fitting = BY_TIME if pipeline.trust == "server" else {}
    table = {name: value for name, value in agree(pipeline, **fitting).to_table().items() if name not in BY_TIME}
    table |= {name: as_toml_table(value, name) for name, value in values.items()}
    (tmp_path / "federation.toml").write_text(tomli_w.dumps(table))
    with pytest.raises((dp.NotPrivate, ConfigError), match=words):
        FederationTerms.read(tmp_path / "federation.toml")
    if values.keys() <= BY_TIME.keys():
        return  # the policy that closes rounds refuses them, and not the server
    keys = dp.DitherKeys(bytes(32)) if pipeline is SHARED else None
    release = TrustedRelease(pipeline=pipeline, secret=dp.SecretSeed(), ledger=dp.Ledger(), divisor=1.0)
    with pytest.raises(type(agreed.value)) as started:
        Server(
            pipeline.channel,
            pipeline.init_server(LAYOUT, dp.PublicSeed(0), dither_keys=keys),
            FIRST,
            late_policy=values.get("late_policy", Reject()),
            optimizer=values.get("server_rule", ServerOptimizer()),
            clients=values.get("clients", 5),
            trusted_release=release if pipeline.trust == "server" else None,
        )
    assert str(started.value) == str(agreed.value)


@pytest.mark.parametrize(("exponent", "words"), [(0.0, ""), (1e-3, "a difference that counts less")])
def test_terms_of_others_that_name_an_endless_lateness_are_read_at_once(exponent, words):
    table = agree(DIFFERENCES).to_table() | {"late_policy": {"Weigh": {"max_age": 2**32 - 1, "exponent": exponent}}}
    with pytest.raises(ConfigError, match=words) if words else nullcontext():
        FederationTerms.from_table(table)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"round": 3}, "nearest is 'rounds'"),
        ({"format": 2}, "format = 2"),
        ({"nonce": "zz"}, "nonce"),
        ({"layout": "00"}, "layout"),
        ({"rounds": "many"}, "rounds"),
        ({"seed": -1}, "seed"),
        ({"server_rule": {"ServerSGD": {}}}, "ServerOptimizer"),
        ({"late_policy": {"Keep": {}}}, "late_policy"),
        ({"pipeline": {"mechanism": [{"Clip": {"norm": 1.0}}]}}, "noise"),
        ({"rounds": None}, "rounds"),
    ],
)
def test_a_bad_file_is_refused_by_name(change, words, tmp_path):
    table = agree().to_table() | change
    (tmp_path / "federation.toml").write_text(tomli_w.dumps({k: v for k, v in table.items() if v is not None}))
    with pytest.raises((ConfigError, dp.NotPrivate), match=words):
        FederationTerms.read(tmp_path / "federation.toml")


def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path):
    (tmp_path / "federation.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"federation\.toml is no TOML"):
        FederationTerms.read(tmp_path / "federation.toml")


def test_a_number_is_the_same_term_whatever_its_type(tmp_path):
    terms = agree(learning_rate=1, largest_update=5, round_seconds=30)
    table = terms.to_table()
    again = FederationTerms.from_table(table | {"learning_rate": 1, "largest_update": 5.0})
    assert again.run_id == terms.run_id


def test_another_number_of_parameters_than_that_of_the_layers_is_refused():
    terms = agree()
    with pytest.raises(VersionMismatch, match="build the model of the federation"):
        replace(terms, parameters=D + 1).server(LAYOUT, FIRST)


@pytest.mark.parametrize("content", ["format = " + 5000 * "9", "format = " + 5000 * "[" + 5000 * "]"])
def test_what_the_reader_of_toml_gives_up_on_is_a_clear_error(content, tmp_path):
    (tmp_path / "federation.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"federation\.toml is no TOML"):
        FederationTerms.read(tmp_path / "federation.toml")


@pytest.mark.parametrize("change", [{"pipeline": []}, {"pipeline": "x"}, {"format": True}, {"format": 1.0}])
def test_a_table_of_another_form_is_refused(change):
    with pytest.raises(ConfigError, match="the terms"):
        FederationTerms.from_table(agree().to_table() | change)
