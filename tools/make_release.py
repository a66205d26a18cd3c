"""Everything that a release consists of, into dist/: wheel, sdist, Debian package, SBOM, checksums, a signature.

``make release SIGN_KEY=~/.ssh/release``; ``--no-deb`` leaves the Debian package out. Build tools live in an environment
of their own. Wheel and sdist do not depend on the time: their dates are the last commit's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("build==1.3.0", "cyclonedx-bom==7.5.0")
SUMS = "SHA256SUMS"


def run(*args: str | Path, env: dict[str, str] | None = None) -> None:
    subprocess.run([*map(str, args)], cwd=ROOT, check=True, env={**os.environ, **(env or {})})


def environment(directory: Path, *packages: str) -> Path:
    """A fresh virtual environment's ``python``, with these packages."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    return python


def distributions(dist: Path, tools: Path) -> Path:
    """Wheel and sdist; the wheel's path comes back."""
    epoch = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True, text=True)
    run(tools, "-m", "build", "--outdir", dist, ROOT, env={"SOURCE_DATE_EPOCH": epoch.stdout.strip()})
    return next(dist.glob("*.whl"))


def bill_of_materials(dist: Path, wheel: Path, tools: Path, work: Path) -> None:
    """CycloneDX of what an installation of the wheel brings, with versions and licences."""
    installed = environment(work / "installed", f"{wheel}[web]")
    run(installed, "-m", "pip", "uninstall", "--quiet", "--yes", "pip", "setuptools")
    path = dist / f"{wheel.name.removesuffix('.whl')}.cdx.json"
    options = ("--output-format", "JSON", "--output-reproducible", "--pyproject", ROOT / "pyproject.toml")
    run(tools, "-m", "cyclonedx_py", "environment", *options, "--output-file", path, installed)
    names = {one["name"] for one in json.loads(path.read_text())["components"]}
    names = {name.lower().replace("_", "-") for name in names}
    missing = {"numpy", "numba", "msgspec", "nvidia-ml-py", "prometheus-client"} - names
    if missing:
        sys.exit(f"the SBOM lacks {', '.join(sorted(missing))}")


def checksums(dist: Path) -> Path:
    """One line a file, as ``sha256sum --check`` reads them."""
    files = sorted(path for path in dist.iterdir() if path.is_file() and not path.name.startswith(SUMS))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    sums = dist / SUMS
    sums.write_text("".join(lines))
    return sums


def sign(sums: Path, key: str) -> None:
    """A detached signature by an OpenSSH key; ``docs/release.md`` says how to check it."""
    sums.with_name(f"{SUMS}.sig").unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-Y", "sign", "-f", Path(key).expanduser(), "-n", "file", sums)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--no-deb", action="store_true", help="leave the Debian package out")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    key = os.environ.get("SIGN_KEY", "")
    shutil.rmtree(args.dist, ignore_errors=True)
    args.dist.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="mlsecd-release-") as directory:
        tools = environment(Path(directory) / "tools", *TOOLS)
        wheel = distributions(args.dist, tools)
        bill_of_materials(args.dist, wheel, tools, Path(directory))
        if not args.no_deb:
            run(ROOT / "packaging" / "build-deb.sh", args.dist, env={"PIP": str(tools.with_name("pip"))})
    sums = checksums(args.dist)
    if key:
        sign(sums, key)
    print(sums.read_text(), end="")
    print(f"signed with {key}" if key else "not signed: set SIGN_KEY to an OpenSSH private key", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
