"""The axis of every generator test: the compiled class and its twin."""

from itertools import count

import pytest
from ids_testing import FakeClock, Generator

from senet_fast.ids import Layout, PythonSnowflake, Snowflake
from senet_fast.ids.leases import _host

_workers = count()
_epochs = count(1_600_000_000_000)


@pytest.fixture(params=[Snowflake, PythonSnowflake], ids=["compiled", "python"])
def generator_class(request: pytest.FixtureRequest) -> Generator:
    return request.param


@pytest.fixture
def fake_clock() -> FakeClock:
    return FakeClock(1_800_000_000_000)


@pytest.fixture
def worker_id() -> int:
    """A worker that no other test uses: generators of one worker share their state for the life of the process."""
    return next(_workers)


@pytest.fixture
def own_layout() -> Layout:
    """Widths of TWITTER, with an epoch that no other test uses: every worker of it is free in this process."""
    return Layout(timestamp=41, worker=10, sequence=12, epoch_ms=next(_epochs))


@pytest.fixture
def a_shared_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host, where /var/tmp is everybody's."""
    monkeypatch.setattr(_host, "why_private", lambda path: None)
    monkeypatch.delenv("SENET_FAST_LEASES", raising=False)
