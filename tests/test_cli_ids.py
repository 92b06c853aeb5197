"""The commands of IDs, run as users run them: pipes, bad lines, files of Windows, JSON, time zones, ranges."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli_testing import COMMAND, lock_files, run  # noqa: F401 - the fixture is for every test here


def test_ids_increase_and_decode() -> None:
    drawn = run("ids", "-n", "10000", "--worker-id", "7")
    ids = [int(line) for line in drawn.stdout.splitlines()]
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert ids == sorted(set(ids))
    assert len(ids) == 10000
    decoded = run("decode", stdin=drawn.stdout.encode())
    rows = [line.split("\t") for line in decoded.stdout.splitlines()]
    assert [int(row[0]) for row in rows] == ids
    assert {row[2] for row in rows} == {"7"}
    assert rows[0][1].endswith("+00:00")


def test_hex_has_one_width_and_round_trips() -> None:
    drawn = run("ids", "-n", "3", "--layout", "wide", "--worker-id", "1", "--format", "hex").stdout
    assert {len(line) for line in drawn.splitlines()} == {16}
    decoded = run("decode", "--layout", "WIDE", "--format", "hex", stdin=drawn.encode())
    assert decoded.returncode == 0
    assert [line.split("\t")[0] for line in decoded.stdout.splitlines()] == drawn.split()


def test_no_ids_for_a_count_of_zero() -> None:
    done = run("ids", "-n", "0", "--worker-id", "1")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_layout_without_workers_needs_no_worker_id() -> None:
    done = run("ids", "--layout", "local")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout)


def test_decode_keeps_the_good_lines() -> None:
    lines = [b"175928847299117063", b"", b"12x", b"\xff\xfe", b"-5", b"99999999999999999999", b"1_0", b"0"]
    done = run("decode", stdin=b"\n".join(lines))
    assert done.returncode == 1
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0] == ["175928847299117063", "2012-03-03T13:01:20.453+00:00", "32", "7", "datacenter=1 worker=0"]
    assert rows[1] == ["0", "2010-11-04T01:42:54.657+00:00", "0", "0", "datacenter=0 worker=0"]
    assert len(rows) == 2
    complaints = done.stderr.splitlines()
    assert [complaint.split(":")[1].strip() for complaint in complaints] == [f"line {line}" for line in range(3, 8)]
    assert "'12x'" in complaints[0]


def test_decode_takes_arguments() -> None:
    done = run("decode", "175928847299117063", "twelve")
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "'twelve'" in done.stderr


# "\u0661" and "\uff11" are ones of other scripts, which int() reads; so are the others numbers to somebody.
NO_IDS = [
    "",
    "1_0",
    "+1",
    "-0",
    "1e5",
    "0x1f",
    "1.0",
    "1,000",
    "\u0661",
    "\uff11",
    "\u00b9",
    "9" * 20,
    "1 2",
    "\ufeff1",
]


@pytest.mark.parametrize("form", ["int", "hex"])
def test_what_is_no_number_is_refused_by_name(form: str) -> None:
    wrong = [text for text in NO_IDS if text and (text, form) != ("1e5", "hex")]
    done = run("decode", "--format", form, stdin="\n".join(["1", *wrong]).encode())
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    complaints = done.stderr.splitlines()
    assert [complaint.partition(": ")[2].partition(": ")[0] for complaint in complaints] == [
        f"line {place}" for place in range(2, len(wrong) + 2)
    ]
    arguments = run("decode", "--format", form, "--", *NO_IDS[:2])
    assert (arguments.returncode, arguments.stdout, arguments.stderr.count("\n")) == (1, "", 2)


def test_hex_may_be_shorter_than_its_width() -> None:
    done = run("decode", "--layout", "js53", "--format", "hex", "1F", "000000000000001f")
    assert [line.split("\t")[2:] for line in done.stdout.splitlines()] == [["0", "31"]] * 2


def test_files_of_windows_are_read() -> None:
    """They begin with a byte order mark, and lines end in CR LF."""
    done = run("decode", stdin=b"\xef\xbb\xbf175928847299117063\r\n\r\n0\r\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["175928847299117063", "0"]


def test_bytes_are_utf8_whatever_the_locale() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONUTF8": "0"}
    lines = b"\xef\xbb\xbf5\n\xd9\xa1\n\xff\n"
    done = subprocess.run([*COMMAND, "decode"], input=lines, capture_output=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout[:2], done.stderr.count(b"\n")) == (1, b"5\t", 2)
    assert b"line 2" in done.stderr
    assert rb"line 3: '\\xff'" in done.stderr


def test_decode_in_a_time_zone() -> None:
    def time(zone: str, **environment: str) -> str:
        done = subprocess.run(
            [*COMMAND, "decode", "--tz", zone, "1541815603606036480"],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=120,
        )
        return done.stdout.split("\t")[1]

    assert time("Europe/Berlin") == "2022-06-28T18:07:40.105+02:00"
    assert time("Asia/Kolkata") == "2022-06-28T21:37:40.105+05:30"
    assert time("local", TZ="America/New_York") == "2022-06-28T12:07:40.105-04:00"
    assert time("UTC", TZ="America/New_York") == "2022-06-28T16:07:40.105+00:00"


def test_decode_to_json() -> None:
    done = run("decode", "--json", "--layout", "discord", "--tz", "Asia/Tokyo", "175928847299117063", "x", "0")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert len(rows) == 2
    assert rows[0] == {
        "id": "175928847299117063",  # a string: JavaScript's numbers have 53 bits
        "timestamp": "2016-04-30T20:18:25.796+09:00",
        "timestamp_ms": 1462015105796,
        "worker_id": 32,
        "sequence": 7,
        "parts": {"worker": 1, "process": 0},
    }
    assert json.loads(run("decode", "--json", "--layout", "js53", "5").stdout)["parts"] == {}


BAD_THEN_GOOD = "(yes xx | head -20000; echo 1541815603606036480)"


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2> >(head -1 >/dev/null)", "2> >(exec <&-; sleep 0.1)"])
def test_no_line_is_lost_where_nobody_reads_stderr(stderr: str) -> None:
    shell = f"{BAD_THEN_GOOD} | {shlex.join(COMMAND)} decode {stderr}"
    done = subprocess.run(["bash", "-c", shell], stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout.split("\t")[:3] == ["1541815603606036480", "2022-06-28T16:07:40.105+00:00", "378"]


def test_a_reader_that_stops_hides_no_bad_line() -> None:
    """What was no ID before the reader stopped still makes the exit code 1."""
    shell = f"{BAD_THEN_GOOD[:-1]}; yes 5 | head -100000) | {shlex.join(COMMAND)} decode 2>/dev/null | head -1"
    done = subprocess.run(
        ["bash", "-c", f"{shell}; echo ${{PIPESTATUS[1]}}"], stdout=subprocess.PIPE, text=True, timeout=120
    )
    assert done.stdout.splitlines()[1:] == ["1"]


def test_stdin_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    shell = f"{shlex.join(COMMAND)} decode 0>{shlex.quote(str(tmp_path / 'nothing'))}"  # open for writing
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: stdin cannot be read: ")
    assert done.stderr.count("\n") == 1


def test_lines_before_an_unreadable_one_are_printed() -> None:
    code = """
import io, sys
from senet_fast.cli import main
class Lines:
    def __iter__(self):
        yield "5"
        raise OSError(5, "Input/output error")
sys.stdin = Lines()
sys.exit(main(["decode"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout[:2]) == (1, "5\t")
    assert done.stderr == "error: stdin cannot be read: [Errno 5] Input/output error\n"


@pytest.mark.parametrize("form", ["base32", "base62"])
def test_forms_sort_and_round_trip(form: str) -> None:
    drawn = run("ids", "-n", "5000", "--worker-id", "3", "--format", form).stdout
    lines = drawn.split()
    assert lines == sorted(set(lines))
    decoded = run("decode", "--format", form, stdin=drawn.encode())
    assert (decoded.returncode, decoded.stderr) == (0, "")
    assert [line.split("\t")[0:3:2] for line in decoded.stdout.splitlines()] == [[line, "3"] for line in lines]
    assert run("decode", "--format", form, "?").returncode == 1


def test_without_a_worker_id_processes_draw_different_ids(tmp_path: Path) -> None:
    environment = {**os.environ, "SENET_FAST_LEASES": str(tmp_path)}
    drawing = [
        subprocess.Popen([*COMMAND, "ids", "-n", "50000"], stdout=subprocess.PIPE, env=environment) for _ in range(3)
    ]
    drawn = [process.communicate(timeout=60)[0].split() for process in drawing]
    assert [len(lines) for lines in drawn] == [50000] * 3
    assert len(set().union(*drawn)) == 150_000
    environment["SENET_FAST_LEASES"] = "/dev/null/nowhere"
    done = subprocess.run([*COMMAND, "ids"], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


@pytest.mark.slow
def test_ten_million_are_streamed() -> None:
    """In bounded memory: the limit lies below what their numbers alone would take."""
    limited = f"ulimit -v 250000; {shlex.join(COMMAND)} ids -n 10000000 --layout local --format hex | tail -c 17"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {limited}"], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, "", 17)


def test_range() -> None:
    done = run("range", "--layout", "discord", "2016-04-30", "2016-04-30T12:00:00+00:00")
    first, last = map(int, done.stdout.split())
    assert done.returncode == 0
    assert first <= 175928847299117063 <= last
    assert [
        row.split("\t")[1] for row in run("decode", "--layout", "discord", str(first), str(last)).stdout.splitlines()
    ] == [
        "2016-04-30T00:00:00.000+00:00",
        "2016-04-30T11:59:59.999+00:00",
    ]
    in_ms = run("range", "--layout", "discord", "1461974400000", "1462017600000", "--format", "hex").stdout
    assert [int(text, 16) for text in in_ms.split()] == [first, last]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["2016-04-30", "yesterday"], "'yesterday' is no time"),
        (["2016-04-30T12:00", "2016-05-01"], "has no time zone; expected one, as in 2016-04-30T12:00Z"),
        (["2016-05-01", "2016-04-30"], "no ID of twitter lies from"),
        (["2016-05-01"], "TO"),
        (["1461974400", "1462017600"], "'1461974400' is a number of 10 digits: seconds?; expected ISO 8601 such as"),
        (["1461974400000000", "2016-05-01"], "is a number of 16 digits; expected ISO 8601"),
        (["2016", "2017"], "'2016' is a number of 4 digits"),
        (["17121016012", "2017-01-01"], "'17121016012' is a number of 11 digits"),
        (["1_461_974_400_000", "2016-05-01"], "'1_461_974_400_000' is no time"),
        (["\u0661" * 13, "2016-05-01"], "is a number of 13 digits; expected"),
        (["2016W01T12", "2016-05-01"], "'2016W01T12' has no time zone"),
        (["2016-04-30T12:00:00.0000001Z", "2016-05-01"], "finer than a microsecond"),
    ],
)
def test_bad_ranges(arguments: list[str], named: str) -> None:
    done = run("range", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr


def test_ranges_to_the_microsecond_and_dates_in_digits() -> None:
    def bounds(begin: str, end: str) -> list[int]:
        return [int(text) for text in run("range", begin, end).stdout.split()]

    first, last = bounds("2024-05-01T00:00:00.000001Z", "2024-05-01T23:59:59.999999Z")
    assert (first - (1 << 22), last) == tuple(bounds("2024-05-01", "2024-05-02"))
    assert (
        bounds("20240501", "20240502") == bounds("1714521600000", "1714608000000") == bounds("2024-W18-3", "20240502")
    )
