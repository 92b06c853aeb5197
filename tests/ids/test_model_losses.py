"""Losses (leases/_held.py, lock_file.py) in every interleaving of a model, as test_model.py has it for the claim:
leases that are acquired again while threads are in claims, lock files that are deleted while they are held, and the
marks of folders that a group shares.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import pytest
from explore import Actor, Violation, explore
from model import BITS, CLOSED, START, Options, State, World, claim, clock


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


def group(bugs: str) -> tuple[World, list[Actor]]:
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

    child = draw(one, 1, False)
    actors = [until_killed(parent()), until_killed(child), kill(), successor(), clock(world, (1,))]
    return world, actors


Scenario = Callable[[str], tuple[World, list[Actor]]]
SCENARIOS: dict[str, Scenario] = {
    "reacquired": reacquired,
    "reacquired, closing": lambda bugs: reacquired(bugs, True),
    "deleted": lambda bugs: deleted(bugs, 1),
    "deleted, long ticks": lambda bugs: deleted(bugs, 3),
    "group": group,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_interleaving_repeats_an_id(name: str) -> None:
    assert explore(lambda: SCENARIOS[name]("")) > 500


@pytest.mark.parametrize(
    ("name", "bug", "broken"),
    [
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
