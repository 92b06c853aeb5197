"""Servers in which Python's threads do not run: the reason that a lease's end then gives."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import needs
import pytest
from ids_testing import LIMIT_S, ROOT, wait_for
from servers import free_port

from senet_fast.ids.leases._threads import why_no_thread


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (None, ""),  # no uWSGI
        ({"has_threads": 0, "opt": {}}, "uWSGI runs without threads, .* --enable-threads"),
        ({"has_threads": 1, "opt": {}}, ""),
        ({}, ""),  # a package of that name, outside of uWSGI
    ],
    ids=str,
)
def test_uwsgi(facts: dict[str, object] | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "uwsgi", raising=False)
    if facts is not None:
        module = ModuleType("uwsgi")
        vars(module).update(facts)
        monkeypatch.setitem(sys.modules, "uwsgi", module)
    if said:
        assert re.search(said, why_no_thread())
    else:
        assert why_no_thread() == ""


APP = """
import threading, time
from senet_fast.ids.leases._threads import why_no_thread
turns = []
def count():
    while True:
        turns.append(0)
        time.sleep(0.01)
threading.Thread(target=count, daemon=True).start()
def application(environ, start_response):
    start_response("200 OK", [])
    return [f"{len(turns)} {why_no_thread()}".encode()]
"""


@pytest.mark.parametrize("options", ["", "--enable-threads", "--threads 2"])
def test_real_uwsgi(options: str, tmp_path: Path) -> None:
    """Releases differ in what they do without options: the reason is given just where a thread stands still."""
    program = needs.program("uwsgi")
    (tmp_path / "app.py").write_text(APP)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [program, "--http-socket", f"127.0.0.1:{port}", "--need-app", "--wsgi-file", "app.py", "--pythonpath"]
    command += [str(ROOT), "--master", "--lazy-apps", "--processes", "1", *options.split()]

    def ask() -> tuple[int, str]:
        turns, _, why = urllib.request.urlopen(address, timeout=LIMIT_S).read().decode().partition(" ")
        return int(turns), why

    def answers() -> bool:
        with suppress(OSError):
            return ask()[0] > 0
        return False

    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(answers)
        before, why = ask()
        if why:
            assert "--enable-threads" in why
            assert not options
            time.sleep(0.5)
            assert ask()[0] < before + 20  # of 50
        else:
            wait_for(lambda: ask()[0] > before + 20)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.wait()
