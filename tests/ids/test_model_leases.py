"""Leases of servers in every interleaving of a model, as test_model.py has it for the claim: holders that are paused or
killed at any step, and their successors. What is lost and acquired again is in test_model_losses.py.
"""

from collections.abc import Callable, Generator

import pytest
from explore import Actor, Violation, explore
from model import BITS, Options, State, World, clock, draws

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
    last = state.word if bugs == "given back before it is closed" else state.close()
    yield
    if world.owner == me:
        world.until, world.owner = min(world.until, (last >> BITS) + 1), None
    yield
    state.close()


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


Scenario = Callable[[str], tuple[World, list[Actor]]]
SCENARIOS: dict[str, Scenario] = {
    "lease": lambda bugs: lease(bugs, 0),
    "lease, successor behind": lambda bugs: lease(bugs, -2),
    "lease, successor ahead": lambda bugs: lease(bugs, 1),
    "starts, lease": lambda bugs: lease(bugs, 0, "random"),
    "given back": given_back,
    "session lost": session_lost,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_interleaving_repeats_an_id(name: str) -> None:
    assert explore(lambda: SCENARIOS[name]("")) > 500


@pytest.mark.parametrize(
    ("name", "bug", "broken"),
    [
        ("lease", "lease checked before the clock is read", "twice"),
        ("lease", "a renewal that does not ask who owns it", "twice"),
        ("lease, successor behind", "the successor begins at its own now", "twice"),
        ("given back", "given back before it is closed", "twice"),
        ("session lost", "taken over whatever was written meanwhile", "twice"),
    ],
)
def test_a_planted_bug_is_found(name: str, bug: str, broken: str) -> None:
    with pytest.raises(Violation, match=broken):
        explore(lambda: SCENARIOS[name](bug))
