"""Groups that accounts belong to: a network, a tenant, or a link that the operator knows."""

from __future__ import annotations

import csv
import ipaddress
from collections.abc import Iterable
from typing import Annotated, Final

import numpy as np
from msgspec import Meta

from mlsecd.records import RequestBatch, Text

__all__ = ["Groups", "Links", "Prefixes", "prefix_of", "read_links", "used"]

Links = tuple[Annotated[str, Meta(max_length=65_536)], ...]

_REMEMBERED: Final = 65_536  # addresses whose prefix is remembered


def prefix_of(address: str) -> str | None:
    """The /24 of an IPv4 address, the /64 of an IPv6 one, a network as it is; ``None`` for what is neither."""
    try:
        if "/" in address:
            return str(ipaddress.ip_network(address.strip(), strict=False))
        found = ipaddress.ip_address(address.strip())
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
        found = found.ipv4_mapped
    return str(ipaddress.ip_network((int(found) >> 8 << 8, 24)))


class Prefixes:
    """:func:`prefix_of`, remembered."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def of(self, address: str) -> str | None:
        """The prefix of an address."""
        if address not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[address] = prefix_of(address)
        return self._known[address]


def read_links(links: Iterable[str]) -> dict[str, str]:
    """Group by client, of lines of CSV: a group's name, then its clients.

    Raises
    ------
    ValueError
        A line is no line of CSV, names nobody, or names a client whom another group has.
    """
    made: dict[str, str] = {}
    for i, line in enumerate(links):
        if not line.strip():
            continue
        if len(line.splitlines()) > 1:
            raise ValueError(f"links[{i}] has a line break: write one group a line")
        try:
            ((name, *clients),) = csv.reader([line], strict=True)
        except (csv.Error, ValueError) as error:
            raise ValueError(f"links[{i}] is no single line of CSV: {error}") from error
        if not name.strip() or not any(client.strip() for client in clients):
            raise ValueError(f"links[{i}] needs a group's name and at least one client")
        for client in filter(None, map(str.strip, clients)):
            if made.setdefault(client, name.strip()) != name.strip():
                raise ValueError(f'links[{i}]: client "{client}" is in group "{made[client]}" already')
    return made


class Groups:
    """Names the groups of each row.

    Parameters
    ----------
    links
        Lines of CSV: a group's name, then its clients.
    """

    def __init__(self, links: Iterable[str]) -> None:
        self._links = read_links(links)
        self._prefixes = Prefixes()

    def of(self, batch: RequestBatch) -> list[list[tuple[str, str]]]:
        """(kind, value) of the groups of each row."""
        found: list[list[tuple[str, str]]] = [[] for _ in range(len(batch))]
        for kind, column, group_of in (
            ("network", batch.text("network"), self._prefixes.of),
            ("principal", batch.text("principal"), str),
            ("link", batch.text("client"), self._links.get),
        ):
            named = {code: group_of(value) for code, value in used(column).items()}
            if not any(named.values()):
                continue
            for groups, code in zip(found, column.codes.tolist(), strict=True):
                value = named.get(code)
                if value:
                    groups.append((kind, value))
        return found


def used(column: Text) -> dict[int, str]:
    """Text by code, of the codes that rows have: a slice of a batch shares the whole batch's dictionary."""
    return {code: column.values[code] for code in np.unique(column.codes[column.codes >= 0]).tolist()}
