"""Senders: which client sends a request, by its token or by its certificate."""

import hashlib
import hmac
import os
import re
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import tomli_w

from dpcomp.adapters.http.certificates import fingerprint
from dpcomp.core.address import SERVER
from dpcomp.core.checks import whole_number
from dpcomp.core.errors import ConfigError
from dpcomp.core.storage import write_whole

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOBODY = secrets.token_bytes(32)  # an unknown client's token is compared with this, which takes as long


def new_token(client: int) -> str:
    """Draw a token of 256 bits for a client.

    Give it to the client over a private channel, and keep none: the server needs its digest alone.

    Args:
        client: The client's number, which stands in the token.

    Examples:
        >>> from dpcomp.adapters.http import new_token
        >>> new_token(7).partition(".")[0]
        '7'
    """
    return f"{whole_number(client, 'new_token(client)', least=0)}.{secrets.token_urlsafe(32)}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Senders:
    """Tells which client sends a request. A client has a token or a certificate, and shows it with each request.

    **Privacy:** the sensitivity of a round is one clip norm a client, so nobody may send as several clients. No two
    clients may have one token or certificate.

    Args:
        tokens: From each client's number to the SHA-256 of its token, in hexadecimal. `Senders.of` computes it.
        certificates: From each client's number to the SHA-256 of its certificate (DER), in hexadecimal: `fingerprint`.

    Raises:
        ConfigError: A digest is none, belongs to two clients, or a client has both a token and a certificate.
        TypeError, ValueError: A client's number is none.

    Examples:
        >>> from dpcomp.adapters.http import Senders, new_token
        >>> token = new_token(7)
        >>> senders = Senders.of(tokens=[token])
        >>> senders.sender_of(f"Bearer {token}", certificate=None)
        7
        >>> print(senders.sender_of("Bearer 7.guessed", certificate=None))
        None
    """

    tokens: Mapping[int, str] = field(default_factory=dict)
    certificates: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("tokens", "certificates"):
            given = getattr(self, name)
            object.__setattr__(
                self, name, {whole_number(each, f"Senders({name})", least=0): given[each] for each in given}
            )
            for client, digest in given.items():
                if not _SHA256.fullmatch(digest):
                    raise ConfigError(
                        f"Senders({name}) holds {digest!r} for client {client}: give the SHA-256 as 64 hexadecimal "
                        "digits in lower case, as Senders.of computes it"
                    )
            if len(set(given.values())) != len(given):
                raise ConfigError(
                    f"Senders({name}) holds one digest for two clients, so one sender could send as both: give each "
                    "client its own"
                )
        if both := set(self.tokens) & set(self.certificates):
            raise ConfigError(f"client {min(both)} has a token and a certificate: give it one of the two")

    @classmethod
    def of(
        cls, *, tokens: Iterable[str] = (), certificates: Mapping[int, str | os.PathLike[str]] | None = None
    ) -> "Senders":
        """Make the list of senders from tokens and from files of certificates.

        Args:
            tokens: The tokens, as `new_token` drew them.
            certificates: From each client's number to the PEM file of its certificate.

        Raises:
            ConfigError: A token names no client, or as for the constructor.
            OSError, ValueError: A file cannot be read, or holds no certificate.
        """
        digests = {}
        for token in tokens:
            client = _client_of(token)
            if client == SERVER or client in digests:
                raise ConfigError("a token names no client, or one that has a token already: draw it by new_token")
            digests[client] = hashlib.sha256(token.encode()).hexdigest()
        return cls(
            tokens=digests, certificates={each: fingerprint(path) for each, path in (certificates or {}).items()}
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Senders":
        """Read the list of senders from a TOML file, as `write` wrote it.

        Raises:
            ConfigError: The file is no such list.
            OSError: The file cannot be read.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            if extra := set(content) - {"tokens", "certificates"}:
                raise ConfigError(f"{path} has the table {sorted(extra)[0]!r}: it may have [tokens] and [certificates]")
            tables = {
                name: {int(client): str(each) for client, each in table.items()} for name, table in content.items()
            }
            return cls(**tables)
        except (tomllib.TOMLDecodeError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{path} is no list of senders: {error}") from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the list to a TOML file. It holds digests, and no secret. Raises OSError."""
        tables = {
            name: {str(client): digest for client, digest in sorted(table.items())}
            for name, table in (("tokens", self.tokens), ("certificates", self.certificates))
        }
        write_whole(Path(path), tomli_w.dumps(tables).encode())

    def sender_of(self, authorization: str | None, certificate: bytes | None) -> int | None:
        """Return which client sends a request.

        Args:
            authorization: The header of that name; None if there is none.
            certificate: The client's certificate (DER), which TLS has verified; None if there is none.

        Returns:
            The client's number; None if the request shows nothing, shows what no client has, or shows two clients.
        """
        shown: set[int | None] = set()
        if authorization is not None:
            shown.add(self._by_token(authorization))
        if certificate is not None:
            shown.add(self._owners.get(hashlib.sha256(certificate).hexdigest()))
        return shown.pop() if len(shown) == 1 else None

    @cached_property
    def _digests(self) -> dict[int, bytes]:
        return {client: bytes.fromhex(digest) for client, digest in self.tokens.items()}

    @cached_property
    def _owners(self) -> dict[str, int]:
        return {digest: client for client, digest in self.certificates.items()}

    def _by_token(self, authorization: str) -> int | None:
        scheme, _, token = authorization.partition(" ")
        client = _client_of(token)
        digest = hashlib.sha256(token.encode()).digest()
        known = hmac.compare_digest(digest, self._digests.get(client, _NOBODY))
        return client if known and scheme.lower() == "bearer" else None

    def __repr__(self) -> str:
        return f"Senders({len(self.tokens)} by token, {len(self.certificates)} by certificate)"


def _client_of(token: str) -> int:
    """Return the number that a token begins with; that of the server, which sends nothing, if there is none."""
    number, _, secret = token.partition(".")
    return int(number) if secret and number.isascii() and number.isdecimal() and len(number) <= 10 else SERVER
