"""The axis of every generator test: the compiled class and its twin."""

from itertools import count

import pytest
from ids_testing import FakeClock, Generator

from senet_fast.ids import PythonSnowflake, Snowflake

_workers = count()


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
