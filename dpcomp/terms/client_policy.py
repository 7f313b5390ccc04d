"""ClientPolicy: what a client allows, held against the terms of a federation before it trains."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import tomli_w

from dpcomp.core.address import Address, address_of_all_rounds
from dpcomp.core.calls import check_keys
from dpcomp.core.checks import check_type, real_number, whole_number
from dpcomp.core.errors import BudgetExhausted, ConfigError, TermsRefused
from dpcomp.core.storage import write_whole
from dpcomp.privacy.accounting.events import gaussians_in
from dpcomp.privacy.claim import ROUNDING
from dpcomp.privacy.cost import Cost
from dpcomp.privacy.guarantee import rounded_up
from dpcomp.privacy.ledger.budget import Budget
from dpcomp.privacy.ledger.ledger import Ledger
from dpcomp.privacy.ledger.permit import Permit
from dpcomp.privacy.trust import Trust, Unit
from dpcomp.terms.federation_terms import FederationTerms, read_toml


@dataclass(frozen=True, kw_only=True)
class ClientPolicy:
    """What a client allows of a federation: what it may cost, how little noise, and who may be trusted.

    The policy is the client's own, in a file such as `client.toml`, and no server can change it. `check` holds terms
    against it before anything is trained or charged.

    **Privacy:** the budget is that of a ledger, so all federations of one client's data share one. Where the server is
    trusted, which charges a ledger of its own, `charge_all_rounds` records in the client's what the federation costs;
    a federation that is not recorded there counts in no other one's check.

    Args:
        budget: The largest (ε, δ) of everything that the client's ledger holds and this federation would add.
        least_noise_multiplier: The smallest noise multiplier of a release, 0 or more.
        trust: Who may be trusted: "nobody", "server" or both.
        units: What a neighbour may add or remove: "example", "client" or both.

    Raises:
        TypeError: A value is of another type.
        ValueError: A number lies outside its range, or a word is unknown.

    Examples:
        >>> import numpy as np
        >>> import dpcomp as dp
        >>> from dpcomp.terms import ClientPolicy, FederationTerms
        >>> pipeline = dp.Pipeline(mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1))
        >>> terms = FederationTerms.agree(pipeline, 10, np.zeros(10, np.float32), rounds=200, steps=5, clients=3)
        >>> policy = ClientPolicy(budget=dp.Budget(epsilon=8.0, delta=1e-5), least_noise_multiplier=0.5)
        >>> policy.check(terms, dp.Ledger(), client=2)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        dpcomp.core.errors.TermsRefused: 200 rounds of 5 releases ...
    """

    budget: Budget
    least_noise_multiplier: float = 0.0
    trust: tuple[Trust, ...] = ("nobody",)
    units: tuple[Unit, ...] = ("example", "client")

    def __post_init__(self):
        where = type(self).__name__
        check_type(self.budget, Budget, f"{where}(budget={self.budget!r}): give a dp.Budget(epsilon, delta)")
        least = real_number(self.least_noise_multiplier, f"{where}(least_noise_multiplier)", "a number from 0 on")
        if not least >= 0:
            raise ValueError(f"{where}(least_noise_multiplier={least}): give a number from 0 on")
        object.__setattr__(self, "least_noise_multiplier", least)
        for name, known in (("trust", get_args(Trust)), ("units", get_args(Unit))):
            given = getattr(self, name)
            if not isinstance(given, tuple) or not given or not all(each in known for each in given):
                raise ValueError(f"{where}({name}={given!r}): give a tuple of {', '.join(map(repr, known))}")

    def check(self, terms: FederationTerms, ledger: Ledger, client: int, version: int = 0) -> None:
        """Refuse terms that this policy does not allow; nothing is charged.

        What counts is what the ledger holds, and the rounds from the server's version on that it was not charged for.
        A client's budget is spent by its own releases alone, so a round that it missed costs nothing. Should a server
        that was set back play such a round again, `refuse_round` holds it against the policy.

        A trusted server charges every round to all clients, whoever sends, so there all rounds count, and they count
        once `charge_all_rounds` has charged them: call it before the first update, without which none is sent. A server
        that has closed more rounds than those is refused.

        Args:
            terms: The terms of the federation.
            ledger: The client's ledger, also where the server is trusted and has another one.
            client: The number of the client in the federation.
            version: The version of the server, as far as the client knows it: how many rounds are closed.

        Raises:
            TermsRefused: They ask for more trust, have less noise, or would cost more than the policy allows; or the
                ledger is incomplete, or holds charges of another client's number, unit or trust, which would not be
                added up; or a trusted server has closed more rounds than they say; or the ledger was charged for all
                rounds of other terms in their place.
            TypeError: `terms` or `ledger` is none, or `client` or `version` not a whole number.
            ValueError: `client` is not the number of an enrolled client, or `version` negative.
        """
        check_type(terms, FederationTerms, f"check(terms={terms!r}): give the FederationTerms of the federation")
        check_type(ledger, Ledger, f"check(ledger={ledger!r}): give the client's ledger, whoever is trusted")
        client = whole_number(client, "check(client)", least=0, most=terms.clients - 1)
        version = whole_number(version, "check(version)", least=0)
        cost, trust = terms.pipeline.cost, terms.pipeline.trust_model
        if trust.trust not in self.trust:
            raise TermsRefused(
                f"the terms have trust={trust.trust!r}, and this client allows {' or '.join(self.trust)}: take part in "
                "a federation whose clients add the noise, or allow it in the client's policy"
            )
        if trust.unit not in self.units:
            raise TermsRefused(
                f"the terms protect one {trust.unit}, and this client asks that one {' or '.join(self.units)} is "
                "protected: take part in another federation, or allow it in the client's policy"
            )
        # A cost holds the multiplier less what rounding may take of it, which nobody who writes a policy thinks of.
        noise = min(multiplier for _, multiplier in gaussians_in(cost.event)) * (1 + ROUNDING)
        if noise < self.least_noise_multiplier * (1 - 1e-9) or noise == 0:
            raise TermsRefused(
                f"the terms have the noise multiplier {noise:g}, and this client asks for at least "
                f"{self.least_noise_multiplier:g}"
                + (", and for noise at all: no guarantee holds without" if noise == 0 else "")
            )
        if trust.ledger_of == "server":
            if version > terms.rounds:
                raise TermsRefused(
                    f"the server has closed {version:,} rounds, and the terms are for {terms.rounds:,}: what it "
                    "releases beyond them is in no charge of this client. Send it nothing, and agree on other terms"
                )
            left = 0 if _are_charged(terms, ledger, client) else terms.rounds
        else:
            charged = ledger.charged_rounds(terms.seed.number, client)
            left = max(terms.rounds - version, 0) - sum(version <= number < terms.rounds for number in charged)
        if not self._allows(ledger, cost, client, terms.steps, left):
            own = "" if ledger.budget in (None, self.budget) else f", or than {ledger.budget} of the ledger itself"
            self._refuse_cost(terms, left, f" beside what {ledger} holds already" if ledger.clients else "", own)

    def charge_all_rounds(self, terms: FederationTerms, ledger: Ledger, client: int) -> None:
        """Charge a client's ledger for all rounds of a federation whose server is trusted, once.

        Call it before the client sends its first update. The server's own ledger is charged round by round; this one
        knows of other federations of the client, and holds the federation at its full length from now on, since the
        client sees neither the server's ledger nor whether a round was released. Another call changes nothing.

        Args:
            terms: The terms of the federation.
            ledger: The client's ledger.
            client: The number of the client in the federation.

        Raises:
            TermsRefused: As `check` does.
            BudgetExhausted: The ledger's own budget does not allow it, since it was charged meanwhile.
            DpcompError: As `Ledger.charge` does.
            TypeError: As `check` does.
            ValueError: The client charges its own releases, so each round is charged for itself; or as `check` does.

        Examples:
            >>> import numpy as np
            >>> import dpcomp as dp
            >>> from dpcomp.terms import ClientPolicy, FederationTerms
            >>> pipeline = dp.Pipeline(
            ...     mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)), sampling=dp.Poisson(0.1), unit="client", trust="server"
            ... )
            >>> first_model, counts = np.zeros(10, np.float32), {"rounds": 20, "steps": 1, "clients": 50}
            >>> terms = FederationTerms.agree(pipeline, 10, first_model, **counts, least_updates=0, round_seconds=60.0)
            >>> policy, ledger = ClientPolicy(budget=dp.Budget(8.0, 1e-5), trust=("server",)), dp.Ledger()
            >>> policy.charge_all_rounds(terms, ledger, client=2)
            >>> ledger.guarantee(1e-5).epsilon == terms.guarantee(1e-5).epsilon
            True
        """
        check_type(terms, FederationTerms, f"charge_all_rounds(terms={terms!r}): give a FederationTerms")
        if terms.pipeline.trust_model.ledger_of != "server":
            raise ValueError(
                f"charge_all_rounds with trust={terms.pipeline.trust!r}: the client charges each round itself, before "
                "its noise is drawn, by ledger.charge"
            )
        check_type(ledger, Ledger, f"charge_all_rounds(ledger={ledger!r}): give the client's ledger")
        with ledger.alone():
            self.check(terms, ledger, client)
            if not _are_charged(terms, ledger, client):
                place = address_of_all_rounds(terms.run_id, client)
                ledger.charge(terms.pipeline.cost, place, steps=terms.rounds * terms.steps)

    def refuse_round(self, ledger: Ledger, cost: Cost, address: Address, steps: int) -> None:
        """Refuse a round that this policy does not allow any more, such as after another federation was charged.

        To charge it too, call `charge_round`, between whose question and charge no other thread charges.

        Args:
            ledger: The client's ledger; nothing is charged.
            cost: The cost of a single release.
            address: Where the round would be charged.
            steps: The number of releases in it.

        Raises:
            BudgetExhausted: The ledger would hold more than the policy's budget, or than its own.
            TermsRefused: The ledger is incomplete, or holds charges of another client's number, unit or trust, which
                would not be added up.
            TypeError: `ledger`, `cost` or `address` is none, or `steps` not a whole number.
            ValueError: `steps` is below 1.
        """
        check_type(ledger, Ledger, f"refuse_round(ledger={ledger!r}): give the client's ledger")
        check_type(address, Address, f"refuse_round(address={address!r}): give an Address, such as memory.address")
        if not self._allows(ledger, cost, address.client, steps, 1):
            raise BudgetExhausted(
                f"charging {address} would take {ledger} beyond {self.budget} of this client's policy, or beyond its "
                "own budget: nothing was charged. Since the terms were allowed, another federation has been charged; "
                "or the server was set back, and plays rounds again that this client had missed"
            )

    def charge_round(self, ledger: Ledger, cost: Cost, address: Address, steps: int) -> Permit:
        """Charge a client's ledger for a round, as `Ledger.charge` does, unless this policy does not allow it.

        Args:
            ledger: The client's ledger.
            cost: The cost of a single release.
            address: Where the releases are made.
            steps: The number of releases.

        Returns:
            The permit to make them.

        Raises:
            BudgetExhausted, TermsRefused, TypeError, ValueError: As `refuse_round` does; nothing was charged.
            BudgetExhausted, DpcompError: As `Ledger.charge` does.
        """
        check_type(ledger, Ledger, f"charge_round(ledger={ledger!r}): give the client's ledger")
        with ledger.alone():
            self.refuse_round(ledger, cost, address, steps)
            return ledger.charge(cost, address, steps=steps)

    def _allows(self, ledger: Ledger, cost: Cost, client: int, steps: int, charges: int) -> bool:
        """Return whether the budgets allow further charges to a ledger whose charges are all added up.

        Raises:
            TermsRefused: The ledger is incomplete, or holds charges of another client's number, unit or trust.
        """
        if ledger.incomplete:
            raise TermsRefused(
                f"{ledger} is incomplete ({ledger.incomplete}), so its ε is too small: count the ledgers of all "
                "releases of these data together, and release nothing of them until then"
            )
        if others := sorted(set(ledger.clients) - {client}):
            raise TermsRefused(
                f"{ledger} holds charges of client {others[0]}, and this client has the number {client}: charges of "
                "two numbers are not added up, since they should be of two clients' data. Ask for the number "
                f"{others[0]} in this federation; for the data of another client, give another ledger"
            )
        try:
            return ledger.within(self.budget, cost, client, steps, charges=charges)
        except ValueError as error:  # of another unit or trust
            raise TermsRefused(str(error)) from error

    def _refuse_cost(self, terms: FederationTerms, rounds: int, beside: str, own: str = "") -> None:
        alone = terms.guarantee(self.budget.delta).epsilon
        raise TermsRefused(
            f"{rounds:,} rounds of {terms.steps:,} releases{beside} cost more than ε = {self.budget.epsilon:g} at δ = "
            f"{self.budget.delta:g}, which this client allows{own}; the whole federation alone costs ε ≤ "
            f"{rounded_up(alone)}. Agree on fewer rounds or more noise"
        )

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "ClientPolicy":
        """Make the policy that a table describes.

        Args:
            table: Plain types: the fields of the policy, of which `budget` is a table of `epsilon` and `delta`.

        Raises:
            ConfigError: A key is unknown or missing, or a value refused.
        """
        where, values = "the client's policy", dict(table)
        check_keys(table, (item.name for item in fields(cls)), where)
        budget = table.get("budget")
        if not isinstance(budget, dict) or set(budget) != {"epsilon", "delta"}:
            raise ConfigError(f"{where} has budget = {budget!r}: write budget = {{ epsilon = 8.0, delta = 1e-5 }}")
        try:
            values["budget"] = Budget(**budget)
            for name in ("trust", "units"):
                if isinstance(values.get(name), list):
                    values[name] = tuple(values[name])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "ClientPolicy":
        """Read the policy of a file, such as `client.toml`.

        Raises:
            ConfigError: The file is no TOML, or describes no policy.
            OSError: The file can't be read.
        """
        return cls.from_table(read_toml(path))

    def to_table(self) -> dict[str, Any]:
        """Return the policy as the table of a TOML file."""
        return {
            "budget": {"epsilon": self.budget.epsilon, "delta": self.budget.delta},
            "least_noise_multiplier": self.least_noise_multiplier,
            "trust": list(self.trust),
            "units": list(self.units),
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the policy to a file. Raises OSError where it can't be written."""
        write_whole(Path(path), tomli_w.dumps(self.to_table()).encode())


def _are_charged(terms: FederationTerms, ledger: Ledger, client: int) -> bool:
    """Return whether a client's ledger was charged for all rounds of a trusted server.

    The address holds 8 bytes of a digest of terms whose nonce their author chooses, who can search for two terms that
    share it, cheap ones and dear ones. So what was charged there is compared too.

    Raises:
        TermsRefused: Something else was charged there.
    """
    place, steps = address_of_all_rounds(terms.run_id, client), terms.rounds * terms.steps
    charge = ledger.charge_at(place)
    if charge is not None and charge != (terms.pipeline.cost, steps):
        raise TermsRefused(
            f"{ledger} was charged at {place} for {charge[1]:,} releases of {charge[0]}, and these terms are for "
            f"{steps:,} of {terms.pipeline.cost}: two terms share the run id {terms.run_id.hex()}, which does not "
            "happen by chance. Take no part in this federation"
        )
    return charge is not None
