"""A stand-in for NVIDIA's management library, for machines without a GPU: see README.md."""

from .build import build
from .state import PROFILES, FakeNvml

__all__ = ["PROFILES", "FakeNvml", "build"]
