"""Worker ids that a scheduler assigned."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from senet_fast.ids.errors import LeaseError
from senet_fast.ids.layout import Layout
from senet_fast.ids.leases._lease import Grant
from senet_fast.ids.leases.lock_file import LockFile, NoneFree

# The first that is set counts, so the most specific ones come first: of four ranks in one pod each has its own RANK.
VARIABLES = (
    "SENET_FAST_WORKER_ID",
    "RANK",  # torchrun
    "SLURM_PROCID",
    "OMPI_COMM_WORLD_RANK",  # Open MPI
    "PMI_RANK",  # MPICH, Intel MPI
    "JOB_COMPLETION_INDEX",  # an indexed Job of Kubernetes
    "CF_INSTANCE_INDEX",  # Cloud Foundry
    "NOMAD_ALLOC_INDEX",
    # What Kubernetes' downward API is usually told to call the label apps.kubernetes.io/pod-index and the pod's name.
    "POD_INDEX",
    "POD_NAME",
)

# The alphabet of the names that Kubernetes makes up: a Deployment's pods end in five of these, which may all be digits.
_MADE_UP = "[bcdfghjklmnpqrstvwxz2456789]"


class Environment:
    """The worker id that an environment variable holds: the first that is set of `variables`.

    A number, or a name that ends in `-NUMBER`, as those of a StatefulSet's pods do (those of a Deployment end in random
    letters, and are refused even where these are digits). `offset` is added, so that two jobs can share a layout.

    That no two hosts have the same number at the same time is the scheduler's promise. Of the processes that see one
    /var/tmp (or $SENET_FAST_LEASES), such as the workers of a web server in one pod, the first locks the number's file
    there, and others are refused; `shared=True` lets them issue from one last ID, which lives in that file.
    """

    renew_every: float | None = 0.0

    def __init__(
        self,
        variables: str | tuple[str, ...] = VARIABLES,
        *,
        offset: int = 0,
        shared: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._variables = (variables,) if isinstance(variables, str) else tuple(variables)
        self._offset = offset
        self._shared = shared
        self._environ = os.environ if environ is None else environ
        self._lock: LockFile | None = None

    def acquire(self, layout: Layout) -> Grant:
        for name in self._variables:
            if (text := self._environ.get(name)) is not None:
                break
        else:
            raise LeaseError(f"no worker id in the environment; expected one of {', '.join(self._variables)}")
        lock = LockFile.of(self._worker_id(name, text, layout), together=self._shared)
        try:
            grant = lock.acquire(layout)
        except NoneFree as error:
            raise LeaseError(
                f"{name} is {text!r}, and {error}; expected a number of its own for each process and generator, or"
                " Environment(shared=True) for those that shall issue from one last ID"
            ) from None
        self._lock = lock
        return grant

    def _worker_id(self, name: str, text: str, layout: Layout) -> int:
        found = re.fullmatch(r"(?:(.+)-(?!0[0-9]))?([0-9]{1,18})", text.strip(), re.ASCII | re.DOTALL)
        if found is None:
            raise LeaseError(f"{name} is {text!r}; expected a number, or a name that ends in -NUMBER")
        if found[1] and re.fullmatch(f"{_MADE_UP}{{5}}", found[2]):
            raise LeaseError(
                f"{name} is {text!r}, whose last part may be one that Kubernetes made up, as for the pods of a"
                " Deployment; expected the name of a StatefulSet's pod, or a number"
            )
        worker_id = int(found[2]) + self._offset
        if not 0 <= worker_id <= layout.worker.max:
            plus = f" + offset {self._offset}" if self._offset else ""
            raise LeaseError(
                f"{name} is {text!r}{plus}: worker {worker_id}; expected 0 <= worker <= {layout.worker.max}"
                f" ({layout.worker.width} bits)"
            )
        return worker_id

    def renew(self) -> int:
        if self._lock is None:
            raise LeaseError("this Environment holds no worker id")
        return self._lock.renew()

    def release(self, unused_from_ms: int) -> None:
        if self._lock is not None:
            self._lock.release(unused_from_ms)
            self._lock = None
