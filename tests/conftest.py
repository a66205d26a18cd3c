"""What all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests import `support` and `fakenvml`


@pytest.fixture(scope="session")
def in_ci() -> bool:
    """In CI a missing package is a failure, elsewhere a reason to skip."""
    return os.environ.get("CI") == "true"
