"""Shared by all tests: caches outside the user's home, and processors for the tests that keep to the clock."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from niceness import may_give_way
from stalls import Disturbed, StallWatch

hypothesis.settings.register_profile("no times", deadline=None)
hypothesis.settings.load_profile("no times")

MAY_GIVE_WAY = may_give_way()
"""Only who may lower a niceness can return from giving way. Others run the tests side by side as equals."""

_watch = pytest.StashKey[StallWatch]()


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test run its own cache, unless the caller chose one."""
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let tests marked `real_time` be run one after another where the processes of `--dist loadgroup` share the work,
    and again, up to four times, where the machine stood still."""
    for item in items:
        if item.get_closest_marker("real_time"):
            item.add_marker(pytest.mark.xdist_group("real_time"))
            if config.pluginmanager.hasplugin("rerunfailures"):
                item.add_marker(pytest.mark.flaky(reruns=4, reruns_delay=3, only_rerun=["Disturbed"]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let all tests give way to those marked `real_time`, which run beside them in other processes."""
    if MAY_GIVE_WAY:
        # What a test starts inherits it.
        policy = os.SCHED_OTHER if item.get_closest_marker("real_time") else os.SCHED_IDLE
        os.sched_setscheduler(0, policy, os.sched_param(0))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[Any]:
    """Say of a failed test that keeps to the clock whether the machine kept to it."""
    if sys.platform != "linux" or not item.get_closest_marker("real_time"):
        return (yield)
    if _watch not in item.config.stash:
        watch = item.config.stash[_watch] = StallWatch()
        item.config.add_cleanup(watch.close)
    begin_ns = time.monotonic_ns()
    try:
        return (yield)
    except (Exception, pytest.fail.Exception) as error:
        if stood_ms := item.config.stash[_watch].worst_ms(begin_ns):
            message = f"this machine stood still for {stood_ms:.0f} ms during the test, which then failed: {error}"
            raise Disturbed(message) from error
        raise
