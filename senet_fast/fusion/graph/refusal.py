"""Why something is left as it is."""


class NotTraced(Exception):
    """A forward that depends on more than fx can see."""


class Rejected(Exception):
    """Not an excitation. ``near``: it squeezes x and gates it, so its reason is worth reporting."""

    def __init__(self, reason: str, near: bool = False) -> None:
        super().__init__(reason)
        self.near = near
