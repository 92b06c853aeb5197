"""IDs for the public eye: `PublicID(key).hide(number)` tells neither the time nor the count."""

from __future__ import annotations

from hashlib import blake2b

from senet_fast.ids._numbers import check_int
from senet_fast.ids.strings import from_string, to_string

_ROUNDS = 10


class PublicID:
    """A permutation of the numbers below 2**bits, chosen by a secret key: hide() and reveal() invert each other.

    key: 16 to 64 random bytes, as `secrets.token_bytes(32)` makes them. It must be kept: what is hidden is revealed by
        the same key and bits only, in every version of this library.
    bits: of the IDs and of what is shown for them. 63 takes any ID, 53 those of JS53, which JavaScript's numbers hold.

    This hides, and is no authentication: every number below 2**bits reveals to some ID, so that a row must still be
    looked up, and asked whether the caller may see it.
    """

    # An alternating Feistel network: the halves, of bits // 2 and the rest, are changed in turn by a keyed hash of the
    # other. The format is fixed by tests/ids/test_public.py.
    __slots__ = ("_bits", "_key")

    def __init__(self, key: bytes, *, bits: int = 63) -> None:
        if not isinstance(key, bytes):
            raise TypeError(f"key is {type(key).__name__}; expected 16 to 64 bytes, as of secrets.token_bytes(32)")
        if not 16 <= len(key) <= 64:
            raise ValueError(f"key has {len(key)} bytes; expected 16 to 64, as of secrets.token_bytes(32)")
        self._key, self._bits = key, check_int("bits", bits, 16, 63)

    def hide(self, id: int) -> int:
        """What the public sees in the place of the ID."""
        return self._permute(check_int("id", id, 0, (1 << self._bits) - 1, self._why), range(_ROUNDS))

    def reveal(self, number: int) -> int:
        """The ID that `number` hides."""
        number = check_int("number", number, 0, (1 << self._bits) - 1, self._why)
        return self._permute(number, range(_ROUNDS - 1, -1, -1))

    def to_string(self, id: int, form: str = "base62") -> str:
        """The hidden number in a form of senet_fast.ids.to_string."""
        return to_string(self.hide(id), form)

    def from_string(self, text: str, form: str = "base62") -> int:
        """The ID that a string of to_string() hides; ValueError where it is none."""
        return self.reveal(from_string(text, form))

    @property
    def _why(self) -> str:
        return f" ({self._bits} bits)"

    def _permute(self, number: int, rounds: range) -> int:
        width = self._bits // 2
        masks = (1 << self._bits - width) - 1, (1 << width) - 1
        halves = [number >> width, number & masks[1]]
        for step in rounds:
            side = step & 1
            text = bytes((self._bits, step)) + halves[not side].to_bytes(4, "big")
            word = blake2b(text, digest_size=4, key=self._key, person=b"senet_fast ids").digest()
            halves[side] ^= int.from_bytes(word, "big") & masks[side]
        return halves[0] << width | halves[1]
