"""Write the man page and the shells' completions from the command line's own parser; ``--check`` only compares."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import shtab

from mlsecd import cli
from mlsecd.version import version

DIRECTORY = Path(__file__).resolve().parents[1] / "packaging"

_FILES = """\
.TP
.I /etc/mlsecd/mlsecd.toml
Configuration. Every key is optional; the example that is shipped comments each.
.TP
.I /etc/mlsecd/web.yml
TLS, client certificates and passwords for the pages, where [web] config_file names it.
.TP
.I /var/lib/mlsecd
State and baseline.
.TP
.I /var/log/mlsecd
The forensic log: findings, chained by hashes.
.TP
.I /run/mlsecd/ingest.seqpacket, /run/mlsecd/ingest.stream
Sockets that take request records, one JSON object a line.
"""

_ENVIRONMENT = """\
.TP
.B MLSECD_SOCKET
The socket that taps send to, in place of /run/mlsecd/ingest.seqpacket.
.TP
.B MLSECD_WEB_USER
name:password for \\fBmlsecd top\\fR and \\fBmlsecd doctor\\fR, where web.yml wants one.
.TP
.B MLSECD_WEB_CERT
A PEM file with a client's certificate and key, for the same.
.TP
.B NUMBA_CACHE_DIR
Where compiled kernels are kept, where the package's own directory is read-only.
"""

_EXIT = """\
.TP
.B 0
Fine.
.TP
.B 1
The thing checked does not hold.
.TP
.B 2
Usage or configuration error: one line says what and what to do.
"""

_SIGNALS = """\
.TP
.B SIGTERM, SIGINT
Drain, write the state and stop, within five seconds.
.TP
.B SIGHUP
Read the configuration again; one that is wrong leaves the old in force.
"""


def manual() -> str:
    """The page, in man(7)."""
    parser = cli._parser()  # noqa: SLF001 - the one place that knows the commands
    head = f'.TH MLSECD 8 "" "mlsecd {version()}" "System Administration"\n'
    sections = [
        (".SH NAME\nmlsecd \\- security monitoring of machine-learning services while they run\n"),
        ".SH SYNOPSIS\n.B mlsecd\n.I COMMAND\n[options]\n",
        f".SH DESCRIPTION\n{_prose(_DESCRIPTION)}",
        ".SH COMMANDS\n" + "".join(_commands(parser, "mlsecd")),
        ".SH OPTIONS OF EVERY COMMAND\n" + "".join(_shared(parser)),
        f".SH EXIT STATUS\n{_EXIT}",
        f".SH FILES\n{_FILES}",
        f".SH ENVIRONMENT\n{_ENVIRONMENT}",
        f".SH SIGNALS OF THE DAEMON\n{_SIGNALS}",
        ".SH SEE ALSO\n.BR prometheus (1),\n.BR systemctl (1),\n.BR journalctl (1)\n",
    ]
    return head + "".join(sections)


_DESCRIPTION = """\
mlsecd watches a host that serves machine-learning models on GPUs. It joins GPU samples, the process table and
inference request records, scores them for model extraction, drift, abuse of the GPU, exposure and tampering, and
exports findings as Prometheus metrics and as a tamper-evident log. It observes and advises; it never stops a request
or a process. Data goes to standard output, logs to standard error.
"""


def _prose(text: str) -> str:
    """Text that troff takes as it is."""
    lines = [line.strip() for line in text.replace("\\", "\\e").replace("-", "\\-").splitlines()]
    return "".join(f"\\&{line}\n" if line[:1] in {".", "'"} else f"{line}\n" for line in lines if line)


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001 - argparse tells this no other way
        if not isinstance(action.choices, dict):
            continue
        for word, inner in action.choices.items():
            if any(isinstance(one.choices, dict) for one in inner._actions):  # noqa: SLF001
                yield from _commands(inner, f"{name} {word}")
                continue
            what, _, more = (inner.description or "").partition("\n\n")
            yield f".SS {name} {word}\n{_prose(what[:1].upper() + what[1:] + '.')}" + (
                f".PP\n{_prose(more)}" if more else ""
            )
            yield from (_option(one) for one in inner._actions if not _is_shared(one))  # noqa: SLF001


_SHARED = {"--config", "--set", "--log-level", "--log-format"}


def _is_shared(action: argparse.Action) -> bool:
    return bool(_SHARED.intersection(action.option_strings)) or "--help" in action.option_strings


def _shared(parser: argparse.ArgumentParser) -> Iterator[str]:
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))  # noqa: SLF001
    yield from (_option(one) for one in commands["run"]._actions if _SHARED.intersection(one.option_strings))  # noqa: SLF001


def _option(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
    shown = f"{names} {value}" if action.option_strings and value and action.nargs != 0 else names
    return f".TP\n.B {_prose(shown)}{_prose(action.help or 'One of these.')}"


def completion(shell: str) -> str:
    """A completion script, its preamble's date and such left out."""
    return re.sub(r"[ \t]+\n", "\n", shtab.complete(cli._parser(), shell=shell)).rstrip() + "\n"  # noqa: SLF001


def main(*, check: bool) -> int:
    """0 where every file is, or now is, what the parser says."""
    made = {"mlsecd.8": manual(), "mlsecd.bash": completion("bash"), "_mlsecd": completion("zsh")}
    stale = [name for name, text in made.items() if not _same(DIRECTORY / name, text)]
    for name in stale:
        if check:
            print(f"packaging/{name} is not what the command line says: run python -m tools.make_man")
        else:
            (DIRECTORY / name).write_text(made[name])
    return 1 if check and stale else 0


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
