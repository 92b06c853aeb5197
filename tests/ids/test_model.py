"""The claim, the fork, the restart and the shared word (csrc/ids/snowflake.h) in every interleaving of a model. A
checker that finds nothing proves nothing, so each bug that a reader might think harmless is planted once, and must be
found. Leases are in test_model_leases.py, and their losses in test_model_losses.py.
"""

from collections.abc import Callable

import pytest
from explore import Actor, Violation, explore
from model import BITS, FORKED, Options, State, World, claim, clock, draws


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
    "starts": starts,
    "starts, bursts": lambda bugs: bursts(bugs, "random"),
    "bursts": bursts,
    "restart, late": lambda bugs: restart(bugs, Options(lag=1)),
    "restart, early": lambda bugs: restart(bugs, Options(drift=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_interleaving_repeats_an_id(name: str) -> None:
    assert explore(lambda: SCENARIOS[name]("")) > 500


@pytest.mark.parametrize(
    ("name", "bug", "broken"),
    [
        ("threads", "no compare before the swap", "twice"),
        ("threads", "the clock is trusted", r"after \d"),
        ("fork", "the child copies the word", "twice"),
        ("fork", "a hook wipes the child's page later", "twice"),
        ("threads", "the sequence runs on", "of tick"),
        ("bursts", "a burst begins where it likes", "of tick"),
        ("bursts", "a burst goes back behind the last ID", r"after \d"),
        ("restart, late", "a burst begins before the generator", "twice"),
        ("restart, early", "borrowed without a mark", "twice"),
        ("starts", "whether a tick is opened is asked once", "twice"),
        ("starts", "the sequence goes round", "twice"),
        ("starts", "a start that the claim does not fit behind", "1 IDs, 2 from 0"),
        ("starts", "what a start skips is counted", "0 IDs, 1 from 0"),
    ],
)
def test_a_planted_bug_is_found(name: str, bug: str, broken: str) -> None:
    with pytest.raises(Violation, match=broken):
        explore(lambda: SCENARIOS[name](bug))
