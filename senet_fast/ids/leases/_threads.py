"""Servers in which Python's threads do not run."""

import sys


def why_no_thread() -> str:
    """Why the thread that renews a lease may never have run, for the message of LeaseExpired; "" where none is known.

    Older releases of uWSGI (2.0.21) run Python's threads during requests alone, unless told otherwise. Its `opt` does
    not tell: newer ones (2.0.31) run them without the option, and `threads` turns them on as well.
    """
    if not getattr(sys.modules.get("uwsgi"), "has_threads", True):
        return "; uWSGI runs without threads, so that nothing renews it: start uWSGI with --enable-threads"
    return ""
