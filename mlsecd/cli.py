"""The command line: parses and prints. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlsecd.errors import ConfigError, MlsecdError

__all__ = ["main"]

OK, FAILED, USAGE = 0, 1, 2

_EPILOG = """\
examples:
  mlsecd run --demo                         see it work, on a bundled recording
  mlsecd check-config                       validate /etc/mlsecd/mlsecd.toml
  mlsecd record day.jsonl.gz                record what the sources deliver
  mlsecd baseline fit day.jsonl.gz -o baseline.npz
  mlsecd replay day.jsonl.gz --format table
  mlsecd top                                GPUs, models, suspicious clients, drift, sources, drops
  mlsecd selftest                           synthetic attacks through the detectors to the alert path
  mlsecd doctor                             what works here, what is blind, and why

exit codes: 0 fine, 1 the thing checked does not hold, 2 usage or configuration error.
Data goes to standard output, logs to standard error.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code comes back."""
    args = _parser().parse_args(argv)
    # one thread, before numpy is imported: the host is for inference, and the sums of two threads round otherwise
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        return int(args.command(args))
    except ConfigError as error:
        print(f"mlsecd: {error}" if "\n" not in str(error) else str(error), file=sys.stderr)
        return USAGE
    except MlsecdError as error:
        print(f"mlsecd: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away: `mlsecd replay | head`
        return FAILED if args.command is _run else OK
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlsecd",
        description="Security monitoring of machine-learning services while they run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    shared = argparse.ArgumentParser(add_help=False)
    options = shared.add_argument_group("global options")
    options.add_argument("--config", metavar="FILE", help="configuration (default: /etc/mlsecd/mlsecd.toml)")
    options.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="overrides the file; repeatable"
    )
    options.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    options.add_argument("--log-format", choices=["auto", "console", "logfmt", "json"], default="auto")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_run,
        _add_check,
        _add_replay,
        _add_baseline,
        _add_record,
        _add_doctor,
        _add_top,
        _add_selftest,
        _add_log,
    ):
        add(commands, shared)
    return parser


class _Version(argparse.Action):
    """Prints the version; its look-up is not worth an import at every start."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from mlsecd.version import version  # noqa: PLC0415

        print(f"mlsecd {version()}")
        parser.exit()


if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse names it no other way


def _command(
    commands: _Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    parents: list[argparse.ArgumentParser],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text.partition("\n")[0],
        description=text,
        parents=parents,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser


def _add_run(commands: _Commands, shared: argparse.ArgumentParser) -> None:
    parser = _command(
        commands,
        "run",
        _run,
        [shared],
        "the daemon\n\nSamples GPUs, processes and requests, scores them, exports findings.\n"
        "SIGTERM drains and stops; SIGHUP reads the configuration again.",
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="play a bundled recording (ordinary traffic, an extraction attack, a foreign GPU process) "
        "through the real request socket; files go to a temporary directory",
    )


def _run(args: argparse.Namespace) -> int:
    from mlsecd import daemon, demo, log  # noqa: PLC0415

    log.configure(args.log_level, args.log_format)
    if args.demo:
        return demo.run(tuple(args.set))
    return daemon.run(args.config, tuple(args.set))


def _add_check(commands: _Commands, shared: argparse.ArgumentParser) -> None:
    _command(
        commands,
        "check-config",
        _check_config,
        [shared],
        "validate the configuration\n\nPrints one line a problem, FILE:LINE: [table] what: hint.",
    )


def _check_config(args: argparse.Namespace) -> int:
    from mlsecd import config, credentials  # noqa: PLC0415

    loaded = config.load(args.config, tuple(args.set))
    credentials.check(loaded)
    if any(getattr(params, "config_file", "") for params in loaded.sources.values()):
        from mlsecd import gate  # noqa: PLC0415

        gate.check(loaded)
    if loaded.web.config_file:
        from mlsecd.web.access import Access  # noqa: PLC0415

        Access(loaded.web.config_file)
    print(
        f"{loaded.path}: fine: {len(loaded.detectors) - len(loaded.disabled)} detectors, "
        f"{sum(params.enabled for params in loaded.sources.values())} sources on"
    )
    return OK


def _add_replay(commands: _Commands, shared: argparse.ArgumentParser) -> None:
    parser = _command(
        commands,
        "replay",
        _replay,
        [shared],
        "fold recorded records through the configured detectors\n\n"
        "One finding's line is one JSON object; a summary goes to standard error. The same records give the\n"
        "same findings as in the daemon. Exits 0 whether or not something was found, 1 where no record could be read.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSON lines: plain, .gz, or - for standard input")
    parser.add_argument("--format", choices=["jsonl", "table"], default="jsonl")
    parser.add_argument("--baseline", metavar="FILE", help="baseline in place of the configured one")
    parser.add_argument(
        "--report", metavar="FILE.html", help="write a page that explains the findings, drift in pictures"
    )


def _replay(args: argparse.Namespace) -> int:
    from mlsecd.commands import replay  # noqa: PLC0415

    return replay.run(args.files, args.format, args.baseline, args.config, tuple(args.set), args.report)


def _add_baseline(commands: _Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("baseline", help="learn what is ordinary", description="Learn what is ordinary.")
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    fit = _command(
        inner,
        "fit",
        _baseline_fit,
        [shared],
        "learn baselines and calibration from ordinary records\n\n"
        "Fits each part that the data supports and names the parts refused and what they need.\n"
        "Exits 1 only where no part fits, or one named by --require does not.",
    )
    fit.add_argument("files", nargs="+", metavar="FILE", help="recorded ordinary records: plain or .gz")
    fit.add_argument("-o", "--output", metavar="FILE", help="default: baseline.npz in the state directory")
    fit.add_argument("--require", metavar="PART", action="append", default=[], help="fail where this part does not fit")
    fit.add_argument(
        "--leave-out",
        metavar="CLIENT",
        action="append",
        default=[],
        help="learn nothing from this client: a thief who was there while the baseline was recorded",
    )


def _baseline_fit(args: argparse.Namespace) -> int:
    from mlsecd.commands import baseline  # noqa: PLC0415

    return baseline.run(args.files, args.output, args.require, args.leave_out, args.config, tuple(args.set))


def _add_record(commands: _Commands, shared: argparse.ArgumentParser) -> None:
    parser = _command(
        commands,
        "record",
        _record,
        [shared],
        "record what the sources deliver\n\n"
        "Writes the records in the fold's order with their numbers, for replay and baseline fit, until\n"
        "--seconds have passed or it is interrupted. The daemon must not hold the request socket meanwhile.",
    )
    parser.add_argument("file", metavar="FILE", help="new file; .gz is compressed; never overwritten")
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after this long")


def _record(args: argparse.Namespace) -> int:
    from mlsecd import log  # noqa: PLC0415
    from mlsecd.commands import record  # noqa: PLC0415

    log.configure(args.log_level, args.log_format)
    return record.run(args.file, args.seconds, args.config, tuple(args.set))


def _add_doctor(commands: _Commands, shared: argparse.ArgumentParser) -> None:
    parser = _command(
        commands,
        "doctor",
        _doctor,
        [shared],
        "say what works on this host, what is blind, and why\n\n"
        "Checks libraries, privileges, directories, clock, sources and the baseline, and asks the running\n"
        "daemon, if there is one, how fresh its sources are and what its records carry.\n"
        "Exits 1 where something that is switched on cannot work.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a check")
    parser.add_argument("--verbose", action="store_true", help="also what each detector can never see")


def _doctor(args: argparse.Namespace) -> int:
    from mlsecd.commands import doctor  # noqa: PLC0415

    return doctor.run(args.config, tuple(args.set), as_json=args.json, verbose=args.verbose)


def _add_top(commands: _Commands, shared: argparse.ArgumentParser) -> None:
    parser = _command(
        commands,
        "top",
        _top,
        [shared],
        "live view of the running daemon\n\n"
        "GPUs, models, suspicious clients, drift, sources, detectors and drops, until Ctrl-C. Once and plain\n"
        "where the output is no terminal; then exits 1 where a real finding of high or critical severity is open.\n"
        "Where web.yml wants a password: MLSECD_WEB_USER=name:password; a certificate: MLSECD_WEB_CERT=FILE.",
    )
    parser.add_argument("--once", action="store_true", help="print once and exit")
    parser.add_argument("--json", action="store_true", help="the status as one JSON object, once")
    parser.add_argument("--listen", metavar="ADDRESS:PORT", help="where the daemon listens (default: web.listen)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="between two looks (default: 1)")


def _top(args: argparse.Namespace) -> int:
    from mlsecd import config  # noqa: PLC0415
    from mlsecd.commands import top  # noqa: PLC0415

    pause = min(max(args.seconds, 0.1), 3_600.0)
    return top.run(config.load(args.config, tuple(args.set)), args.listen, pause, once=args.once, as_json=args.json)


def _add_selftest(commands: _Commands, shared: argparse.ArgumentParser) -> None:
    parser = _command(
        commands,
        "selftest",
        _selftest,
        [shared],
        "synthetic attacks through the detectors to the alert path\n\n"
        "Feeds each detector that is on an attack that is marked synthetic, and checks that it is found, logged and\n"
        "shown, and that it would page nobody. The running daemon is not touched; it shows the result as\n"
        "mlsecd_selftest_success. Exits 1 where a detector failed.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a detector")


def _selftest(args: argparse.Namespace) -> int:
    from mlsecd.commands import selftest  # noqa: PLC0415

    return selftest.run(args.config, tuple(args.set), as_json=args.json)


def _add_log(commands: _Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("log", help="forensic review", description="Forensic review of the findings' log.")
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    verify = _command(
        inner,
        "verify",
        _log_verify,
        [shared],
        "check the log's hash chain\n\n"
        "Checks numbering, hashes and seals over all segments. Exits 1 at the first line that does not hold.",
    )
    verify.add_argument("directory", nargs="?", metavar="DIRECTORY", help="default: the configured directory")
    verify.add_argument("--json", action="store_true", help="the report as one JSON object")
    verify.add_argument(
        "--anchor", metavar="SEQ:SHA256", help="a head that was kept elsewhere: shows that nothing up to it was cut off"
    )
    verify.add_argument(
        "--anchors",
        metavar="FILE",
        help="lines with the heads that syslog was told (sinks.forensic_log.anchor): "
        "journalctl -t mlsecd-anchor -o cat | mlsecd log verify --anchors -",
    )


def _log_verify(args: argparse.Namespace) -> int:
    from mlsecd.commands import log_verify  # noqa: PLC0415

    return log_verify.run(args.directory, args.anchor, args.anchors, args.config, tuple(args.set), as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
