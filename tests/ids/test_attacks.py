"""What other users of the host can do to the lock files, tried as another user in a mount namespace of its own."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import needs
import pytest
from attacking import BOB, DEFAULT, GROUP, MALLORY, VICTIM, Child, attacking, isolated, libc, needs_users

from senet_fast.ids import Layout, LeaseError, Snowflake
from senet_fast.ids.leases import LockFile, _host, lock_file
from senet_fast.ids.leases._store import layout_name

pytestmark = [needs_users, pytest.mark.usefixtures("a_shared_folder")]


def own_folder(path: Path) -> None:
    path.mkdir()


PREPARED: dict[str, Callable[[Path], object]] = {
    "folder": own_folder,
    "open folder": lambda path: (path.mkdir(), path.chmod(0o777)),
    "link": lambda path: path.symlink_to(VICTIM),
    "dangling link": lambda path: path.symlink_to(VICTIM / "new"),
    "file": lambda path: path.touch(),
    "fifo": lambda path: os.mkfifo(path, 0o666),
}


@pytest.mark.parametrize("how", PREPARED)
def test_a_folder_that_another_user_has_prepared(how: str, own_layout: Layout) -> None:
    def attack() -> None:
        Child(lambda: PREPARED[how](DEFAULT), MALLORY, MALLORY).join()
        before = os.lstat(DEFAULT)
        with pytest.raises(LeaseError, match=f"{DEFAULT} (is a|belongs to)"):
            Snowflake.acquire(layout=own_layout)
        after = os.lstat(DEFAULT)
        assert (before.st_mode, before.st_uid, before.st_ino) == (after.st_mode, after.st_uid, after.st_ino)

    isolated(attack)


@pytest.mark.slow
def test_folders_exchanged_while_they_are_opened(own_layout: Layout) -> None:
    """200 races: root either gets its own folder, or an error, and nothing is made or changed elsewhere."""

    def exchange(number: int) -> None:
        PREPARED[list(PREPARED)[number % len(PREPARED)]](DEFAULT)
        if DEFAULT.is_dir() and not DEFAULT.is_symlink():
            (DEFAULT / layout_name(own_layout)).symlink_to(VICTIM)
            (DEFAULT / layout_name(own_layout)).unlink()
            DEFAULT.rmdir()
        else:
            DEFAULT.unlink()

    def attack() -> None:
        ids: list[int] = []
        races = refused = 0
        with attacking(exchange) as steps:
            while races < 200 or steps() < 200:
                races += 1
                try:
                    with Snowflake.acquire(layout=own_layout) as generator:
                        status = DEFAULT.lstat()
                        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700)
                        ids.append(generator.next_id())
                except LeaseError:
                    refused += 1
                else:
                    shutil.rmtree(DEFAULT)
        assert len(ids) + refused == races
        assert len(set(ids)) == len(ids)

    isolated(attack)


def test_a_way_through_another_users_folder(own_layout: Layout) -> None:
    """Root named a folder there; its owner exchanges it for links to where root may write."""
    lair = Path("/var/tmp/mallory")

    def exchange(number: int) -> None:
        if number % 2:
            lair.mkdir()
            (lair / "ids").symlink_to(VICTIM)
            (lair / "ids").unlink()
            lair.rmdir()
        else:
            lair.symlink_to(VICTIM)
            lair.unlink()

    def attack() -> None:
        Child(lair.mkdir, MALLORY, MALLORY).join()
        with pytest.raises(LeaseError, match=f"lies in {lair}, and .*could exchange it; root needs another"):
            LockFile(lair / "ids").acquire(own_layout)
        Child(lair.rmdir, MALLORY, MALLORY).join()
        races = 0
        with attacking(exchange) as steps:
            while races < 200 or steps() < 200:
                races += 1
                with suppress(LeaseError):
                    lease = LockFile(lair / "ids")
                    lease.acquire(own_layout)
                    lease.release(0)
                with suppress(OSError):
                    if lair.lstat().st_uid == 0:
                        shutil.rmtree(lair)  # root was first, and made all of it

    isolated(attack)


def test_where_nothing_can_be_written(own_layout: Layout) -> None:
    def attack() -> None:
        read_only = 1
        assert libc.mount(b"tmpfs", b"/var/tmp", b"tmpfs", read_only, b"mode=1777") == 0
        says = f"the folder of the lock files, {DEFAULT}: Read-only file system; name .*SENET_FAST_LEASES.*--worker-id"
        with pytest.raises(LeaseError, match=says):
            Snowflake.acquire(layout=own_layout)
        assert libc.umount(b"/var/tmp") == 0

    isolated(attack)


def test_nobody_else_comes_in(own_layout: Layout) -> None:
    def attack() -> None:
        with Snowflake.acquire(layout=own_layout) as generator:
            before = [generator.next_id() for _ in range(100)]

            def spoil() -> int:
                denied = 0
                word = DEFAULT / layout_name(own_layout) / "0"
                for attempt in (
                    lambda: os.open(DEFAULT, os.O_RDONLY),
                    lambda: os.open(word, os.O_RDONLY),
                    lambda: os.truncate(word, 0),
                    lambda: word.unlink(),
                    lambda: (DEFAULT / "x").touch(),
                    lambda: DEFAULT.rename("/var/tmp/x"),
                    lambda: os.link(word, "/var/tmp/x"),
                ):
                    try:
                        attempt()
                    except PermissionError:
                        denied += 1
                return denied

            assert Child(spoil, MALLORY, MALLORY).join() == 7
            time.sleep(0.2)
            assert generator.next_id() > before[-1]
            for path in (DEFAULT, DEFAULT / layout_name(own_layout)):
                assert stat.S_IMODE(path.stat().st_mode) == 0o700
            assert stat.S_IMODE((DEFAULT / layout_name(own_layout) / "0").stat().st_mode) == 0o600

    isolated(attack)


def test_two_users_with_folders_of_their_own(own_layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is refused because of another's folder, but the second one is told."""

    def attack() -> None:
        Child(lambda: Path("/var/tmp/senet_fast_ids-1").mkdir(), MALLORY, MALLORY).join()  # not its own
        Child(lambda: Path(f"/var/tmp/senet_fast_ids-{MALLORY}").symlink_to(VICTIM), MALLORY, MALLORY).join()
        Child(lambda: Path(f"/var/tmp/senet_fast_ids-{BOB}").mkdir(), BOB, GROUP).join()
        lock_file._tell_of_others.cache_clear()
        for _ in range(2):
            with Snowflake.acquire(layout=own_layout) as generator:
                assert generator.worker_id == 0
        told = sorted(record.getMessage() for record in caplog.records)
        assert len(told) == 2
        assert all("IDs of the two users can repeat" in message for message in told)
        assert {f"/var/tmp/senet_fast_ids-{uid}" in "".join(told) for uid in (MALLORY, BOB)} == {True}

    isolated(attack)


@pytest.mark.slow
def test_systemd_tmpfiles_leaves_what_is_held(own_layout: Layout) -> None:
    needs.program("systemd-tmpfiles")
    with tempfile.TemporaryDirectory() as scratch:
        rules = Path(scratch, "rules.conf")

        def attack() -> None:
            folder = Path("/var/tmp/aged")
            rules.write_text(f"d {folder} 0755 root root 1s\n")
            folder.mkdir()
            with Snowflake.acquire(LockFile(folder / "leases"), own_layout) as generator:
                generator.next_id()
                clean(folder)
                assert (folder / "leases" / layout_name(own_layout) / "0").exists()
                assert generator.next_id()
            clean(folder)
            assert list(folder.iterdir()) == []

        def clean(folder: Path) -> None:
            for path in [*folder.rglob("*"), folder]:
                os.utime(path, (1, 1))
            time.sleep(2.1)  # the time of their last change cannot be set back
            subprocess.run(["systemd-tmpfiles", "--clean", str(rules)], check=True, capture_output=True)

        isolated(attack)


def test_a_var_tmp_of_its_own_is_noticed() -> None:
    """Of two services with PrivateTmp each would be worker 0."""

    def attack() -> None:
        why = _why_private("/var/tmp/x", {}, "/nonexistent")
        assert why in (
            "/var/tmp is a mount of this service's own (PrivateTmp, or another mount namespace)",
            "this is a container (its root is an overlay)",
        )

    isolated(attack)


_why_private = _host.why_private
