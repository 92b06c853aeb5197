"""Worker ids that a scheduler assigned."""

import os
from pathlib import Path

import pytest
from ids_testing import Forked, Generator, Program

from senet_fast.ids import TWITTER, Layout, LeaseError
from senet_fast.ids.leases import Environment


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENET_FAST_LEASES", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "worker_id"),
    [
        ({"SENET_FAST_WORKER_ID": "7", "RANK": "3"}, 7),
        ({"POD_INDEX": "4"}, 4),
        ({"POD_NAME": "web-frontend-12"}, 12),
        ({"POD_NAME": "train-0", "RANK": "3"}, 3),
        ({"POD_NAME": "web-frontend-12", "POD_INDEX": "12", "SLURM_PROCID": "3"}, 3),
        ({"POD_NAME": "job-2-x2x1z", "JOB_COMPLETION_INDEX": "2"}, 2),
        ({"CF_INSTANCE_INDEX": "8"}, 8),
        ({"NOMAD_ALLOC_INDEX": "9"}, 9),
        ({"RANK": "007"}, 7),
        ({"SLURM_PROCID": " 5\n"}, 5),
        ({"OMPI_COMM_WORLD_RANK": "6"}, 6),
        ({"PMI_RANK": "5"}, 5),
    ],
)
def test_environment(environ: dict[str, str], worker_id: int) -> None:
    for offset in (0, 100):
        lease = Environment(environ=environ, offset=offset)
        assert lease.acquire(TWITTER).worker_id == worker_id + offset
        lease.release(0)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "no worker id in the environment; expected one of SENET_FAST_WORKER_ID, RANK"),
        ({"RANK": ""}, "RANK is ''; expected a number"),
        ({"RANK": "-3x"}, "RANK is '-3x'"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "٣"}, "RANK is '٣'"),
        ({"POD_NAME": "web-7d4b9c6f5-x2x1z"}, "expected a number, or a name that ends in -NUMBER"),
        ({"POD_NAME": "web-7d4b9c6f5-24567"}, "as for the pods of a Deployment; expected the name of a StatefulSet's"),
        ({"POD_NAME": "web-007"}, "POD_NAME is 'web-007'"),
        ({"RANK": "1024"}, r"RANK is '1024': worker 1024; expected 0 <= worker <= 1023 \(10 bits\)"),
    ],
)
def test_bad_environments(environ: dict[str, str], message: str) -> None:
    with pytest.raises(LeaseError, match=message):
        Environment(environ=environ).acquire(TWITTER)


def test_environment_of_this_process(
    generator_class: Generator, own_layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TASK", "41")
    generator = generator_class.acquire(Environment("MY_TASK"), own_layout)
    assert generator.decode(generator.next_id()).worker_id == 41
    assert generator.lease is not None
    assert generator.lease.state == "held"
    generator.close()


WORKER = """
import sys
from senet_fast.ids import Layout, PythonSnowflake, Snowflake
from senet_fast.ids.leases import Environment
generator = {name}.acquire(Environment(shared={shared}), {layout!r})
print("ready", flush=True)
sys.stdin.readline()
print(*[generator.next_id() for _ in range(3000)])
"""


def test_two_processes_of_one_number(generator_class: Generator, own_layout: Layout) -> None:
    """As the workers of a web server in one pod are: refused, or issuing from one word."""
    pod = {"POD_NAME": "api-3"}
    name = generator_class.__name__
    with Program(WORKER.format(name=name, shared=False, layout=own_layout), env=pod) as first:
        assert first.line() == "ready"
        for shared in (False, True):
            with pytest.raises(
                LeaseError,
                match=r"POD_NAME is 'api-3', and .*: 1 of 1 worker ids are held; expected a number of its own for each"
                r" process and generator, or Environment\(shared=True\)",
            ):
                Environment(environ=pod, shared=shared).acquire(own_layout)
        first.go()
        ids = [first.ended().split()]
    source = WORKER.format(name=name, shared=True, layout=own_layout)
    with Program(source, env=pod) as one, Program(source, env=pod) as two, Program(source, env=pod) as three:
        for program in (one, two, three):
            assert program.line() == "ready"
        with pytest.raises(LeaseError, match="1 of 1 worker ids are held"):
            Environment(environ=pod).acquire(own_layout)
        for program in (one, two, three):
            program.go()
        ids += [program.ended().split() for program in (one, two, three)]
    drawn = [number for said in ids for number in said]
    assert len(set(drawn)) == len(drawn) == 12_000
    assert {own_layout.decode(int(number)).worker_id for number in drawn} == {3}


def test_ranks_in_one_pod(own_layout: Layout) -> None:
    leases = [Environment(environ={"POD_NAME": "train-0", "RANK": f"{rank}"}) for rank in range(4)]
    assert [lease.acquire(own_layout).worker_id for lease in leases] == [0, 1, 2, 3]
    for lease in leases:
        lease.release(0)


def test_children_share_their_parents_number(generator_class: Generator, own_layout: Layout) -> None:
    """As those of a server that loads the application before it forks do."""
    generator = generator_class.acquire(Environment(environ={"RANK": "2"}), own_layout)
    reader, writer = os.pipe()
    child = Forked(lambda: os.write(writer, b" ".join(b"%d" % generator.next_id() for _ in range(1000))))
    mine = [generator.next_id() for _ in range(1000)]
    assert child.raised() is None
    theirs = [int(word) for word in os.read(reader, 1 << 16).split()]
    assert len({*mine, *theirs}) == 2000
    generator.close()


def test_a_folder_that_a_group_shares_has_no_common_word(own_layout: Layout, folder: Path) -> None:
    folder.chmod(0o2770)
    with pytest.raises(LeaseError, match="is shared by a group; expected a folder of this user alone"):
        Environment(environ={"RANK": "2"}, shared=True).acquire(own_layout)
