"""Shared by tests of Milvus: they need pymilvus and Milvus Lite, which runs in the process.

Tests are skipped without them, and fail instead where MRRAG_REQUIRE_MILVUS is 1.
"""

from __future__ import annotations

import importlib.util
import os

import pytest


def need_milvus() -> None:
    """Skip the test where pymilvus or Milvus Lite is not installed."""
    missing = [name for name in ("pymilvus", "milvus_lite") if not importlib.util.find_spec(name)]
    if missing and os.environ.get("MRRAG_REQUIRE_MILVUS") == "1":
        pytest.fail(f"MRRAG_REQUIRE_MILVUS is 1 and {missing[0]} is not installed.")
    if missing:
        pytest.skip(f"{missing[0]} is not installed.")
