"""Who sent a request: one name for one client, whichever tap, log or span tells of it. Standard library only.

A name is ``k-`` and 32 hex digits, BLAKE2b-128 keyed with the host's (or fleet's) secret over ``scheme:secret``.
Nobody without the key finds the API key behind a name, and everybody with it makes the same name.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Final

__all__ = ["Hasher", "Proxies", "credential", "key_path", "load_key"]

MIN_KEY_BYTES: Final = 16
MAX_KEY_BYTES: Final = 64

_REMEMBERED: Final = 4_096
_LONG: Final = 512  # longer secrets are not remembered
_MAX_HOPS: Final = 32  # of an X-Forwarded-For: what stands further left is the client's own invention
_CREDENTIAL_HEADERS: Final = (b"x-api-key", b"api-key")  # Anthropic's way, Azure's way

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def key_path() -> Path | None:
    """Where the key is: ``MLSECD_KEY_FILE``, else systemd's credential ``id.key``; ``None`` where neither is set."""
    if path := os.environ.get("MLSECD_KEY_FILE"):
        return Path(path)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    found = Path(directory) / "id.key" if directory else None
    return found if found is not None and found.exists() else None


def load_key(path: Path | None) -> tuple[bytes, str | None]:
    """The key, and what is wrong with it; where there is none, one for this process alone.

    Its bytes are taken as they are, 16 to 64 of them: ``head -c 32 /dev/urandom > id.key``.
    """
    lonely = "clients get other names in every process, and no two sources can be joined"
    if path is None:
        return secrets.token_bytes(32), f"no key (MLSECD_KEY_FILE, or the credential id.key): {lonely}"
    try:
        with path.open("rb") as file:
            key = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        return secrets.token_bytes(32), f"{path}: {error.strerror or 'cannot be read'}: {lonely}"
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        return secrets.token_bytes(32), f"{path} must hold {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes: {lonely}"
    return key, None


class Hasher:
    """Names for clients and users. It remembers the last 4,096 names, since the same clients come again.

    Parameters
    ----------
    key
        The secret, at most 64 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._names = blake2b(digest_size=16, key=key)  # copied: keying anew costs twice as much
        self._opaque = blake2b(digest_size=8, key=key, person=b"mlsecd.opaque.1")
        self._known: OrderedDict[tuple[str, str | bytes], str] = OrderedDict()

    def client(self, scheme: str, secret: str | bytes) -> str:
        """``k-...`` of a secret: ``bearer``, ``user``, ``mtls`` (the subject) or ``peer`` (the address)."""
        return self._name(scheme, secret)

    def opaque(self, text: str | bytes) -> str:
        """16 hex digits for what only needs comparing: a user agent, a body."""
        return self._name("", text) if len(text) <= _LONG else _finish(self._opaque.copy(), text)

    def _name(self, scheme: str, secret: str | bytes) -> str:
        known = self._known.get((scheme, secret))
        if known is not None:
            return known
        if scheme:
            hasher = self._names.copy()
            hasher.update(scheme.encode() + b":")
            made = "k-" + _finish(hasher, secret)
        else:
            made = _finish(self._opaque.copy(), secret)
        if len(secret) <= _LONG:
            self._known[scheme, secret] = made
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return made


def _finish(hasher: blake2b, text: str | bytes) -> str:
    hasher.update(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return hasher.hexdigest()


def credential(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, bytes] | None:
    """(scheme, secret) that a request carries: a bearer token, an API key, or a Basic user's name.

    Of several, the one that servers look at: Authorization before the others.
    """
    other = None
    for name, value in headers:
        if name == b"authorization":
            kind, _, secret = value.strip().partition(b" ")
            secret = secret.strip()
            if kind.lower() == b"bearer" and secret:
                return "bearer", secret
            if kind.lower() == b"basic" and (user := _basic_user(secret)):
                return "user", user
        elif name in _CREDENTIAL_HEADERS and value.strip():
            other = "bearer", value.strip()
    return other


def _basic_user(secret: bytes) -> bytes:
    try:
        return base64.b64decode(secret, validate=True).partition(b":")[0]
    except binascii.Error:
        return b""


class Proxies:
    """The proxies whose word about a caller's address is taken.

    Parameters
    ----------
    trusted
        Addresses and networks, ``10.0.0.0/8``; ``unix`` is whoever comes over a Unix socket.

    Raises
    ------
    ValueError
        One of them is neither.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        names = [name.strip() for name in trusted if name.strip()]
        self._unix = "unix" in names
        self._networks = [ipaddress.ip_network(name, strict=False) for name in names if name != "unix"]

    def caller(self, peer: str | None, forwarded: str) -> str | None:
        """The caller's address: the peer's, or behind trusted proxies the last one that they did not add.

        ``forwarded`` is the X-Forwarded-For header. What a client writes there itself stands left of what the
        first trusted proxy added, and is never reached.
        """
        trusted = self._unix if not peer else self._trusts(peer)
        if not trusted or not forwarded:
            return peer or None
        found = peer or None
        for hop in reversed(forwarded.rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]):
            address = _address(hop)
            if address is None:
                return found  # no address: nobody whom we trust writes that
            found = address
            if not self._trusts(address):
                return found
        return found

    def _trusts(self, address: str) -> bool:
        if not self._networks:
            return False
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks if network.version == parsed.version)


def _address(hop: str) -> str | None:
    """An address out of one item of the header, without its port; ``None`` where it is none."""
    hop = hop.strip()[:64]
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(hop))
    except ValueError:
        return None
