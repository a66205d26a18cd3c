"""Builds the stand-in and says how to start the daemon on it: ``python -m tests.fakenvml [PROFILE] [DIRECTORY]``."""

from __future__ import annotations

import sys
from pathlib import Path

from .build import build
from .state import PROFILES, FakeNvml


def main(profile: str = "b200", directory: str = "") -> int:
    """Build, write the profile's state file, print the two variables."""
    if profile not in PROFILES:
        print(f"no profile {profile}: hint: one of {', '.join(PROFILES)}", file=sys.stderr)
        return 2
    where = Path(directory).resolve() if directory else Path(__file__).resolve().parent / "build"
    library = build(where)
    state = FakeNvml(where / "state.txt", profile).path
    print(f"built {library} and {state} ({profile}). Start the daemon on it, and edit the state file while it runs:\n")
    print(f"LD_LIBRARY_PATH={where} FAKENVML_STATE={state} mlsecd run")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:3]))
