"""Worker ids that a scheduler assigned."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from senet_fast.ids.errors import LeaseError
from senet_fast.ids.layout import Layout
from senet_fast.ids.leases._held import Grant

# First come, first served. POD_INDEX and POD_NAME are what Kubernetes' downward API is usually told to call the label
# apps.kubernetes.io/pod-index and the name of a StatefulSet's pod; the others are set by torchrun, SLURM and Open MPI.
VARIABLES = ("SENET_FAST_WORKER_ID", "POD_INDEX", "POD_NAME", "RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


class Environment:
    """The worker id that an environment variable holds: the first that is set of `variables`.

    A number, or a name that ends in `-NUMBER`, as those of a StatefulSet's pods do. `offset` is added, so that two jobs
    can share a layout. Nothing is locked: that no two processes have the same number at the same time is the
    scheduler's promise, and it lasts no longer than the scheduler's.
    """

    renew_every: float | None = None

    def __init__(
        self, variables: tuple[str, ...] = VARIABLES, *, offset: int = 0, environ: Mapping[str, str] | None = None
    ) -> None:
        self._variables = (variables,) if isinstance(variables, str) else tuple(variables)
        self._offset = offset
        self._environ = os.environ if environ is None else environ

    def acquire(self, layout: Layout) -> Grant:
        for name in self._variables:
            if (text := self._environ.get(name)) is not None:
                return Grant(self._worker_id(name, text, layout))
        raise LeaseError(f"no worker id in the environment; expected one of {', '.join(self._variables)}")

    def _worker_id(self, name: str, text: str, layout: Layout) -> int:
        found = re.fullmatch(r"(?:.+-)?([0-9]+)", text.strip(), re.ASCII | re.DOTALL)
        if found is None:
            raise LeaseError(f"{name} is {text!r}; expected a number, or a name that ends in -NUMBER")
        worker_id = int(found[1]) + self._offset
        if not 0 <= worker_id <= layout.worker.max:
            plus = f" + offset {self._offset}" if self._offset else ""
            raise LeaseError(
                f"{name} is {text!r}{plus}: worker {worker_id}; expected 0 <= worker <= {layout.worker.max}"
                f" ({layout.worker.width} bits)"
            )
        return worker_id

    def renew(self) -> int:
        raise LeaseError("a worker id of the environment is not renewed")

    def release(self, unused_from_ms: int) -> None:
        pass
