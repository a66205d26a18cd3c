"""Takes secrets out of command lines: pure functions, linear in their input, that rather hide too much.

Command lines are readable by every local user anyway, but what mlsecd keeps travels further: into
logs, bundles and tickets. Empty values stay, since ``--ServerApp.token=`` is itself a finding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["REDACTED", "redact"]

REDACTED: Final = "[redacted]"

_WORDS: Final = re.compile(r"[A-Z]++(?![a-z])|[A-Z]?[a-z]++|[A-Z]++|[0-9]++")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SECRET: Final = _words(
    "secret secrets password passwords passwd passphrase passcode passwort pwd pw credential credentials bearer"
    " authorization cookie jwt sig signature apikey apikeys apitoken authtoken accesstoken accesskey secretkey"
    " privatekey masterkey authkey dsn"
)
# "token" is a secret's word and a model's word; after these it is the model's.
_VOCABULARY: Final = _words(
    "bos eos pad unk sep cls mask stop special image audio video start end max min num per next first draft total"
    " new prefill decode kv cached"
)
_PUBLIC_KEYS: Final = _words(
    "public pub sort primary foreign partition cache routing shard group index hot row column dict ssl tls host"
)
# A name that ends so tells where a secret lies, or how long it lives, not what it is.
_ABOUT: Final = _words(
    "file path dir directory url uri endpoint type mode limit length len size count num budget ttl timeout expiry"
    " expires name names algorithm parallelism ids header headers issuer audience stdin"
    " fd env prompt command helper"
)
# A part of every name that can be a secret's: most names are done with after one search.
_SUSPECT: Final = re.compile(r"(?i)secret|pass|pw|token|cred|bearer|auth|cookie|jwt|sig|key|dsn|user")
_SWITCHES: Final = frozenset(("no", "disable", "enable", "without", "require", "skip", "allow"))
_FILES: Final = (".pem", ".key", ".crt", ".cer", ".pub", ".json", ".txt", ".yaml", ".yml", ".toml", ".conf", ".jks")
_NOTHING: Final = frozenset(("", "''", '""', "none", "null", "true", "false", "none,", "null,"))

_BEGINNING: Final = 256
_SCRIPT: Final = re.compile(r"-[a-z]{0,3}c")  # a shell's option: its value is a text of many words

# Options of known programs that take a secret: whether the value is joined to the option, or next to it.
_PROGRAMS: Final[dict[str, tuple[str, bool]]] = {
    "sshpass": ("-p", True),
    "redis-cli": ("-a", True),
    "curl": ("-u", True),
    "http": ("-a", True),
    "https": ("-a", True),
    "ldapsearch": ("-w", True),
    "mongo": ("-p", True),
    "mongosh": ("-p", True),
    "mysql": ("-p", False),
    "mysqldump": ("-p", False),
    "mysqladmin": ("-p", False),
    "mariadb": ("-p", False),
    "mariadb-dump": ("-p", False),
}

# Possessive quantifiers throughout: a hostile argument must not make a regular expression walk back.
_NAME: Final = re.compile(r"""(?<![\w.-])(-{0,2})([A-Za-z_][\w.-]*+)([\\"']{0,2}\s*+[=:]\s*+|\s++)""")
_VALUE: Final = re.compile(r"""\\?(?:"(?:[^"\\\0]|\\[^\0])*+"?|'[^'\0]*+'?|[^\s\0,;&"'}]++)""")
_SHAPES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (
        re.compile(r"""(?i)\b(authorization|cookie)([\\"']{0,2}\s*+[=:]\s*+[\\"']{0,2})[^\0\n"']++"""),
        rf"\1\2{REDACTED}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)(\s++)[\w.~+/=-]{6,}+"), rf"\1\2{REDACTED}"),
    (re.compile(r"""://[^\s\0/@:"']{0,256}+:(?!\d++/)[^\s\0@"']{0,256}+@"""), f"://{REDACTED}@"),
    (re.compile(r"""://[^\s\0/"'<>]{1,512}@"""), f"://{REDACTED}@"),
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^\0]*+"), REDACTED),
    (
        re.compile(
            r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{8,}+|sk-[\w-]{8,}+|[sr]k_(?:live|test)_\w{8,}+|gh[pousr]_\w{16,}+"
            r"|github_pat_\w{16,}+|glpat-[\w-]{16,}+|A[KS]IA[0-9A-Z]{16}|xox[abeprs]-[\w-]{8,}+|AIza[\w-]{30,}+"
            r"|nvapi-[\w-]{8,}+|(?<![\w-])eyJ[\w-]{8,}+\.[\w-]{8,}+(?:\.[\w-]*+)?|ya29\.[\w-]{8,}+|r8_\w{16,}+|gsk_\w{16,}+"
            r"|npm_\w{30,}+|pypi-[\w-]{16,}+|dckr_pat_[\w-]{16,}+|SG\.[\w-]{16,}+\.[\w-]{16,}+|xai-[\w-]{16,}+)"
        ),
        REDACTED,
    ),
)


def redact(arguments: Sequence[str]) -> tuple[str, ...]:
    """The arguments of one command, with whatever looks like a secret replaced by ``[redacted]``."""
    if not arguments:
        return ()
    return tuple(_redact_text("\0".join(_redact_options(arguments))).split("\0"))


def _redact_options(arguments: Sequence[str]) -> list[str]:
    """What the shape of an argument list tells: ``--option=value``, ``--option value``, ``NAME=value``."""
    short = next((_PROGRAMS[name] for one in arguments[:4] if (name := one.rpartition("/")[2]) in _PROGRAMS), None)
    redacted: list[str] = []
    option = ""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        name, equals, value = argument.partition("=")
        if (
            option
            and not argument.startswith("--")
            and (_is_secret(option, argument) or (short and option == short[0]))
        ):
            redacted.append(_hidden(argument))
            option = ""
            continue
        option = ""
        if equals and name and not _SCRIPT.fullmatch(before) and not _spaced(name) and _is_secret(name, value):
            argument = f"{name}={_hidden(value)}"  # noqa: PLW2901 - the argument, redacted
        elif short and argument.startswith(short[0]) and not argument.startswith("--"):
            if len(argument) > 2:
                argument = short[0] + REDACTED  # noqa: PLW2901
            elif short[1]:
                option = argument
        elif not equals and argument.startswith("-"):
            option = argument
        redacted.append(argument)
    return redacted


def _redact_text(text: str) -> str:
    """What text itself tells, also inside one argument: a shell's script, JSON, a header, an address."""
    for pattern, put in _SHAPES:
        text = pattern.sub(put, text)
    pieces: list[str] = []
    at = 0
    for found in _NAME.finditer(text):
        if found.start() < at or (found[3].isspace() and not found[1]):
            continue  # inside a value that is gone already; or two words of a sentence
        if not _SUSPECT.search(found[2]):
            continue
        # Names are judged by the beginning of what follows: looking at all of it every time would be quadratic.
        beginning = _VALUE.match(text, found.end(), found.end() + _BEGINNING)
        if beginning and _is_secret(found[2], beginning[0]) and (value := _VALUE.match(text, found.end())):
            pieces += (text[at : found.end()], _hidden(value[0]))
            at = value.end()
    return "".join((*pieces, text[at:]))


def _spaced(text: str) -> bool:
    return any(blank in text for blank in (" ", "\n", "\t"))


def _hidden(value: str) -> str:
    return value if value.lower() in _NOTHING else REDACTED


def _is_secret(name: str, value: str) -> bool:
    """Whether a name says that its value is a secret."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in _ABOUT or words[0] in _SWITCHES:
        return False
    if not _SECRET.isdisjoint(words) or words[-1] == "pass":
        return True
    if "token" in words:
        at = words.index("token")
        return at == 0 or words[at - 1] not in _VOCABULARY
    if words[-1] in ("key", "keys"):
        return not (len(words) > 1 and words[-2] in _PUBLIC_KEYS) and not _is_path(value)
    if words[-1] in ("auth", "user"):
        user, colon, rest = value.partition(":")
        return bool(colon and user) and not rest.isdigit()
    return False


def _is_path(value: str) -> bool:
    bare = value.strip("\"'")
    return bare.startswith(("/", "./", "../", "~")) or bare.endswith(_FILES)
