"""Links: what a server shares with each of its clients, in a table that a million of them fit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from dpcomp.core.address import Address
from dpcomp.core.support import Listed, Support

DIGEST_BYTES = 8
MOST_RECENT = 1024  # links outside the table: a dict of them is copied in a few µs, and merged every so many payloads

ROW = np.dtype(
    [("round", "<u4"), ("count", "<u4"), ("last_version", "<i4"), ("run", "<u8"), ("digest", "u1", (DIGEST_BYTES,))]
)


@dataclass(frozen=True, kw_only=True)
class Link:
    """The state that a client and the server share: a function of the client's accepted payloads.

    Attributes:
        count: The number of accepted payloads.
        digest: The tag of the last of them, which names all of them.
        last: The address of the last accepted payload.
        last_version: The version of shared memory that it was coded against; -1 before the first.
        last_support: The last support whose positions a payload listed, where the codec codes the next one by its
            difference from it; else None.
    """

    count: int = 0
    digest: bytes = bytes(DIGEST_BYTES)
    last: Address | None = None
    last_version: int = -1
    last_support: Listed | None = None

    def advanced(self, tag: bytes, address: Address, version: int, listed: Support | None) -> "Link":
        """Return the link after another accepted payload.

        Args:
            tag: The tag of the payload.
            address: The payload's address.
            version: The version of shared memory that it was coded against.
            listed: The support, if the payload lists its positions and the codec needs them again; else None.
        """
        last_support = listed if isinstance(listed, Listed) else self.last_support
        return Link(count=self.count + 1, digest=tag, last=address, last_version=version, last_support=last_support)


class Links(Mapping[int, Link]):
    """The links of all clients that have sent a payload, by the client's number; an immutable value.

    A link takes 32 bytes in a table that is sorted by client, and 4 bytes more for each position of its last support.
    The most recent links stand in a small dict beside it, so that a changed value shares the table with the value
    before it.

    Args:
        links: The links, by the client's number.

    Raises:
        ValueError: A link counts payloads, but has no last address.

    Examples:
        >>> links = Links({7: Link(count=1, last=Address(0, 7, 0), last_version=0)})
        >>> changed = links.replaced(9, Link(count=1, last=Address(0, 9, 0), last_version=0))
        >>> len(links), len(changed), changed[7] == links[7], 9 in links
        (1, 2, True, False)
    """

    def __init__(self, links: Mapping[int, Link] | None = None):
        self._clients = np.empty(0, np.uint32)  # ascending
        self._rows = np.empty(0, ROW)
        self._supports: np.ndarray | None = (
            None  # (n,) objects: positions as uint32, or None; None where there are none
        )
        self._recent: dict[int, Link] = {}
        if links:
            self._recent = dict(links)
            self._merge()

    def replaced(self, client: int, link: Link) -> "Links":
        """Return these links with that of a client replaced or added; these stay as they are.

        Args:
            client: The client's number.
            link: Its link, which counts at least one payload.
        """
        after = object.__new__(Links)
        after._clients, after._rows, after._supports = self._clients, self._rows, self._supports
        after._recent = {**self._recent, client: link}
        if len(after._recent) > MOST_RECENT:
            after._merge()
        return after

    def __getitem__(self, client: int) -> Link:
        recent = self._recent.get(client)
        if recent is not None:
            return recent
        place = self._place(client)
        if place is None:
            raise KeyError(client)
        row, support = self._rows[place], None if self._supports is None else self._supports[place]
        return Link(
            count=int(row["count"]),
            digest=row["digest"].tobytes(),
            last=Address(int(row["run"]), client, int(row["round"])) if row["count"] else None,
            last_version=int(row["last_version"]),
            last_support=None if support is None else Listed(support),
        )

    def __iter__(self) -> Iterator[int]:
        yield from self._clients.tolist()
        yield from (client for client in self._recent if self._place(client) is None)

    def __len__(self) -> int:
        return len(self._clients) + sum(self._place(client) is None for client in self._recent)

    def columns(self) -> dict[str, np.ndarray]:
        """Return the links as plain arrays, a row a client, in ascending order of client; `from_columns` reads them."""
        whole = Links()
        whole._clients, whole._rows, whole._supports = self._clients, self._rows, self._supports
        whole._recent = dict(self._recent)
        whole._merge()
        columns = {"client": whole._clients}
        columns |= {name: np.ascontiguousarray(whole._rows[name]) for name in ROW.names or ()}
        if whole._supports is not None:
            listed = [support for support in whole._supports if support is not None]
            columns["listed"] = np.array([support is not None for support in whole._supports])
            columns["listed_ends"] = np.cumsum([len(support) for support in listed], dtype=np.int64)
            columns["positions"] = np.concatenate([np.empty(0, np.uint32), *listed])
        return columns

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray]) -> "Links":
        """Return the links that `columns` returned."""
        links = cls()
        links._clients = columns["client"]
        links._rows = np.empty(len(links._clients), ROW)
        for name in ROW.names or ():
            links._rows[name] = columns[name]
        if "listed" in columns:
            links._supports = np.full(len(links._clients), None, dtype=object)
            supports = np.split(columns["positions"], columns["listed_ends"][:-1])
            for place, support in zip(np.flatnonzero(columns["listed"]), supports, strict=False):
                links._supports[place] = support
        return links

    def __repr__(self) -> str:
        return f"Links({len(self)} clients)"

    def _place(self, client: int) -> int | None:
        """Return the row of a client in the table; None if it has none."""
        place = int(np.searchsorted(self._clients, np.uint32(client)))  # of another type, it would copy the table
        return place if place < len(self._clients) and self._clients[place] == client else None

    def _merge(self) -> None:
        """Move the recent links into the table."""
        recent = np.array(sorted(self._recent), dtype=np.uint32)
        links = [self._recent[client] for client in recent.tolist()]
        if any((link.last is None) != (link.count == 0) for link in links):
            raise ValueError("a link that counts payloads has the address of the last one, and no other link has one")
        rows = np.empty(len(links), ROW)
        rows["count"] = [link.count for link in links]
        rows["last_version"] = [link.last_version for link in links]
        rows["run"] = [0 if link.last is None else link.last.run for link in links]
        rows["round"] = [0 if link.last is None else link.last.round for link in links]
        rows["digest"] = np.frombuffer(b"".join(link.digest for link in links), np.uint8).reshape(-1, DIGEST_BYTES)
        places = np.searchsorted(self._clients, recent)
        known = np.zeros(len(recent), bool)
        inside = places < len(self._clients)
        known[inside] = self._clients[places[inside]] == recent[inside]
        if self._supports is not None or any(link.last_support is not None for link in links):
            supports = np.full(len(links), None, dtype=object)
            for place, link in enumerate(links):
                if link.last_support is not None:
                    supports[place] = link.last_support.positions.astype(np.uint32)
            before = np.full(len(self._clients), None, dtype=object) if self._supports is None else self._supports
            self._supports = _overlaid(before, places, known, supports)
        self._rows = _overlaid(self._rows, places, known, rows)
        self._clients = _overlaid(self._clients, places, known, recent)
        self._recent = {}


def _overlaid(
    column: Shaped[np.ndarray, "n"],
    places: Int64[np.ndarray, "m"],
    known: Bool[np.ndarray, "m"],
    values: Shaped[np.ndarray, "m"],
) -> Shaped[np.ndarray, "n_after"]:
    """Return a copy of a column in which known places are replaced, and the other values inserted."""
    after = column.copy()
    after[places[known]] = values[known]
    return after if known.all() else np.insert(after, places[~known], values[~known])
