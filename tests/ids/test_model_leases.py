"""Leases (leases/_held.py, lock_file.py, the servers') in every interleaving of a model, as test_model.py has it for the
claim: holders that are paused or killed at any step, successors, losses that are acquired again, files that are deleted.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import pytest
from explore import Actor, Violation, explore
from model import BITS, CLOSED, START, Options, State, World, claim, clock, draws

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
        last = state.close()
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


@dataclass
class Generators(World):
    """One generator, which goes on from another place after a loss."""

    slot: int = 0  # the place that its claims find
    place: int = 0  # what its Held closes
    state: str = "lost"
    close_wanted: bool = False
    close_sent: bool = False
    is_held: bool = False
    has_ended: bool = False  # the thread that keeps the lease
    is_closed: bool = False
    bugs: str = ""

    def key(self) -> Any:
        flags = self.close_wanted, self.close_sent, self.is_held, self.has_ended, self.is_closed
        return super().key(), self.slot, self.place, self.state, flags

    def worker_of(self, state: State) -> int:
        return (self.states[self.slot] if "read after the claim" in self.bugs else state).worker

    def issue(self, state: State, words: range, ticks: range, thread: str | None) -> None:
        assert not self.is_closed, "issued after close()"
        super().issue(state, words, ticks, thread)


def reacquired(bugs: str, closes: bool = False) -> tuple[World, list[Actor]]:
    """Held._keep() acquires the lower worker 0 in place of the lost worker 1, which is still granted; its generator's
    threads are in claims meanwhile, and another closes it.
    """
    world = Generators(states=[State(worker=1), State(granted=0)], bugs=bugs)
    old, new = world.states
    before = range(START << BITS, START + 1 << BITS)  # the last holder's of worker 0
    world.issue(new, before, range(START, START + 1), None)
    world.log.clear()

    def thread(name: str, times: int) -> Actor:
        for _ in range(times):
            yield
            at = world.slot
            yield from claim(world, world.states[at], 1, bugs, Options(), name)

    def adopt() -> Actor:
        new.word, new.granted = before[-1], (START + 9) << BITS
        world.place = 1
        yield
        last = old.word if bugs == "the old place stays open" else old.close()
        if bugs == "published before it skips":
            yield
            world.slot = 1
        yield
        if bugs != "the new place does not skip" and new.word != CLOSED:
            new.word = max(new.word, (((last >> BITS) + 1) << BITS) - 1)
        yield
        world.slot = 1

    def keep() -> Actor:
        yield
        world.is_held = True
        yield
        adopted = not world.close_wanted
        if adopted:
            yield
            yield from adopt()
        yield
        if adopted and (not world.close_wanted or bugs == "closing is not asked for again"):
            yield
            world.state = "held"
            yield
            if world.close_wanted and bugs != "held, whoever closed it meanwhile":
                world.state = "closed"
            while not world.close_sent:
                yield
        elif adopted:
            new.close()
        yield
        if bugs != "what was acquired meanwhile is kept" or world.state == "held":
            world.is_held = False
        world.has_ended = True

    def close() -> Actor:
        yield
        world.close_wanted = True
        yield
        world.state = "closed"
        yield
        at = world.place
        yield
        world.states[at].close()
        yield
        world.close_sent = True
        while not world.has_ended:
            yield
        world.is_closed = True
        assert not world.is_held, "held after close()"
        assert world.state == "closed", f"{world.state} after close()"

    if closes:
        return world, [thread("one", 2), keep(), close(), clock(world, (1,))]
    return world, [thread("one", 2), thread("two", 1), keep(), clock(world, (1, 1))]


LOOK = 2


def deleted(bugs: str, tick_ms: int) -> tuple[World, list[Actor]]:
    """A lock file is deleted while it is held, and another process holds the one that is made in its place. Each looks
    before it issues for a while; the file at the path is `world.version`, 2 for none.
    """
    world = World(states=[State(granted=0), State(granted=0)], version=0)
    world.clock *= tick_ms
    options = Options(tick_ms=tick_ms)

    def until_look(now: int) -> int:
        return ((now + LOOK) // tick_ms + 1) << BITS

    def look(at: int) -> Generator[None, None, bool]:
        yield
        now = world.clock
        yield
        if bugs == "extended before the look":
            world.states[at].granted = until_look(now)
            yield
        is_there = world.version == at
        if bugs == "reckoned from after the look":
            yield
            now = world.clock
        yield
        if is_there and bugs != "extended before the look":
            world.states[at].granted = until_look(now)
        return is_there

    def holder(at: int, is_fresh: bool, times: int) -> Actor:
        if is_fresh:
            while world.version != 2:
                yield
            world.version = at
        elif bugs == "the first end without a look":
            yield
            world.states[at].granted = until_look(world.clock)
        else:
            yield from look(at)
        if is_fresh:
            yield
            now = world.clock
            skip = until_look(now)
            if bugs == "the skip is rounded down":
                skip = (now + LOOK) // tick_ms << BITS
            if (yield from look(at)) and bugs != "a fresh file is not skipped":
                world.states[at].word = max(world.states[at].word, skip - 1)
        for _ in range(times):
            yield
            if world.clock // tick_ms << BITS >= world.states[at].granted and bugs != "claims are not bounded by looks":
                yield
                if not (yield from look(at)):
                    return
            if bugs == "claims are not bounded by looks":
                world.states[at].granted = 1 << 60
            yield from claim(world, world.states[at], 1, bugs, options)

    def delete() -> Actor:
        yield
        world.version = 2

    return world, [holder(0, False, 2), delete(), holder(1, True, 1), clock(world, (1, 2, 1))]


AHEAD = 2


def group(bugs: str, child_renews: bool = False) -> tuple[World, list[Actor]]:
    """The word in memory, which a forked child shares, and a mark ahead of it in the file (`world.until`). The parent
    closes, or all are killed at any step, and another takes the lock (`world.owner`).
    """
    world = World(states=[State(granted=0), State(granted=0)], owner="A", until=START)
    one, two = world.states

    def until_killed(actor: Actor) -> Actor:
        while not world.killed and next(actor, actor) is not actor:
            yield

    def renew(state: State) -> Actor:
        yield
        until = world.clock + AHEAD
        yield
        if bugs == "granted before the mark is written":
            state.granted = until << BITS
            yield
        world.until = until
        yield
        state.granted = max(state.granted, until << BITS)

    def draw(state: State, times: int, renews: bool) -> Actor:
        for _ in range(times):
            yield
            if renews and world.clock << BITS >= state.granted:
                yield from renew(state)
            yield from claim(world, state, 1, bugs, Options())

    def parent() -> Actor:
        yield from draw(one, 1, True)
        yield
        last = one.word if bugs == "the mark is lowered before it is closed" else one.close()
        yield
        world.until = (last >> BITS) + 1
        yield
        one.close()
        world.owner = None

    def kill() -> Actor:
        yield
        world.killed, world.owner = True, None

    def successor() -> Actor:
        yield
        if world.owner is not None:
            return
        world.owner = "B"
        yield
        begin = world.until
        if bugs != "the mark is not waited for":
            two.word = max(two.word, (begin << BITS) - 1)
        yield from renew(two)
        yield from draw(two, 1, False)

    child = draw(one, 1, child_renews)
    actors = [until_killed(parent()), until_killed(child), kill(), successor(), clock(world, (1, 1))]
    return world, actors


Scenario = Callable[[str], tuple[World, list[Actor]]]
SCENARIOS: dict[str, Scenario] = {
    "lease": lambda bugs: lease(bugs, 0),
    "lease, successor behind": lambda bugs: lease(bugs, -2),
    "lease, successor ahead": lambda bugs: lease(bugs, 1),
    "starts, lease": lambda bugs: lease(bugs, 0, "random"),
    "given back": given_back,
    "session lost": session_lost,
    "reacquired": reacquired,
    "reacquired, closing": lambda bugs: reacquired(bugs, True),
    "deleted": lambda bugs: deleted(bugs, 1),
    "deleted, long ticks": lambda bugs: deleted(bugs, 3),
    "group": group,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_interleaving_repeats_an_id(name: str) -> None:
    assert explore(lambda: SCENARIOS[name]("")) > 500


@pytest.mark.xfail(strict=True, reason="a child that is paused between its clock and its write may lower the mark")
def test_children_that_write_the_mark_too() -> None:
    explore(lambda: group("", child_renews=True))


@pytest.mark.parametrize(
    ("name", "bug", "broken"),
    [
        ("lease", "lease checked before the clock is read", "twice"),
        ("lease", "a renewal that does not ask who owns it", "twice"),
        ("lease, successor behind", "the successor begins at its own now", "twice"),
        ("given back", "given back before it is closed", "twice"),
        ("session lost", "taken over whatever was written meanwhile", "twice"),
        ("reacquired", "the worker id is read after the claim", r"twice|after \d"),
        ("reacquired", "the new place does not skip", r"after \d"),
        ("reacquired", "published before it skips", r"after \d"),
        ("reacquired", "the old place stays open", r"after \d"),
        ("reacquired, closing", "the old place stays open", r"issued after close|ID \d+ after \d"),
        ("reacquired, closing", "closing is not asked for again", r"issued after close\(\)"),
        ("reacquired, closing", "held, whoever closed it meanwhile", r"held after close\(\)"),
        ("reacquired, closing", "what was acquired meanwhile is kept", r"held after close\(\)"),
        ("deleted", "claims are not bounded by looks", "twice"),
        ("deleted", "a fresh file is not skipped", "twice"),
        ("deleted", "extended before the look", "twice"),
        ("deleted", "reckoned from after the look", "twice"),
        ("deleted", "the first end without a look", "twice"),
        ("deleted, long ticks", "the skip is rounded down", "twice"),
        ("group", "granted before the mark is written", "twice"),
        ("group", "the mark is lowered before it is closed", "twice"),
        ("group", "the mark is not waited for", "twice"),
    ],
)
def test_a_planted_bug_is_found(name: str, bug: str, broken: str) -> None:
    with pytest.raises(Violation, match=broken):
        explore(lambda: SCENARIOS[name](bug))
