"""What a generator may raise besides TypeError and ValueError for bad arguments."""


class SnowflakeError(Exception):
    """Base of all errors of a generator at work."""


class ClockMovedBackwards(SnowflakeError):
    """The clock reads more than `max_backward_ms` before the last ID issued."""


class ClockOutOfRange(SnowflakeError):
    """The clock reads a time that the layout's timestamp cannot hold: before its epoch, or past its lifetime."""


class ForkedError(SnowflakeError):
    """This process is a fork's child and the generator belongs to its parent."""


class SnowflakeTimeout(SnowflakeError, TimeoutError):
    """The clock offered no new ID for `timeout` seconds."""


class LeaseError(SnowflakeError):
    """No worker id could be leased, or a lease could not be renewed."""


class LeaseExpired(SnowflakeError):
    """The clock reads a time past the generator's lease of its worker id, or the lease was given back."""
