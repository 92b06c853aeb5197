"""Where people use IDs, each with the real library; what is not installed is skipped."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import needs
import numpy as np
import pytest
from ids_testing import LIMIT_S, ROOT, FakeClock, Generator, run_program

from senet_fast.ids import TWITTER, Layout, Snowflake, aio, to_string

NO_IDS = [np.int64(-1), np.uint64(2**63), np.True_, np.float64(5), np.array([5]), np.datetime64(5, "ms")]


def test_asyncio(generator_class: Generator) -> None:
    """Many tasks draw more than a tick holds, and the loop runs on."""
    generator = generator_class(layout=Layout(timestamp=38, sequence=3, epoch_ms=1_600_000_000_000, tick_ms=20))

    async def main() -> tuple[list[int], int, np.ndarray]:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        other = asyncio.create_task(others())
        numbers = await asyncio.gather(*(aio.next_id(generator) for _ in range(40)))
        meanwhile = turns
        many = await aio.next_ids(generator, 20)
        other.cancel()
        return numbers, meanwhile, many

    numbers, turns, many = asyncio.run(main())
    assert len({*numbers, *many.tolist()}) == 60
    assert turns > 5  # of about 60


def test_asyncio_timeout(generator_class: Generator, fake_clock: FakeClock) -> None:
    generator = generator_class(1, clock=fake_clock)
    generator.next_ids(4096)

    async def main() -> None:
        async with asyncio.timeout(0.02):
            await aio.next_id(generator)

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_asyncio_cancelled(generator_class: Generator) -> None:
    """No slice is begun after the cancellation, so that a loop need not wait for the rest to close."""
    layout = Layout(timestamp=38, sequence=3, epoch_ms=1_600_000_000_000, tick_ms=20)
    generator = generator_class(layout=layout)
    slices: list[int] = []

    class Counting:
        layout = generator.layout
        try_next, try_fill = generator.try_next, generator.try_fill

        @staticmethod
        def fill(out: np.ndarray) -> None:
            slices.append(out.size)
            generator.fill(out)

    async def main() -> int:
        task = asyncio.create_task(aio.next_ids(Counting(), 2000))  # for 5 s
        while not slices:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(slices)

    begun = asyncio.run(main())  # which joins the thread
    assert len(slices) == begun
    assert max(slices) == 16  # two ticks' worth: 40 ms


def test_asyncio_of_many(generator_class: Generator, worker_id: int, fake_clock: FakeClock) -> None:
    """A burst of unused milliseconds is one slice; several slices are in order; bad counts."""
    layout = Layout(timestamp=41, worker=10, sequence=3, epoch_ms=0)
    generator = generator_class(worker_id, layout, max_lag_ms=50, clock=fake_clock, timeout=1)
    fake_clock.now_ms += 100
    assert asyncio.run(aio.next_ids(generator, 400)).size == 400  # 320 IDs are a slice, and this clock stands still
    generator = generator_class(worker_id, layout)
    drawn = asyncio.run(aio.next_ids(generator, 1000))
    assert drawn.dtype == np.int64
    assert (np.diff(drawn) > 0).all()
    assert asyncio.run(aio.next_ids(generator, 0)).size == 0
    with pytest.raises(ValueError, match="n = -1; expected"):
        asyncio.run(aio.next_ids(generator, -1))


def test_sqlalchemy(worker_id: int) -> None:
    sqlalchemy = needs.library("sqlalchemy")
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

    from senet_fast.ids.sqlalchemy import SnowflakeID, in_time_range

    generator = Snowflake(worker_id)

    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(SnowflakeID, primary_key=True, default=generator.next_id)
        name: Mapped[str]

    engine = sqlalchemy.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    assert "id BIGINT NOT NULL" in str(sqlalchemy.schema.CreateTable(Order.__table__))
    before = datetime.now(UTC)
    with Session(engine) as session:
        session.add_all([Order(name="a"), Order(name="b")])
        session.commit()
        session.execute(sqlalchemy.insert(Order), [{"name": name} for name in "cdef"])
        old = TWITTER.encode(before - timedelta(days=1))
        session.add(Order(id=old, name="old"))
        session.commit()
        rows = session.scalars(sqlalchemy.select(Order).order_by(Order.id)).all()
        assert [row.name for row in rows] == ["old", "a", "b", "c", "d", "e", "f"]
        for begin, end, names in [
            (before - timedelta(seconds=1), before + timedelta(minutes=1), "abcdef"),
            (before - timedelta(days=2), before - timedelta(hours=1), ["old"]),
            (0, 1, ""),
            (before, 2**60, "abcdef"),
        ]:
            query = sqlalchemy.select(Order.name).where(in_time_range(Order.id, begin, end, TWITTER))
            assert sorted(session.scalars(query)) == sorted(names)
        session.add(Order(id=-1, name="bad"))
        with pytest.raises(sqlalchemy.exc.StatementError, match="id = -1; expected 0 <= id"):
            session.commit()
        session.rollback()

        kept = session.get(Order, old)
        assert kept is not None
        for kind in (np.int64, np.uint64):
            assert session.get(Order, kind(old)) is kept
            assert session.scalars(sqlalchemy.select(Order.name).where(Order.id == kind(old))).all() == ["old"]
            session.add(Order(id=kind(ord(kind.__name__[0])), name="numpy"))
        session.commit()
        session.expunge_all()
        assert session.get(Order, ord("u")).id == ord("u")
        for bad in (str(old), float(old), *NO_IDS):
            if not isinstance(bad, np.ndarray):  # which SQLAlchemy cannot look up
                with pytest.raises(sqlalchemy.exc.StatementError, match="expected"):
                    session.get(Order, bad)
        with pytest.raises(sqlalchemy.exc.StatementError, match=f"id is '{old}' .str.; expected an int"):
            session.get(Order, str(old))

        names = sqlalchemy.select(Order.name)
        count = len(session.scalars(names).all())
        with pytest.raises(sqlalchemy.exc.IntegrityError):  # one default for all rows
            session.execute(sqlalchemy.insert(Order).from_select(["name"], names))
        session.rollback()
        session.execute(sqlalchemy.insert(Order), [{"name": name} for name in session.scalars(names)])
        assert len(set(session.scalars(sqlalchemy.select(Order.id)))) == 2 * count


def test_pydantic(worker_id: int) -> None:
    pydantic = needs.library("pydantic")
    from senet_fast.ids.pydantic import SnowflakeID, id_type

    class Order(pydantic.BaseModel):
        id: SnowflakeID
        link: id_type("base62") = 5  # type: ignore[valid-type]

    Order.model_rebuild()
    number = Snowflake(worker_id).next_id()
    order = Order(id=number, link=number)
    assert order.model_dump() == {"id": number, "link": number}
    assert order.model_dump_json() == f'{{"id":"{number}","link":"{to_string(number)}"}}'
    assert Order.model_validate_json(order.model_dump_json()) == order
    assert Order(id=str(number)).id == number
    for kind in (np.int64, np.uint64, np.int32, np.array):
        read = Order(id=kind(77), link=kind(78))
        assert (read.id, read.link, type(read.id), type(read.link)) == (77, 78, int, int)
    for bad in (*("1_0", "-1", -1, 2**63, 1.5, None, "9" * 20, "9" * 19, "\u0661", True, [1]), *NO_IDS):
        with pytest.raises(pydantic.ValidationError):
            Order(id=bad)
    with pytest.raises(pydantic.ValidationError, match="expected 11 of base62"):
        Order(id=1, link="abc")
    assert Order.model_json_schema()["properties"]["id"]["type"] == "string"
    with pytest.raises(ValueError, match="form is 'roman'"):
        id_type("roman")


def test_pydantic_serves_numpy_ids_without_numpy() -> None:
    needs.library("pydantic")
    run_program(
        "import sys, pydantic, senet_fast.ids.pydantic as ids\n"
        "assert pydantic.TypeAdapter(ids.SnowflakeID).validate_python(5) == 5 and 'numpy' not in sys.modules"
    )


def test_msgspec(worker_id: int) -> None:
    msgspec = needs.library("msgspec")
    from senet_fast.ids.msgspec import SnowflakeID, dec_hook, enc_hook

    class Link(SnowflakeID):
        form = "base62"

    order_type = msgspec.defstruct("Order", [("id", SnowflakeID), ("links", list[Link], msgspec.field(default=[]))])
    number = Snowflake(worker_id).next_id()
    order = order_type(SnowflakeID(np.int64(number)), [Link(number)])
    for module in (msgspec.json, msgspec.msgpack):
        written = module.encode(order, enc_hook=enc_hook)
        assert module.decode(written) == {"id": str(number), "links": [to_string(number)]}
        read = module.decode(written, type=order_type, dec_hook=dec_hook)
        assert read == order
        assert (type(read.id), type(read.links[0])) == (SnowflakeID, Link)
    with pytest.raises(msgspec.ValidationError, match=r"id is 'x'; expected a decimal number.*\$.id"):
        msgspec.json.decode('{"id": "x"}', type=order_type, dec_hook=dec_hook)
    with pytest.raises(TypeError, match="unsupported"):
        msgspec.json.encode(order)  # rather than a number
    for hook, arguments in ((enc_hook, (1j,)), (dec_hook, (complex, "1"))):
        with pytest.raises(NotImplementedError, match="complex"):
            hook(*arguments)
    for bad, error in [(-1, ValueError), ("5", TypeError), (True, TypeError)]:
        with pytest.raises(error, match="expected"):
            SnowflakeID(bad)


class Samples:
    """A dataset whose samples get an ID in the worker that loads them."""

    def __init__(self, generator: Snowflake) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 4000

    def __getitem__(self, index: int) -> int:
        return self.generator.next_id()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_data_loader_workers(worker_id: int) -> None:
    data = needs.library("torch.utils.data")
    generator = Snowflake(worker_id, on_fork="share")
    loader = data.DataLoader(
        Samples(generator), batch_size=50, num_workers=2, timeout=LIMIT_S, multiprocessing_context="fork"
    )
    drawn = np.concatenate([batch.numpy() for _ in range(2) for batch in loader])
    assert np.unique(drawn).size == 8000
    assert generator.next_id() > drawn.max()


def blocks() -> list[str]:
    text = (Path(__file__).resolve().parents[2] / "docs/ids.md").read_text()
    return [part.split("```")[0] for part in text.split("```python\n")[1:]]


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.split("\n")[0][:40])
def test_the_recipes_run(block: str, tmp_path: Path) -> None:
    for name in ("pandas", "pyarrow", "sqlalchemy", "django", "rest_framework", "pydantic", "msgspec", "torch"):
        if f"import {name}" in block or f"from {name}" in block:
            needs.library(name)
    environment = {"SENET_FAST_LEASES": str(tmp_path / "leases"), "PYTHONPATH": str(ROOT)}
    run_program(block, cwd=tmp_path, env=environment, options="-W error")
