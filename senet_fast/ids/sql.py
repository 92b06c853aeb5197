"""A layout in SQL: what decodes and bounds IDs inside a database. `python -m senet_fast sql --dialect postgresql`."""

from __future__ import annotations

from senet_fast.ids.layout import Layout

# A dialect is one row. Bounds multiply rather than shift: past the lifetime of a layout of 63 bits that is an error, or
# a number above every ID, where a shift would wrap. Bounds round up to the next tick, as Layout.min_id does.
DIALECTS = {
    # Times are intervals of whole seconds and milliseconds, since PostgreSQL multiplies intervals in float8, and all of
    # it happens in UTC without a zone: such functions are immutable, so that the planner computes bounds beforehand.
    "postgresql": """\
CREATE OR REPLACE FUNCTION snowflake_timestamp(id bigint) RETURNS timestamptz
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
  SELECT (timestamp '1970-01-01' + {ms} / 1000 * interval '1 second'
    + {ms} % 1000 * interval '1 millisecond') AT TIME ZONE 'UTC' $$;
CREATE OR REPLACE FUNCTION snowflake_worker(id bigint) RETURNS bigint
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
  SELECT {worker} $$;
CREATE OR REPLACE FUNCTION snowflake_sequence(id bigint) RETURNS bigint
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
  SELECT {sequence} $$;
-- The smallest ID of a tick that begins at or after the time: IDs of [a, b) are
-- id >= snowflake_min_id(a) AND id < snowflake_min_id(b).
CREATE OR REPLACE FUNCTION snowflake_min_id("time" timestamptz) RETURNS bigint
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
  SELECT least((greatest((extract(epoch FROM "time" AT TIME ZONE 'UTC') * 1000000)::bigint - {epoch_us}, 0)
    + {tick_us} - 1) / {tick_us}, {ticks}) * {tick_ids} $$;
""",
    "mysql": """\
-- Times are DATETIMEs in UTC, whatever the session's time_zone.
DROP FUNCTION IF EXISTS snowflake_timestamp;
CREATE FUNCTION snowflake_timestamp(id BIGINT) RETURNS DATETIME(3) DETERMINISTIC NO SQL
  RETURN TIMESTAMP'1970-01-01 00:00:00.000' + INTERVAL {ms} DIV 1000 SECOND
    + INTERVAL {ms} % 1000 * 1000 MICROSECOND;
DROP FUNCTION IF EXISTS snowflake_worker;
CREATE FUNCTION snowflake_worker(id BIGINT) RETURNS BIGINT DETERMINISTIC NO SQL
  RETURN {worker};
DROP FUNCTION IF EXISTS snowflake_sequence;
CREATE FUNCTION snowflake_sequence(id BIGINT) RETURNS BIGINT DETERMINISTIC NO SQL
  RETURN {sequence};
-- The smallest ID of a tick that begins at or after the time: IDs of [a, b) are
-- id >= snowflake_min_id(a) AND id < snowflake_min_id(b).
DROP FUNCTION IF EXISTS snowflake_min_id;
CREATE FUNCTION snowflake_min_id(`time` DATETIME(6)) RETURNS BIGINT DETERMINISTIC NO SQL
  RETURN LEAST((GREATEST(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', `time`) - {epoch_us}, 0)
    + {tick_us} - 1) DIV {tick_us}, {ticks}) * {tick_ids};
""",
    "sqlite": """\
-- SQLite has no CREATE FUNCTION. Put your table and column in the place of orders and id.
ALTER TABLE orders ADD COLUMN snowflake_timestamp TEXT
  AS (strftime('%Y-%m-%d %H:%M:%f', {ms} / 1000.0, 'unixepoch')) VIRTUAL;
ALTER TABLE orders ADD COLUMN snowflake_worker INTEGER
  AS ({worker}) VIRTUAL;
ALTER TABLE orders ADD COLUMN snowflake_sequence INTEGER
  AS ({sequence}) VIRTUAL;
-- The IDs of [:begin, :end) in microseconds since 1970; of a date these are strftime('%s', '2024-05-01') * 1000000.
SELECT * FROM orders WHERE
  id >= min((max(:begin - {epoch_us}, 0) + {tick_us} - 1) / {tick_us}, {ticks}) * {tick_ids}
  AND id < min((max(:end - {epoch_us}, 0) + {tick_us} - 1) / {tick_us}, {ticks}) * {tick_ids};
""",
    "clickhouse": """\
CREATE OR REPLACE FUNCTION snowflake_timestamp AS (id) ->
  fromUnixTimestamp64Milli(toInt64({ms}), 'UTC');
CREATE OR REPLACE FUNCTION snowflake_worker AS (id) ->
  {worker};
CREATE OR REPLACE FUNCTION snowflake_sequence AS (id) ->
  {sequence};
-- The smallest ID of a tick that begins at or after the time: IDs of [a, b) are
-- id >= snowflake_min_id(a) AND id < snowflake_min_id(b). Text and dates are read as UTC.
CREATE OR REPLACE FUNCTION snowflake_min_id AS (time) ->
  toUInt64(least(intDiv(greatest(toUnixTimestamp64Micro(toDateTime64(time, 6, 'UTC')) - {epoch_us}, 0)
    + {tick_us} - 1, {tick_us}), {ticks})) * {tick_ids};
""",
}


def functions(dialect: str, layout: Layout) -> str:
    """SQL for the dialect, with the layout's constants filled in: snowflake_timestamp(id), snowflake_worker(id),
    snowflake_sequence(id) and snowflake_min_id(time), or what takes their place.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect is {dialect!r}; expected one of {', '.join(DIALECTS)}")
    layout.min_id(0)  # raises where IDs do not sort by time

    def field(name: str) -> str:
        width, shift = getattr(layout, name)
        mask = (1 << width) - 1
        if dialect == "clickhouse":
            return f"bitAnd(bitShiftRight(id, {shift}), {mask})"
        return f"((id >> {shift}) & {mask})" if shift else f"(id & {mask})"

    ticks = field("timestamp") if layout.tick_ms == 1 else f"{field('timestamp')} * {layout.tick_ms}"
    return DIALECTS[dialect].format(
        ms=f"({ticks} + {layout.epoch_ms})",
        worker=field("worker"),
        sequence=field("sequence"),
        epoch_us=layout.epoch_ms * 1000,
        tick_us=layout.tick_ms * 1000,
        ticks=layout.timestamp.max + 1,
        tick_ids=1 << layout.timestamp.shift,
    )
