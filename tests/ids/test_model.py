"""A model of the claim, the fork, the lease and the shared word (csrc/ids/snowflake.h, leases/), in every interleaving.

Invariants: no ID twice; each state's IDs increase; no ID's tick lies after the clock's by more than max_drift, nor
before it by more than max_lag; where a sequence starts, a claim gets no fewer IDs than from 0. A checker that finds
nothing proves nothing, so each bug that a reader might think harmless is planted once, and must be found.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
from explore import Actor, Violation, explore

FORKED, CLOSED, FRESH = 0, 1, 3
BITS = 1  # of the sequence: two IDs a tick
UNBOUNDED = 1 << 60
START = 4  # the tick of the clock at first


@dataclass
class State:
    """What lives in a page: senet::ids::State."""

    word: int = FRESH
    granted: int = UNBOUNDED


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
    log: dict[int, int] = field(default_factory=dict)  # the last ID of each state

    def key(self) -> Any:
        states = tuple((state.word, state.granted) for state in self.states)
        store = self.until, self.owner, self.version, tuple(sorted(self.seen.items()))
        here = self.clock, self.killed, self.dice, frozenset(self.issued)
        return here, states, store, tuple(sorted(self.log.items()))

    def issue(self, state: State, words: range, ticks: range) -> None:
        at = next(i for i, one in enumerate(self.states) if one is state)
        for word in words:
            assert word not in self.issued, f"ID {word} twice"
            assert word > self.log.get(at, -1), f"ID {word} after {self.log.get(at)}"
            assert word >> BITS in ticks, f"ID {word} of tick {word >> BITS}, not in {ticks}"
            self.issued.add(word)
            self.log[at] = word


@dataclass(frozen=True)
class Options:
    """Of a generator, in ticks."""

    skew: int = 0
    lag: int = 0
    drift: int = 0
    start: str = "0"  # or "random", "rolling"


def claim(world: World, state: State, n: int, bugs: str, options: Options) -> Generator[None, None, bool]:
    """senet::ids::claim(): true if IDs were issued."""
    skew, lag, drift = options.skew, options.lag, options.drift
    if bugs == "lease checked before the clock is read":
        yield
        if (world.clock + skew) << BITS >= state.granted:
            return False
    yield
    tick = world.clock + skew
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
            world.issue(state, range(first, first + count), range(tick - lag, tick + drift + 1))
            return True
        last = state.word


def draws(world: World, state: State, sizes: tuple[int, ...], bugs: str, options: Options = Options()) -> Actor:
    for n in sizes:
        yield from claim(world, state, n, bugs, options)


def clock(world: World, steps: tuple[int, ...]) -> Actor:
    for step in steps:
        yield
        world.clock += step


def threads(bugs: str) -> tuple[World, list[Actor]]:
    """Threads, or processes that map one file: any of them may be killed between any two steps."""
    world = World()
    state = world.states[0]
    return world, [
        draws(world, state, (1, 1), bugs),
        draws(world, state, (2,), bugs),
        draws(world, state, (1,), bugs),
        clock(world, (1, -1, 2)),
    ]


def fork(bugs: str) -> tuple[World, list[Actor]]:
    """The kernel wipes the child's page in the same step that makes it, whatever the parent's threads are doing."""
    world = World()
    parent = world.states[0]

    def child() -> Actor:
        yield
        own = State(parent.word if bugs == "the child copies the word" else FORKED)
        if bugs == "a hook wipes the child's page later":
            own = State(parent.word)
            world.states.append(own)
            yield from claim(world, own, 1, bugs, Options())
            own.word = FORKED
        else:
            world.states.append(own)
        yield from draws(world, own, (1, 1), bugs)

    return world, [draws(world, parent, (1, 2), bugs), draws(world, parent, (1,), bugs), child(), clock(world, (1,))]


def bursts(bugs: str, start: str = "0") -> tuple[World, list[Actor]]:
    """Threads of one worker: one may be late, one early, one is neither."""
    world = World(dice=1)
    state = world.states[0]
    return world, [
        draws(world, state, (5,), bugs, Options(lag=2, start=start)),
        draws(world, state, (1, 2), bugs, Options(start=start)),
        draws(world, state, (4,), bugs, Options(drift=1, start=start)),
        clock(world, (1, -1, 2)),
    ]


def restart(bugs: str, options: Options) -> tuple[World, list[Actor]]:
    """A process is killed at any step, and the next one of its worker starts a tick later. What was borrowed from the
    future is in a file; without borrowing nothing is.
    """
    world = World()
    old = world.states[0]

    def until_killed(actor: Actor) -> Actor:
        while not world.killed and next(actor, actor) is not actor:
            yield

    def next_process() -> Actor:
        yield
        world.killed = True
        world.clock += 1
        state = old if options.drift and bugs != "borrowed without a mark" else State()
        if state is not old:
            world.states.append(state)
        yield
        if options.lag and bugs != "a burst begins before the generator":
            state.word = max(state.word, (world.clock << BITS) - 1)
        yield from draws(world, state, (5, 1), bugs, options)

    return world, [
        until_killed(draws(world, old, (3, 2), bugs, options)),
        next_process(),
        clock(world, (1, 1)),
    ]


TTL = 2


def acquire(world: World, state: State, me: str, bugs: str) -> Generator[None, None, bool]:
    """The server's step is one; its answer takes a while."""
    yield
    if world.until > world.clock:
        return False
    begin, world.owner, world.until = world.until, me, world.clock + TTL
    until = world.until
    yield
    if bugs != "the successor begins at its own now":
        state.word = max(state.word, (begin << BITS) - 1)
    state.granted = until << BITS
    return True


def renew(world: World, state: State, me: str, bugs: str) -> Actor:
    yield
    if world.owner != me and bugs != "a renewal that does not ask who owns it":
        return
    world.until = max(world.until, world.clock + TTL)
    until = world.until
    yield
    state.granted = max(state.granted, until << BITS)


def close(world: World, state: State, me: str, bugs: str) -> Actor:
    yield
    if bugs == "given back before it is closed":
        last = state.word
    else:
        last, state.word = state.word, CLOSED
    yield
    if world.owner == me:
        world.until, world.owner = min(world.until, (last >> BITS) + 1), None
    yield
    state.word = CLOSED


def lease(bugs: str, skew: int, start: str = "0") -> tuple[World, list[Actor]]:
    """A holder that may be paused at any step, its renewals, and a successor whose clock differs."""
    world = World(dice=1, states=[State(granted=0), State(granted=0)])
    one, two = world.states

    def holder() -> Actor:
        if (yield from acquire(world, one, "A", bugs)):
            yield from draws(world, one, (1, 2), bugs, Options(start=start))

    def successor() -> Actor:
        if (yield from acquire(world, two, "B", bugs)):
            yield from draws(world, two, (2,), bugs, Options(skew, start=start))

    return world, [holder(), renew(world, one, "A", bugs), successor(), clock(world, (1, 1, 1, 1))]


def given_back(bugs: str) -> tuple[World, list[Actor]]:
    """A holder closes while a thread of its own is in a claim, and another takes over at once."""
    world = World(states=[State(granted=0), State(granted=0)])
    one, two = world.states

    def holder() -> Actor:
        if (yield from acquire(world, one, "A", bugs)):
            yield from draws(world, one, (1,), bugs)
            yield from close(world, one, "A", bugs)

    def successor() -> Actor:
        if (yield from acquire(world, two, "B", bugs)):
            yield from draws(world, two, (1, 2), bugs)

    thread = draws(world, one, (1, 1), bugs)
    return world, [holder(), thread, successor(), clock(world, (1, 1))]


def session_lost(bugs: str) -> tuple[World, list[Actor]]:
    """A store like ZooKeeper: an owner that vanishes with its session, an end that is written only over a known
    version. The holder, paused past its end, renews while another takes over.
    """
    world = World(states=[State(granted=0), State(granted=0)])
    one, two = world.states

    def take(state: State, me: str) -> Generator[None, None, bool]:
        yield
        if world.owner is not None:
            return False
        world.owner = me
        yield
        begin, version = world.until, world.version
        until = world.clock + TTL
        if begin <= world.clock:
            yield
            if world.version == version or bugs == "taken over whatever was written meanwhile":
                world.until, world.version = max(until, world.until), world.version + 1
                world.seen[me] = world.version
                yield
                state.word = max(state.word, (begin << BITS) - 1)
                state.granted = until << BITS
                return True
        yield
        if world.owner == me:
            world.owner = None
        return False

    def extend(state: State, me: str) -> Actor:
        yield
        until = world.clock + TTL
        yield
        if me in world.seen and world.version == world.seen[me]:
            world.until, world.version = max(until, world.until), world.version + 1
            world.seen[me] = world.version
            yield
            state.granted = max(state.granted, until << BITS)

    def life(state: State, me: str, sizes: tuple[int, ...]) -> Actor:
        if (yield from take(state, me)):
            yield from draws(world, state, sizes, bugs)

    def session_ends() -> Actor:
        yield
        if world.owner == "A":
            world.owner = None

    actors = [life(one, "A", (1,)), extend(one, "A"), session_ends(), life(two, "B", (2,)), clock(world, (1, 1, 1))]
    return world, actors


def starts(bugs: str) -> tuple[World, list[Actor]]:
    """Generators of one word that each start a tick's sequence elsewhere. A random start at 0 is the default."""
    world = World()

    def dice() -> Actor:
        for world.dice in (1, 0):
            yield

    random = draws(world, world.states[0], (1, 2), bugs, Options(start="random"))
    rolling = draws(world, world.states[0], (1, 1), bugs, Options(start="rolling"))
    return world, [random, rolling, dice(), clock(world, (1, -1, 2))]


Scenario = Callable[[str], tuple[World, list[Actor]]]
SCENARIOS: dict[str, Scenario] = {
    "threads": threads,
    "fork": fork,
    "lease": lambda bugs: lease(bugs, 0),
    "lease, successor behind": lambda bugs: lease(bugs, -2),
    "lease, successor ahead": lambda bugs: lease(bugs, 1),
    "given back": given_back,
    "starts": starts,
    "starts, bursts": lambda bugs: bursts(bugs, "random"),
    "starts, lease": lambda bugs: lease(bugs, 0, "random"),
    "bursts": bursts,
    "restart, late": lambda bugs: restart(bugs, Options(lag=1)),
    "restart, early": lambda bugs: restart(bugs, Options(drift=2)),
    "session lost": session_lost,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_interleaving_repeats_an_id(name: str) -> None:
    assert explore(lambda: SCENARIOS[name]("")) > 500


@pytest.mark.parametrize(
    ("name", "bug", "broken"),
    [
        ("threads", "no compare before the swap", "twice"),
        ("threads", "the clock is trusted", "after"),
        ("fork", "the child copies the word", "twice"),
        ("fork", "a hook wipes the child's page later", "twice"),
        ("lease", "lease checked before the clock is read", "twice"),
        ("lease", "a renewal that does not ask who owns it", "twice"),
        ("lease, successor behind", "the successor begins at its own now", "twice"),
        ("given back", "given back before it is closed", "twice"),
        ("threads", "the sequence runs on", "of tick"),
        ("bursts", "a burst begins where it likes", "of tick"),
        ("bursts", "a burst goes back behind the last ID", "after"),
        ("restart, late", "a burst begins before the generator", "twice"),
        ("restart, early", "borrowed without a mark", "twice"),
        ("starts", "whether a tick is opened is asked once", "twice"),
        ("starts", "the sequence goes round", "after"),
        ("starts", "a start that the claim does not fit behind", "1 IDs, 2 from 0"),
        ("starts", "what a start skips is counted", "0 IDs, 1 from 0"),
        ("session lost", "taken over whatever was written meanwhile", "twice"),
    ],
)
def test_a_planted_bug_is_found(name: str, bug: str, broken: str) -> None:
    with pytest.raises(Violation, match=broken):
        explore(lambda: SCENARIOS[name](bug))
