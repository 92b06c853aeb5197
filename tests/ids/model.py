"""A model of the claim and of what it works on (csrc/ids/snowflake.h), for test_model*.py.

Invariants: no ID twice; each state's IDs increase, and each thread's; no ID's tick lies after the clock's by more than
max_drift, nor before it by more than max_lag; where a sequence starts, a claim gets no fewer IDs than from 0.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from explore import Actor

FORKED, CLOSED, FRESH = 0, 1, 3
BITS = 1  # of the sequence: two IDs a tick
UNBOUNDED = 1 << 60
START = 4  # the tick of the clock at first


@dataclass
class State:
    """What lives in a page: senet::ids::State."""

    word: int = FRESH
    granted: int = UNBOUNDED
    worker: int = 0
    last: int = FRESH  # once closed

    def close(self) -> int:
        """The last ID, also of what was closed before; in one step."""
        if self.word != CLOSED:
            self.last, self.word = self.word, CLOSED
        return self.last


@dataclass
class World:
    clock: int = START
    states: list[State] = field(default_factory=lambda: [State()])
    issued: set[int] = field(default_factory=set)
    until: int = 0  # of the store
    owner: str | None = None
    version: int = 0  # of until, where the store counts its writes
    seen: dict[str, int] = field(default_factory=dict)  # the version that a holder wrote last
    killed: bool = False
    dice: int = 0  # where a random start falls
    log: dict[int | str, int] = field(default_factory=dict)  # the last ID of each state, and of each named thread

    def key(self) -> Any:
        states = tuple((state.word, state.granted, state.last) for state in self.states)
        store = self.until, self.owner, self.version, tuple(sorted(self.seen.items()))
        here = self.clock, self.killed, self.dice, frozenset(self.issued)
        return here, states, store, frozenset(self.log.items())

    def worker_of(self, state: State) -> int:
        return state.worker

    def issue(self, state: State, words: range, ticks: range, thread: str | None) -> None:
        at = next(i for i, one in enumerate(self.states) if one is state)
        for word in words:
            tick, sequence = divmod(word, 1 << BITS)
            number = (tick << 1 | self.worker_of(state)) << BITS | sequence
            assert number not in self.issued, f"ID {number} twice"
            self.issued.add(number)
            assert tick in ticks, f"ID {number} of tick {tick}, not in {ticks}"
            for whose in [at] if thread is None else [at, thread]:
                assert number > self.log.get(whose, -1), f"ID {number} after {self.log.get(whose)}"
                self.log[whose] = number


@dataclass(frozen=True)
class Options:
    """Of a generator, in ticks."""

    skew: int = 0
    lag: int = 0
    drift: int = 0
    start: str = "0"  # or "random", "rolling"
    tick_ms: int = 1


def claim(
    world: World, state: State, n: int, bugs: str, options: Options, thread: str | None = None
) -> Generator[None, None, bool]:
    """senet::ids::claim(): true if IDs were issued."""
    skew, lag, drift = options.skew, options.lag, options.drift
    if bugs == "lease checked before the clock is read":
        yield
        if (world.clock + skew) << BITS >= state.granted:
            return False
    yield
    tick = (world.clock + skew) // options.tick_ms
    yield
    granted = state.granted if "before the clock" not in bugs else UNBOUNDED
    now = tick << BITS
    if now >= granted:
        return False
    end = min((tick + drift + 1) << BITS, granted)
    if bugs == "the sequence runs on":
        end += 1
    room = min((tick + 1) << BITS, granted) - now
    begin = now - min(max(0, n - room), lag << BITS)
    if bugs == "a burst begins where it likes":
        begin = now - max(0, n - room)
    yield
    last = state.word
    opens = last + 1 < begin
    while True:
        if last <= CLOSED:
            return False
        first = max(last + 1, begin)
        enough = min(n, end - first)
        if bugs != "whether a tick is opened is asked once":
            opens = last + 1 < begin
        if opens:
            if options.start == "random":
                yield
            start = {"0": 0, "random": world.dice, "rolling": (last + 1) % (1 << BITS)}[options.start]
            if n + start <= room or bugs == "a start that the claim does not fit behind":
                first = begin + start
            if bugs == "what a start skips is counted":
                n -= start
        if bugs == "a burst goes back behind the last ID" and n > room:
            first = begin
        if bugs == "the clock is trusted" and last >= end:
            first = now
        if bugs == "the sequence goes round" and options.start != "0" and first >= end:
            first = now
        count = min(n, end - first)
        assert count >= enough, f"{count} IDs, {enough} from 0"
        if count <= 0:
            return False
        yield
        if bugs == "no compare before the swap" or state.word == last:
            state.word = first + count - 1
            if bugs == "the worker id is read after the claim":
                yield
            world.issue(state, range(first, first + count), range(tick - lag, tick + drift + 1), thread)
            return True
        last = state.word


def draws(world: World, state: State, sizes: tuple[int, ...], bugs: str, options: Options = Options()) -> Actor:
    for n in sizes:
        yield from claim(world, state, n, bugs, options)


def clock(world: World, steps: tuple[int, ...]) -> Actor:
    for step in steps:
        yield
        world.clock += step
