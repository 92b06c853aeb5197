"""Every interleaving of a few actors. An actor is a generator function that yields before each access to shared memory;
whoever is never scheduled again was killed, or paused for ever.
"""

from collections.abc import Callable, Generator, Hashable
from types import GeneratorType
from typing import Any

Actor = Generator[None, None, None]
PLAIN = (int, str, tuple, type(None))


class Violation(AssertionError):
    """An invariant does not hold; its argument is the schedule that led there."""


def explore(scenario: Callable[[], tuple[Any, list[Actor]]], limit: int = 400_000) -> int:
    """Visits every state that `scenario` can reach and returns their number.

    `scenario` makes a fresh world and its actors; the world has `key()`, all of its state, and raises AssertionError
    where an invariant breaks. Two moments are one state if the world and each actor's place and variables are equal.
    """
    seen: set[Hashable] = set()
    schedules: list[tuple[int, ...]] = [()]
    while schedules:
        schedule = schedules.pop()
        world, actors = scenario()
        try:
            for actor in schedule:
                next(actors[actor], None)
            while (key := (world.key(), *map(_place, actors))) not in seen:
                seen.add(key)
                assert len(seen) <= limit, "too many states: make the scenario smaller"
                alive = [i for i, actor in enumerate(actors) if actor.gi_frame is not None]  # type: ignore[attr-defined]
                if not alive:
                    break
                *others, actor = alive
                schedules += [(*schedule, i) for i in others]
                schedule = (*schedule, actor)  # from here, without making the world anew
                next(actors[actor], None)
        except AssertionError as error:
            raise Violation(f"{error} after {schedule}") from None
    return len(seen)


def _place(actor: Any) -> Hashable:
    """Where an actor stands, with the plain variables of it and of the generators it delegates to or holds."""
    places = []
    while actor is not None and (frame := actor.gi_frame) is not None:
        code, values = frame.f_code, frame.f_locals
        names = code.co_varnames + code.co_cellvars + code.co_freevars
        known = [_known(values[name]) if name in values else ... for name in names]
        places.append((code.co_name, frame.f_lasti, *known))
        actor = actor.gi_yieldfrom
    return tuple(places)


def _known(value: Any) -> Hashable:
    if isinstance(value, PLAIN):
        return value  # type: ignore[no-any-return]
    return _place(value) if type(value) is GeneratorType else ...
