"""The command line, run as users run it: help, pipes, bad lines, JSON."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "senet_fast"]


@pytest.fixture(autouse=True)
def lock_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the host's."""
    monkeypatch.setenv("SENET_FAST_LEASES", str(tmp_path / "leases"))


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=120)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_no_command_prints_help() -> None:
    done = run()
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(
        f"\n    {command} " in done.stdout for command in ("demo", "fuse", "ids", "decode", "range", "sql", "info")
    )


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


def test_a_reader_that_stops_is_no_error() -> None:
    with subprocess.Popen(
        [*COMMAND, "ids", "-n", "1000000", "--worker-id", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        int(process.stdout.readline())
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_a_full_disk_is_one_message() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, "ids", "--worker-id", "1"], stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [("ids --worker-id 1", "stdout"), ("decode 1", "stdout"), ("info", "stdout"), ("decode", "stdin")],
)
def test_a_closed_stream_is_one_message(arguments: str, closed: str) -> None:
    shell = shlex.join([*COMMAND, *arguments.split()]) + (" >&-" if closed == "stdout" else " <&-")
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {closed} is closed")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["ids", "--worker-id", "1024"], "1024"),
        (["ids", "--layout", "nobody"], "'nobody'; expected one of"),
        (["ids", "-n", "-1"], "-1"),
        (["ids", "--format", "roman"], "roman"),
        (["decode", "--layout", "nobody", "1"], "'nobody'"),
        (["nothing"], "nothing"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], named: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_decode_keeps_the_good_lines() -> None:
    lines = [b"175928847299117063", b"", b"12x", b"\xff\xfe", b"-5", b"99999999999999999999", b"1_0", b"0"]
    done = run("decode", stdin=b"\n".join(lines))
    assert done.returncode == 1
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0] == ["175928847299117063", "2012-03-03T13:01:20.453+00:00", "32", "7"]
    assert rows[1] == ["0", "2010-11-04T01:42:54.657+00:00", "0", "0"]
    assert len(rows) == 2
    complaints = done.stderr.splitlines()
    assert [complaint.split(":")[1].strip() for complaint in complaints] == [f"line {line}" for line in range(3, 8)]
    assert "'12x'" in complaints[0]


def test_decode_takes_arguments() -> None:
    done = run("decode", "175928847299117063", "twelve")
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "'twelve'" in done.stderr


def test_info() -> None:
    done = run("info", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0
    assert facts["isa"] in facts["isas"]
    assert isinstance(facts["cuda"], bool)
    assert facts["threads"] >= 1
    text = run("info").stdout
    assert facts["senet_fast"] in text
    assert facts["torch"] in text


@pytest.mark.parametrize("form", ["base32", "base62"])
def test_forms_sort_and_round_trip(form: str) -> None:
    drawn = run("ids", "-n", "5000", "--worker-id", "3", "--format", form).stdout
    lines = drawn.split()
    assert lines == sorted(set(lines))
    decoded = run("decode", "--format", form, stdin=drawn.encode())
    assert (decoded.returncode, decoded.stderr) == (0, "")
    assert [line.split("\t")[0::2] for line in decoded.stdout.splitlines()] == [[line, "3"] for line in lines]
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
    ],
)
def test_bad_ranges(arguments: list[str], named: str) -> None:
    done = run("range", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr


def test_sql() -> None:
    """tests/ids/test_sql.py gives it to databases."""
    for dialect in ("postgresql", "mysql", "sqlite", "clickhouse"):
        done = run("sql", "--dialect", dialect, "--layout", "sonyflake")
        assert (done.returncode, done.stderr) == (0, "")
        assert all(word in done.stdout for word in ("snowflake_timestamp", "snowflake_worker", "1409529600000"))
    assert "1288834974657" in run("sql", "--dialect", "sqlite").stdout
    for arguments, named in [
        (["--dialect", "db2"], "dialect is 'db2'; expected one of postgresql"),
        (["--dialect", "sqlite", "--layout", "nobody"], "'nobody'; expected one of"),
        ([], "--dialect"),
    ]:
        done = run("sql", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert named in done.stderr


@pytest.mark.parametrize(
    "command", ["ids --worker-id 1", "decode 1", "range 2024-01-01 2024-01-02", "sql --dialect mysql"]
)
def test_id_commands_load_neither_torch_nor_numpy(command: str) -> None:
    code = f"""
import sys
from senet_fast.cli import main
assert main({command.split()!r}) == 0
assert not {{"torch", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


MODEL = """
import torch
from senet_fast import SEBlock
def network():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), SEBlock(16, 4), torch.nn.BatchNorm2d(16))
def number():
    return 3
def sized(channels):
    return SEBlock(channels)
def near():
    block = network()
    block[1].fc1.register_forward_hook(print)
    return block
"""


def test_fuse_reports_and_times(tmp_path: Path, root: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    environment = {**os.environ, "PYTHONPATH": str(root)}  # the package may not be installed

    def fuse(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "fuse", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)

    done = fuse("mine:network", "--input", "2x3x8x9", "--seconds", "0.1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1     SEBlock  16        4       relu        sigmoid" in done.stdout
    assert re.search(r"before [0-9.]+ ms, after [0-9.]+ ms: [0-9.]+ times as fast", done.stdout)
    assert fuse("mine:network", "--seconds", "0").stdout.endswith("1 fused, 0 skipped\n")
    bad_input = fuse("mine:network", "--input", "2x4x8x9")
    assert bad_input.returncode == 1
    assert "does not take --input 2x4x8x9" in bad_input.stderr
    strict = fuse("mine:near", "--strict")
    assert strict.returncode == 1
    assert "1 (SEBlock): fc1 has hooks" in strict.stderr
    for wrong in ("mine:number", "mine:nothing", "mine:sized", "nowhere:model", "plain", "timm:no_such_network"):
        done = fuse(wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"MODEL is '{wrong}'" in done.stderr
        assert "Traceback" not in done.stderr


def test_fuse_takes_a_saved_program(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from senet_fast import SEBlock

    file = tmp_path / "block.pt2"
    torch.export.save(torch.export.export(SEBlock(8, 2), (torch.randn(2, 8, 5, 6),)), file)
    done = run("fuse", str(file), "--input", "2x8x5x6", "--seconds", "0.1")
    assert done.returncode == 0
    assert "(model)  GraphModule  8         4       relu        sigmoid" in done.stdout
    assert "times as fast" in done.stdout
    assert run("fuse", str(tmp_path / "none.pt2")).returncode == 2
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"not a program")
    done = run("fuse", str(broken))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"fuse: MODEL is '{broken}': ")  # torch logs of its own before
