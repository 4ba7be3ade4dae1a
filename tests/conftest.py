"""Shared by all tests: two threads, quiet libraries, and no silent skips in CI."""

from __future__ import annotations

import os

# Before torch is imported anywhere: as in retort/__init__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

# Other processes may hold the cores: no test depends on a time.
settings.register_profile("retort", deadline=None)
settings.load_profile("retort")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("RETORT_NO_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped where skips count as failures: {report.longrepr}"
    return report
