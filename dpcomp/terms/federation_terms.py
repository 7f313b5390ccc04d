"""FederationTerms: what both ends of a federation must agree on, as the one file that both are built from."""

import hashlib
import json
import math
import os
import secrets
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from jaxtyping import Float32

from dpcomp.core.calls import as_toml_table, check_keys, from_table
from dpcomp.core.checks import check_type, real_number, whole_number
from dpcomp.core.errors import ConfigError, DpcompError, VersionMismatch
from dpcomp.core.layout import Layout
from dpcomp.core.randomness import LARGEST_SEED, DitherKey, DitherKeys, PublicSeed, SecretSeed
from dpcomp.core.storage import write_whole
from dpcomp.federated.absence import AbsencePolicy, Keep
from dpcomp.federated.participant import Participant
from dpcomp.federated.server import Server
from dpcomp.federated.server.aggregation import TrustedRelease
from dpcomp.federated.server.cohort import refuse_large_cohorts
from dpcomp.federated.server.configuration import refuse_contradictions, refuse_observable_rounds
from dpcomp.federated.server.late import LatePolicy, Reject, Weigh
from dpcomp.federated.server.optimizers import ServerAdagrad, ServerAdam, ServerOptimizer, ServerRule, ServerYogi
from dpcomp.pipeline import Pipeline
from dpcomp.privacy.accounting.events import MOST_STEPS
from dpcomp.privacy.guarantee import Guarantee
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.wire.memory import NO_DIGEST, ClientMemory, Genesis

FORMAT = 1
NONCE_BYTES = 16
MOST_CLIENTS = 2**32 - 2
_RULES = (ServerOptimizer, ServerAdam, ServerYogi, ServerAdagrad)
_LATE_POLICIES = (Reject, Weigh)
_CALLS: dict[str, Callable[..., Any]] = {call.__name__: call for call in (*_RULES, *_LATE_POLICIES)}
_BYTES = {"nonce": NONCE_BYTES, "layout": len(NO_DIGEST), "first_model": len(NO_DIGEST)}  # fields, in hexadecimal


@dataclass(frozen=True, kw_only=True)
class FederationTerms:
    """What both ends of a federation must agree on: pipeline, layers, first model, seed, rounds, rates and limits.

    `agree` makes the terms of a new federation, `write` their file, and `read` reads it at the other end. Both ends are
    built from it: `server`, `participant`. Eight bytes of the digest of all terms are the run id of the federation, so
    ends with other terms refuse each other before anything is decoded.

    The file holds nothing secret: the public seed decides masks and dither that all may know. What the noise and the
    secrecy of a cohort rest on, `SecretSeed` and `DitherKeys`, is given to `server` and `participant` apart.

    Args:
        pipeline: The pipeline of both ends.
        parameters: d, the number of coordinates of the model.
        layout: The digest of the model's layers, `Layout.digest`.
        first_model: The digest of the first model, 8 bytes, as `Genesis` has it.
        nonce: 16 random bytes that tell this federation from all others of the same configuration.
        seed: The public seed.
        rounds: The number of rounds of the federation.
        steps: The number of releases of a client in a round: its local steps if the unit is the example, else 1.
        clients: The number of enrolled clients, which have the numbers below it.
        learning_rate: What a client multiplies a release by; None if it is not agreed on.
        server_rule: How the server makes a step of a round's mean.
        late_policy: What the server does with an update that arrives after its round.
        largest_update: The largest L2 norm of a decoded update, as `largest_update(...)` computes it; None for any.
        least_updates: The number of updates without which no round is closed because of its time; 0 where the server
            is trusted, which closes rounds by time alone.
        round_seconds: How long a round stays open for all `clients`, in seconds; None for ever, where the server is not
            trusted.

    Raises:
        TypeError: A value is of another type.
        ValueError: A number lies outside its range, or two values do not fit together.
        NotPrivate: The server is trusted, and would accept late updates or close rounds by what has come.

    Examples:
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.terms import FederationTerms
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
        >>> first_model = np.zeros(10, np.float32)
        >>> terms = FederationTerms.agree(pipeline, 10, first_model, rounds=20, steps=5, clients=3)
        >>> print(terms.guarantee(delta=1e-5))  # doctest: +ELLIPSIS
        ε ≤ ... at δ = 1e-05 · one example, add/remove · Poisson 0.1 × 100 · ...
        >>> server = terms.server(10, first_model)
        >>> client = terms.participant(10, first_model, client=2, ledger=dp.Ledger())
    """

    pipeline: Pipeline
    parameters: int
    layout: bytes
    first_model: bytes
    nonce: bytes
    seed: PublicSeed
    rounds: int
    steps: int
    clients: int
    learning_rate: float | None = None
    server_rule: ServerRule = field(default_factory=ServerOptimizer)
    late_policy: LatePolicy = field(default_factory=Reject)
    largest_update: float | None = None
    least_updates: int = 1
    round_seconds: float | None = None

    def __post_init__(self):
        where = type(self).__name__
        check_type(self.pipeline, Pipeline, f"{where}(pipeline={self.pipeline!r}): give a dp.Pipeline")
        check_type(self.seed, PublicSeed, f"{where}(seed={self.seed!r}): give a dp.PublicSeed")
        for name, length in _BYTES.items():
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != length:
                raise ValueError(f"{where}({name}={value!r}): give {length} bytes")
        for name, least, most in (
            ("parameters", 1, 2**32 - 1),
            ("rounds", 1, None),
            ("steps", 1, MOST_STEPS),
            ("clients", 1, MOST_CLIENTS),
            ("least_updates", 0, None),
        ):
            # As Python's, since a product of NumPy's small integers, such as that of rounds and steps, may overflow.
            value = whole_number(getattr(self, name), f"{where}({name})", least=least, most=most)
            object.__setattr__(self, name, value)
        whole_number(self.least_updates, f"{where}(least_updates)", least=0, most=self.clients)
        for name in ("learning_rate", "largest_update", "round_seconds"):
            value = getattr(self, name)
            if value is None:
                continue
            if not 0 < real_number(value, f"{where}({name})", "a number above 0") < math.inf:
                raise ValueError(f"{where}({name}={value}): give a finite number above 0, or None")
            object.__setattr__(self, name, float(value))  # or 1 and 1.0 would be other terms
        for name, known in (("server_rule", _RULES), ("late_policy", _LATE_POLICIES)):
            value = getattr(self, name)
            if type(value) not in known:  # an own one has no name that the file of the terms could be read by
                names = ", ".join(f"{each.__name__}(...)" for each in known)
                raise TypeError(f"{where}({name}={value!r}): give one of {names}")
        if self.rounds * self.steps > MOST_STEPS:
            raise ValueError(
                f"{where}(rounds={self.rounds}, steps={self.steps}): their product, the releases of a client, is above "
                f"{MOST_STEPS:,}"
            )
        trust = self.pipeline.trust_model
        if self.steps != 1 and not trust.releases_local_steps:
            raise ValueError(
                f"{where}(steps={self.steps}): with unit={trust.unit!r} a client releases its whole update, once a "
                "round: give steps=1"
            )
        refuse_contradictions(self.pipeline.channel, self.server_rule, self.late_policy, self.clients)
        refuse_observable_rounds(self.pipeline.channel, seconds=self.round_seconds, least_updates=self.least_updates)
        if trust.server_sees_clean:
            refuse_large_cohorts(self.pipeline, self.clients)

    @classmethod
    def agree(
        cls,
        pipeline: Pipeline,
        layout: Any,
        first_model: Float32[np.ndarray, "d"],
        *,
        rounds: int,
        steps: int,
        clients: int,
        seed: PublicSeed | None = None,
        **others: Any,
    ) -> "FederationTerms":
        """Make the terms of a new federation, and draw what tells it from all others.

        Args:
            pipeline: The pipeline of both ends.
            layout: The number of coordinates d, a mapping from layer name to shape, or a `Layout`.
            first_model: The first model as a (d,) vector, the same at all ends.
            rounds: The number of rounds.
            steps: The number of releases of a client in a round.
            clients: The number of enrolled clients.
            seed: The public seed; None draws one, so that no ledger takes two federations for one.
            others: The other fields of `FederationTerms`, by name.

        Raises:
            TypeError, ValueError, NotPrivate: As the constructor does.
        """
        made = Layout.of(layout)
        _check_model(first_model, made)
        return cls(
            pipeline=pipeline,
            parameters=made.size,
            layout=made.digest,
            first_model=Genesis.of(first_model).first_model,
            nonce=secrets.token_bytes(NONCE_BYTES),
            seed=PublicSeed(secrets.randbelow(LARGEST_SEED // 2)) if seed is None else seed,
            rounds=rounds,
            steps=steps,
            clients=clients,
            **others,
        )

    @property
    def digest(self) -> bytes:
        """32 bytes that identify all terms: SHA-256 of them as JSON with sorted keys."""
        return hashlib.sha256(json.dumps(self.to_table(), sort_keys=True).encode()).digest()

    @property
    def run_id(self) -> bytes:
        """The first 8 bytes of the digest, which name the federation in every reply."""
        return self.digest[: len(NO_DIGEST)]

    def guarantee(self, delta: float, population: int | None = None) -> Guarantee:
        """Return the guarantee of all rounds, for a client that takes part in each.

        Args:
            delta: δ, in (0, 1).
            population: The public number of units N; the guarantee then says whether δ is below 1/N.

        Raises:
            TypeError, ValueError: As `Pipeline.guarantee` does.
        """
        return self.pipeline.guarantee(self.rounds * self.steps, delta, population=population)

    def init_client(
        self,
        layout: Any,
        first_model: Float32[np.ndarray, "d"],
        client: int,
        dither_key: DitherKey | None = None,
    ) -> ClientMemory:
        """Make the memory of a new client.

        Args:
            layout: As for `agree`.
            first_model: As for `agree`.
            client: The client's number.
            dither_key: The client's secret with the server, for `dp.ExactGaussian`.

        Raises:
            VersionMismatch: The layers or the first model are others than those of the terms.
            ValueError: `client` is not the number of an enrolled client.
        """
        self.check_model(layout, first_model)
        client = whole_number(client, "client", least=0, most=self.clients - 1)
        memory = self.pipeline.init_client(
            layout, self.seed, client, first_model=first_model, run_id=self.run_id, dither_key=dither_key
        )
        return replace(memory, rounds=self.rounds)

    def participant(
        self,
        layout: Any,
        first_model: Float32[np.ndarray, "d"],
        *,
        client: int,
        ledger: Ledger,
        folder: str | os.PathLike[str] | None = None,
        absence_policy: AbsencePolicy = Keep(),
        dither_key: DitherKey | None = None,
    ) -> Participant:
        """Make a client of the federation.

        Args:
            layout: As for `agree`.
            first_model: As for `agree`.
            client: The client's number.
            ledger: The ledger that the client's releases are charged to.
            folder: Where the client's state is saved, and continued from; None keeps it in memory.
            absence_policy: What the client keeps of its residual after rounds that it missed.
            dither_key: The client's secret with the server, for `dp.ExactGaussian`.

        Raises:
            VersionMismatch, ValueError: As `init_client` does.
            DpcompError: As `Participant` does.
        """
        memory = self.init_client(layout, first_model, client, dither_key)
        return Participant(
            self.pipeline.channel,
            memory,
            first_model,
            ledger,
            folder=folder,
            absence_policy=absence_policy,
            all_rounds=(self.pipeline.cost, self.rounds * self.steps),
        )

    def server(
        self,
        layout: Any,
        first_model: Float32[np.ndarray, "d"],
        *,
        folder: str | os.PathLike[str] | None = None,
        secret: SecretSeed | None = None,
        ledger: Ledger | None = None,
        dither_keys: DitherKeys | None = None,
    ) -> Server:
        """Make the server of the federation.

        Args:
            layout: As for `agree`.
            first_model: As for `agree`.
            folder: Where the server's state is saved, and continued from; None keeps it in memory.
            secret: Where the noise and the cohorts of a trusted server come from; None if the server is not trusted.
            ledger: The ledger that a trusted server's releases are charged to; None if the server is not trusted.
            dither_keys: The secrets with all clients, for `dp.ExactGaussian`.

        Raises:
            VersionMismatch: The layers or the first model are others than those of the terms.
            ValueError: `secret` and `ledger` are missing although the server is trusted, or given although it is not.
            DpcompError, NotPrivate: As `Server` does.
        """
        self.check_model(layout, first_model)
        trusted, sampling = self.pipeline.trust_model.server_sees_clean, self.pipeline.sampling
        if trusted != (secret is not None) or trusted != (ledger is not None):
            raise ValueError(
                f"server(secret={secret}, ledger={ledger}) with trust={self.pipeline.trust!r}: give both where the "
                "server is trusted, which draws the noise, and neither elsewhere"
            )
        release = None
        if secret is not None and ledger is not None:
            expected = self.clients * (1.0 if sampling is None else sampling.rate)
            release = TrustedRelease(pipeline=self.pipeline, secret=secret, ledger=ledger, divisor=expected)
        memory = self.pipeline.init_server(
            layout, self.seed, first_model=first_model, run_id=self.run_id, dither_keys=dither_keys
        )
        return Server(
            self.pipeline.channel,
            replace(memory, rounds=self.rounds),
            first_model,
            optimizer=self.server_rule,
            late_policy=self.late_policy,
            trusted_release=release,
            clients=self.clients,
            largest_update=math.inf if self.largest_update is None else self.largest_update,
            folder=folder,
        )

    def check_model(self, layout: Any, first_model: Float32[np.ndarray, "d"]) -> None:
        """Refuse layers or a first model that are not those of the terms.

        Args:
            layout: As for `agree`.
            first_model: As for `agree`.

        Raises:
            VersionMismatch: They are others.
        """
        made = Layout.of(layout)
        _check_model(first_model, made)
        if (made.digest, made.size) != (self.layout, self.parameters):
            raise VersionMismatch(
                f"the model has {made.size:,} coordinates in layers of digest {made.digest.hex()}; the terms are for "
                f"{self.parameters:,} coordinates of digest {self.layout.hex()}: build the model of the federation, "
                "with the same names and shapes in the same order",
                reason="pipeline",
            )
        digest = Genesis.of(first_model).first_model
        if digest != self.first_model:
            raise VersionMismatch(
                f"the first model has the digest {digest.hex()}, and that of the terms {self.first_model.hex()}: begin "
                "with the weights that were agreed on",
                reason="model",
            )

    def to_table(self) -> dict[str, Any]:
        """Return the terms as the table of a TOML file: plain types, bytes in hexadecimal, no field that is None."""
        table: dict[str, Any] = {"format": FORMAT}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bytes):
                table[item.name] = value.hex()
            elif isinstance(value, PublicSeed):
                table[item.name] = value.number
            elif isinstance(value, Pipeline):
                table[item.name] = value.to_table()
            elif value is not None:
                table[item.name] = as_toml_table(value, item.name)
        return table

    @classmethod
    def from_table(cls, table: Mapping[str, Any], parts: Iterable[type] = ()) -> "FederationTerms":
        """Make the terms that a table describes.

        Args:
            table: Plain types, as `to_table` returns them.
            parts: Your own classes that the pipeline names.

        Raises:
            ConfigError: A key is unknown or missing, or a value refused; or the format is of another dpcomp.
            NotPrivate: The pipeline has no guarantee; or as the constructor raises it.
        """
        where, parts = "the terms", tuple(parts)
        if type(table.get("format")) is not int or table["format"] != FORMAT:
            raise ConfigError(
                f"{where} have format = {table.get('format')!r}, and this dpcomp reads format = {FORMAT}: read "
                "them with the dpcomp that the federation runs"
            )
        check_keys(table, ("format", *(item.name for item in fields(cls))), where)
        values: dict[str, Any] = {}
        for item in fields(cls):
            if item.name not in table:
                continue
            value = table[item.name]
            try:
                if item.name in _BYTES:
                    values[item.name] = bytes.fromhex(value)
                elif item.name == "seed":
                    values[item.name] = PublicSeed(value)
                elif item.name == "pipeline":
                    check_type(value, dict, "write a table, [pipeline]")
                    values[item.name] = Pipeline.from_table(value, parts)
                else:
                    values[item.name] = from_table(value, item.name, _CALLS)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{where}: {item.name} = {value!r}: {error}") from error
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str], parts: Iterable[type] = ()) -> "FederationTerms":
        """Read the terms of a file, such as `federation.toml`.

        Args:
            path: The file.
            parts: Your own classes that its pipeline names.

        Raises:
            ConfigError: The file is no TOML, or describes no terms; the message names it.
            NotPrivate: As `from_table` does.
            OSError: The file can't be read.
        """
        return cls.from_table(read_toml(path), parts)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the terms to a file, which must not exist: a federation keeps its terms.

        Raises:
            DpcompError: The file exists, and holds other terms.
            OSError: The file can't be written.
        """
        content = tomli_w.dumps(self.to_table()).encode()
        if Path(path).exists():
            if Path(path).read_bytes() != content:
                raise DpcompError(f"{path} holds other terms: a federation keeps its terms. Give another path")
            return
        write_whole(Path(path), content)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file as a table.

    Raises:
        ConfigError: The file is no TOML.
        OSError: The file can't be read.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # besides what is no TOML: numbers too long, and tables too deep
        raise ConfigError(f"{path} is no TOML: {error}") from error


def _check_model(model: Float32[np.ndarray, "d"], layout: Layout) -> None:
    if not isinstance(model, np.ndarray) or model.shape != (layout.size,):
        raise ValueError(
            f"the first model has shape {getattr(model, 'shape', type(model).__name__)}, and the layers "
            f"{layout.size:,} coordinates: give a float32 vector of shape ({layout.size},)"
        )
