"""What the generator tests share."""

from senet_fast.ids import PythonSnowflake, Snowflake

Generator = type[Snowflake] | type[PythonSnowflake]


class FakeClock:
    """A clock that stands still until told otherwise."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms
