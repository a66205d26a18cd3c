"""The man page and the completions: made from the parser, accepted by troff and by bash."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mlsecd import cli
from tools.make_man import main

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"


def test_they_are_what_the_parser_says() -> None:
    assert main(check=True) == 0


def test_troff_finds_nothing_to_say() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    page = PACKAGING / "mlsecd.8"
    done = subprocess.run(["groff", "-ww", "-man", "-Tutf8", page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.sub(r".\x08", "", done.stdout).replace("\u2010", "-")  # bold by overstriking, and troff's hyphens
    for command in ("mlsecd run", "mlsecd baseline fit", "mlsecd log verify", "mlsecd top", "mlsecd selftest"):
        assert command in shown


def completed(*words: str) -> set[str]:
    line = " ".join(f"'{word}'" for word in words)
    script = f"""
        source '{PACKAGING / "mlsecd.bash"}'
        function=$(complete -p mlsecd | sed -E 's/.*-F ([^ ]+).*/\\1/')
        COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
        "$function" && printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands_and_options() -> None:
    commands = next(action.choices for action in cli._parser()._actions if isinstance(action.choices, dict))
    assert completed("mlsecd", "") >= set(commands)
    assert completed("mlsecd", "sel") == {"selftest"}
    assert "--once" in completed("mlsecd", "top", "--")
    assert completed("mlsecd", "log", "") >= {"verify"}
    assert "jsonl" in completed("mlsecd", "replay", "--format", "")


@pytest.mark.parametrize("script", ["build-deb.sh", "test-deb.sh", "debian/postinst", "debian/prerm", "debian/postrm"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = PACKAGING / script
    shell = path.read_text().partition("\n")[0].rpartition("/")[2].split()[-1]
    assert path.stat().st_mode & 0o111
    assert subprocess.run([shell, "-n", path], check=False).returncode == 0
