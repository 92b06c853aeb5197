"""A model of the claim, the fork, the lease and the shared word (csrc/ids/snowflake.h, leases/), in every interleaving.

Invariant: no ID twice, and each state's IDs increase. A checker that finds nothing proves nothing, so each bug that a
reader might think harmless is planted once, and must be found.
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
    log: dict[int, int] = field(default_factory=dict)  # the last ID of each state

    def key(self) -> Any:
        states = tuple((state.word, state.granted) for state in self.states)
        return self.clock, states, frozenset(self.issued), self.until, self.owner, tuple(sorted(self.log.items()))

    def issue(self, state: State, words: range) -> None:
        at = self.states.index(state)
        for word in words:
            assert word not in self.issued, f"ID {word} twice"
            assert word > self.log.get(at, -1), f"ID {word} after {self.log.get(at)}"
            self.issued.add(word)
            self.log[at] = word


def claim(world: World, state: State, n: int, bugs: str, skew: int = 0) -> Generator[None, None, bool]:
    """senet::ids::claim(): true if IDs were issued."""
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
    end = min((tick + 1) << BITS, granted)
    yield
    last = state.word
    while True:
        if last <= CLOSED:
            return False
        first = max(last + 1, now)
        if bugs == "the clock is trusted" and last >= end:
            first = now
        if first >= end:
            return False
        count = min(n, end - first)
        yield
        if bugs == "no compare before the swap" or state.word == last:
            state.word = first + count - 1
            world.issue(state, range(first, first + count))
            return True
        last = state.word


def draws(world: World, state: State, sizes: tuple[int, ...], bugs: str, skew: int = 0) -> Actor:
    for n in sizes:
        yield from claim(world, state, n, bugs, skew)


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
            yield from claim(world, own, 1, bugs)
            own.word = FORKED
        else:
            world.states.append(own)
        yield from draws(world, own, (1, 1), bugs)

    return world, [draws(world, parent, (1, 2), bugs), draws(world, parent, (1,), bugs), child(), clock(world, (1,))]


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


def lease(bugs: str, skew: int) -> tuple[World, list[Actor]]:
    """A holder that may be paused at any step, its renewals, and a successor whose clock differs."""
    world = World(states=[State(granted=0), State(granted=0)])
    one, two = world.states

    def holder() -> Actor:
        if (yield from acquire(world, one, "A", bugs)):
            yield from draws(world, one, (1, 2), bugs)

    def successor() -> Actor:
        if (yield from acquire(world, two, "B", bugs)):
            yield from draws(world, two, (2,), bugs, skew)

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


Scenario = Callable[[str], tuple[World, list[Actor]]]
SCENARIOS: dict[str, Scenario] = {
    "threads": threads,
    "fork": fork,
    "lease": lambda bugs: lease(bugs, 0),
    "lease, successor behind": lambda bugs: lease(bugs, -2),
    "lease, successor ahead": lambda bugs: lease(bugs, 1),
    "given back": given_back,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_interleaving_repeats_an_id(name: str) -> None:
    assert explore(lambda: SCENARIOS[name]("")) > 500


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("threads", "no compare before the swap"),
        ("threads", "the clock is trusted"),
        ("fork", "the child copies the word"),
        ("fork", "a hook wipes the child's page later"),
        ("lease", "lease checked before the clock is read"),
        ("lease", "a renewal that does not ask who owns it"),
        ("lease, successor behind", "the successor begins at its own now"),
        ("given back", "given back before it is closed"),
    ],
)
def test_a_planted_bug_is_found(name: str, bug: str) -> None:
    with pytest.raises(Violation):
        explore(lambda: SCENARIOS[name](bug))
