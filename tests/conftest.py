"""What all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # tests import `support` and `fakenvml`

# how long a machine takes that others use as well says nothing of what is tested
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def in_ci() -> bool:
    """In CI a missing package is a failure, elsewhere a reason to skip."""
    return os.environ.get("CI") == "true"
