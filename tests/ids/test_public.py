"""Hidden IDs: their format for ever, that nothing is lost, and that nothing shows through."""

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from senet_fast.ids import JS53, TWITTER, PublicID
from senet_fast.ids.strings import FORMS

KEY = bytes(range(32))
MAX = 2**63 - 1


def independent(key: bytes, number: int, bits: int) -> int:
    """The same permutation, written in strings of binary digits."""
    digits = f"{number:0{bits}b}"
    right_width = bits // 2
    left, right = digits[: bits - right_width], digits[bits - right_width :]
    for step in range(10):
        other = right if step % 2 == 0 else left
        message = bits.to_bytes(1, "big") + step.to_bytes(1, "big") + int(other, 2).to_bytes(4, "big")
        digest = hashlib.blake2b(message, key=key, person=b"senet_fast ids\0\0", digest_size=4).hexdigest()
        stream = f"{int(digest, 16):032b}"
        if step % 2 == 0:
            left = "".join("01"[a != b] for a, b in zip(left, stream[-len(left) :], strict=True))
        else:
            right = "".join("01"[a != b] for a, b in zip(right, stream[-len(right) :], strict=True))
    return int(left + right, 2)


# Fixed: what was shown to the public must reveal the same ID in every later version.
KNOWN = [
    (KEY, 63, 0, 5736990936657644682),
    (KEY, 63, 1541815603606036480, 8643836384428248379),
    (KEY, 63, 9223372036854775807, 234324239112267669),
    (KEY, 53, 9007199254740991, 4173112730125316),
    (KEY, 16, 5, 19546),
    (KEY, 17, 5, 93136),
    (b"k" * 16, 63, 0, 3481615183560283953),
    (b"k" * 16, 63, 1541815603606036480, 1506975370928285476),
    (b"k" * 16, 63, 9223372036854775807, 5481769319237649539),
    (b"k" * 16, 53, 9007199254740991, 4607782963826944),
    (b"k" * 16, 16, 5, 34901),
    (b"k" * 16, 17, 5, 117093),
    (b"\xff" * 64, 63, 0, 5890559703247072654),
    (b"\xff" * 64, 63, 1541815603606036480, 4098123221149731396),
    (b"\xff" * 64, 63, 9223372036854775807, 2814004466433111150),
    (b"\xff" * 64, 53, 9007199254740991, 8644845650753740),
    (b"\xff" * 64, 16, 5, 11839),
    (b"\xff" * 64, 17, 5, 100823),
]


@pytest.mark.parametrize(("key", "bits", "number", "hidden"), KNOWN)
def test_known_answers(key: bytes, bits: int, number: int, hidden: int) -> None:
    public = PublicID(key, bits=bits)
    assert public.hide(number) == hidden == independent(key, number, bits)
    assert public.reveal(hidden) == number


@given(st.binary(min_size=16, max_size=64), st.integers(16, 63), st.integers(0, MAX), st.sampled_from([*FORMS]))
def test_round_trip(key: bytes, bits: int, number: int, form: str) -> None:
    public, number = PublicID(key, bits=bits), number & (1 << bits) - 1
    hidden = public.hide(number)
    assert 0 <= hidden < 1 << bits
    assert hidden == independent(key, number, bits)
    assert public.reveal(hidden) == number == public.hide(public.reveal(number))
    assert public.from_string(public.to_string(number, form), form) == number


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 17])
def test_every_number_is_hit_once(bits: int) -> None:
    public = PublicID(KEY, bits=bits)
    assert sorted(map(public.hide, range(1 << bits))) == list(range(1 << bits))


def test_every_bit_changes_half_of_the_others() -> None:
    """Of the ID, and of the key. Of 63 x 40 pairs each the mean is within 5 deviations of 31.5, which is 0.4."""
    source = np.random.default_rng(0)
    numbers = source.integers(0, MAX, 40).tolist()
    public = PublicID(KEY)
    plain = {number: public.hide(number) for number in numbers}
    for name, changed in {
        "id": [(number, public.hide(number ^ 1 << bit)) for number in numbers for bit in range(63)],
        "key": [
            (number, PublicID((int.from_bytes(KEY, "big") ^ 1 << 4 * bit).to_bytes(32, "big")).hide(number))
            for number in numbers
            for bit in range(63)
        ],
    }.items():
        flipped = np.array([plain[number] ^ hidden for number, hidden in changed])
        bits = (flipped[:, None] >> np.arange(63)) & 1
        assert abs(bits.sum(1).mean() - 31.5) < 0.4, name
        assert (abs(bits.mean(0) - 0.5) < 0.05).all(), name


def test_order_and_time_do_not_show() -> None:
    """IDs in a row, as they are drawn, are hidden in no order."""
    numbers = TWITTER.encode(1_700_000_000_000) + np.arange(4000)
    hidden = np.array([PublicID(KEY).hide(number) for number in numbers.tolist()])
    assert 0.45 < (np.diff(hidden) > 0).mean() < 0.55  # 6 deviations
    assert abs(np.corrcoef(hidden, numbers)[0, 1]) < 0.1


def test_strings_and_other_ints() -> None:
    public = PublicID(KEY, bits=53)
    number = JS53.encode(1_800_000_000_000, 3, 5)
    text = public.to_string(number)
    assert (len(text), public.from_string(text)) == (11, number)
    assert public.hide(np.int64(number)) == public.hide(number)
    assert type(public.hide(np.int64(number))) is int
    again = pickle.loads(pickle.dumps(public))
    assert again.hide(number) == public.hide(number)
    assert KEY.hex() not in repr(public)
    assert str(KEY) not in repr(public)


def test_bad_arguments() -> None:
    for key, error, message in [
        (b"x" * 15, ValueError, "key has 15 bytes; expected 16 to 64"),
        (b"x" * 65, ValueError, "key has 65 bytes"),
        (b"", ValueError, "key has 0 bytes"),
        ("secret" * 5, TypeError, "key is str; expected 16 to 64 bytes"),
        (None, TypeError, "key is NoneType"),
    ]:
        with pytest.raises(error, match=message) as raised:
            PublicID(key)  # type: ignore[arg-type]
        assert "secret" not in str(raised.value).replace("secrets.", "")
    for bits in (15, 64, 63.0):
        with pytest.raises((ValueError, TypeError), match="bits"):
            PublicID(KEY, bits=bits)  # type: ignore[arg-type]
    public = PublicID(KEY, bits=20)
    for call, name in [(public.hide, "id"), (public.reveal, "number")]:
        for bad, error in [(-1, ValueError), (1 << 20, ValueError), ("5", TypeError), (True, TypeError)]:
            with pytest.raises(error, match=f"^{name} "):
                call(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 11 of base62"):
        public.from_string("x")
    with pytest.raises(ValueError, match=r"number = .*\(20 bits\)"):
        public.from_string("0000000000100000", "hex")
