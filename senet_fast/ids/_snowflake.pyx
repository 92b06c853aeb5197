# cython: language_level=3, binding=False, embedsignature=True, freethreading_compatible=True, autotestdict=False
"""`Snowflake`: the compiled generator. Only Python's concerns are here; the claim is in csrc/ids/snowflake.h."""

import weakref

from cpython.buffer cimport PyBUF_FULL_RO, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t, uintptr_t

from senet_fast.ids import _checks, _places, _wordfile
from senet_fast.ids.errors import ClockMovedBackwards, ClockOutOfRange, ForkedError, LeaseExpired, SnowflakeTimeout
from senet_fast.ids.layout import TWITTER
from senet_fast.ids.leases import LockFile, _held
from senet_fast.ids._native cimport *

# Below this many IDs, releasing the GIL costs more than writing them.
cdef int64_t RELEASE_GIL_FROM = 256
# In bulk. A thread that holds the GIL may keep it for 5 ms, so it is not asked for once a tick.
cdef uint64_t CHECK_SIGNALS_EVERY_NS = 50_000_000

# How long a call waits for the renewal of a lease that has ended.
cdef double kPatienceNs = _held.PATIENCE_S * 1e9

# What issue() reads first.
cdef enum Clock:
    REALTIME, COARSE, COUNTED, CALLABLE


include "_place.pxi"

# Kept until another takes its worker: a generator made again within the same tick goes on from the last ID.
cdef dict _places_here = {}


cdef class Snowflake:
    """Snowflake(worker_id=None, layout=TWITTER, *, max_backward_ms=1000, max_lag_ms=0, max_drift_ms=0, timeout=None, \
sequence_start=0, clock=None, on_fork="raise", file=None, lease=None, reacquire=True, on_lease_change=None)

    Issues IDs that are unique and strictly increasing, from any number of threads, without a lock. No ID carries a
    time that the clock has not reached yet. Where a tick's sequence is used up, calls sleep until the next tick;
    Ctrl-C ends the sleep. Generators of the same worker and layout in one process share their state.

    worker_id: who issues; must be unique among all generators of the layout. May be left out if the layout has no
        worker field.
    max_backward_ms: how far, in ms, the clock may step back. Calls sleep until it has caught up; beyond, they raise
        ClockMovedBackwards.
    max_lag_ms: bulk calls that do not fit into the current tick may begin up to so many ms before it, in ticks that
        passed unused since this generator was made.
    max_drift_ms: calls may run so many ms ahead of the clock. Needs `file` or a lease that remembers the last ID: a
        restarted process would issue the borrowed IDs again.
    timeout: the longest, in seconds, that a call may wait without getting an ID; then SnowflakeTimeout. None: no limit.
    sequence_start: where the sequence of a tick starts. 0: `id % shards` is one shard at low traffic. "random": by a
        hash that spreads and hides nothing. "rolling": behind the last ID's. Both leave 3/4 of the tick's IDs.
    clock: what tells the time. None: the system's clock. "coarse": the time of the kernel's last tick, some ms ago
        (1 to 10, by its HZ), cheaper. "tsc": the system's clock, read once a millisecond and counted on by the
        processor (x86). A callable that returns ms since 1970-01-01 UTC, for tests: called for every claim, so it is
        slow; generators share state only if their callables are equal.
    on_fork: "raise": a forked child's copy raises ForkedError, and so does a generator made there for a worker of the
        parent. "share": children issue from the same state.
    file: a path; the last ID lives there, for all processes of the host that name the file with the same worker and
        layout, and after a restart. Not on network file systems, and never to be deleted while in use.
    lease: where the worker id comes from, see senet_fast.ids.leases; past its end calls raise LeaseExpired. It is
        renewed by a thread, and given back by close(), at the end of a `with` block, and at exit.
    reacquire: a lease that was lost (another took the worker id, the store lost its data, the lock file was deleted) is
        acquired again, with whatever worker id there is then; calls that meet this wait for it up to 2 s, and raise
        LeaseExpired after that. False: they raise LeaseExpired for ever.
    on_lease_change: is called with a LeaseStatus when the lease was lost, and when one was acquired again; by the
        thread that renews, or for a lease without one by the call that met it.

    Without `file` or `lease` the last ID is remembered as long as the process lives. Across a restart it is not: if the
    clock was set back meanwhile, IDs may repeat. Past the layout's lifetime, or before its epoch, calls raise
    ClockOutOfRange.
    """

    def __cinit__(
        self, worker_id=None, layout=TWITTER, *, max_backward_ms=1000, max_lag_ms=0, max_drift_ms=0, timeout=None,
        sequence_start=0, clock=None, on_fork="raise", file=None, lease=None, reacquire=True, on_lease_change=None,
    ):
        cdef Generator* generator = new Generator()
        self._generator = generator
        self.layout = _checks.layout(layout)
        self._max_backward_ms = _checks.milliseconds("max_backward_ms", max_backward_ms)
        self._max_drift_ms = _checks.milliseconds("max_drift_ms", max_drift_ms)
        lag_ms = _checks.milliseconds("max_lag_ms", max_lag_ms)
        self._timeout_ns = _checks.timeout(timeout) * 1e9
        generator.start_mask, generator.seed = _checks.sequence_start(sequence_start, layout)
        self._clock = _checks.clock(clock)
        if clock == "tsc" and not has_steady_counter():
            raise ValueError("clock is 'tsc', and this processor's counter has no steady rate; expected another clock")
        self._kind = CALLABLE if callable(clock) else {None: REALTIME, "coarse": COARSE, "tsc": COUNTED}[clock]
        self._on_fork = _checks.on_fork(on_fork)
        self._begins_now = lag_ms > 0 or clock == "coarse"
        path = _checks.file(file)
        _checks.lease(lease, worker_id, path)
        _checks.on_lease_change(on_lease_change)
        generator.layout = CLayout(
            tick_0_ms=<int64_t>(layout.epoch_ms - <int>kFirstTick * layout.tick_ms), tick_ms=layout.tick_ms,
            timestamp_max=layout.timestamp.max, timestamp_shift=layout.timestamp.shift,
            worker_bits=layout.worker.width, worker_shift=layout.worker.shift,
            sequence_bits=layout.sequence.width, sequence_shift=layout.sequence.shift,
        )
        generator.max_lag = min(lag_ms // layout.tick_ms, layout.timestamp.max) << layout.sequence.width
        generator.max_drift = self._max_drift_ms // <int64_t>layout.tick_ms
        if lease is not None:
            self._held = _held.Held(lease, layout, reacquire=reacquire, on_change=on_lease_change)
        try:
            grant = self._held.grant if self._held else None
            generator.worker_id = _checks.worker_id(grant.worker_id if grant else worker_id, layout)
            _checks.borrowing(max_drift_ms, path, self._held)
            self._settle(generator, path, grant)
            if self._held:
                weakly = weakref.ref(self)
                self._held.start(
                    self._place[0], self._now_ms(), self._max_backward_ms, self._max_drift_ms,
                    lambda grant: (generator := weakly()) and generator._adopt(grant),
                )
                weakref.finalize(self, self._held.forget)
        except BaseException:
            if self._held:
                self._held.close()
            raise

    cdef int _settle(self, void* unsettled, path, grant) except -1:
        """Finds the state of a generator."""
        cdef Generator* generator = <Generator*>unsettled
        cdef _Place place
        layout = self.layout
        key = layout, generator.worker_id, self._clock if self._kind == CALLABLE else None
        place = _places.find(
            _places_here, lambda kind, fd: _Place(layout, kind, fd), key, "Snowflake", self._on_fork, path, grant,
            self._max_drift_ms, self._held.holder if self._held else None,
        )
        self._place = place, self._place  # kept with all before, as others may replace it
        generator.state = place.state
        self._refuse(place.state.word.load(memory_order_acquire))
        if self._begins_now:  # what came before may have been issued by the worker's last process
            now_ms = self._now_ms()
            if not 0 <= now_ms - layout.epoch_ms < layout.tick_ms << layout.timestamp.width:
                raise_out_of_range(self, now_ms)
            place.skip_to_tick((now_ms - layout.epoch_ms) // layout.tick_ms)
        return 0

    def _adopt(self, grant):
        """Goes on from another grant, after the last ID of the one before. Claims under way end on the state, and with
        the worker id, that they began with: both are one pointer away. They are refused once that state is closed.
        """
        cdef Generator* before = current(&self._generator)
        cdef Generator* generator = new Generator(before[0])
        cdef _Place old = self._place[0], place
        cdef bint published = False
        kept = self._place
        try:
            generator.worker_id = _checks.worker_id(grant.worker_id, self.layout)
            self._settle(generator, None, grant)
            place = self._place[0]
            self._held.begin(grant, place, self._now_ms(), self._max_backward_ms)
            if place is not old:
                if old.last_tick is None and old.gone:  # by another process, so that the last ID is not known
                    place.skip_to(self._now_ms() + self.layout.tick_ms)
                old.close()
                place.skip_to_tick(old.last_tick + 1)
            generator.before = before
            publish(&self._generator, generator)
            published = True
            return place
        finally:
            if not published:
                self._place = kept  # that of `before`
                del generator

    @classmethod
    def acquire(cls, lease=None, layout=TWITTER, **options):
        """A generator whose worker id is leased: Snowflake(layout=layout, lease=lease, **options). Without `lease`,
        from the lock files of this host, see senet_fast.ids.leases.LockFile.
        """
        return cls(layout=layout, lease=LockFile() if lease is None else lease, **options)

    def close(self):
        """Gives the leased worker id back: its generators in this process issue no more. Without a lease, nothing."""
        if self._held:
            self._held.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    @property
    def worker_id(self):
        return current(&self._generator).worker_id

    @property
    def lease(self):
        """How the lease stands, a LeaseStatus; None without one."""
        return self._held.status if self._held else None

    def __dealloc__(self):
        cdef Generator* generator = current(&self._generator)
        cdef Generator* before
        while generator != NULL:
            before = generator.before
            del generator
            generator = before

    def next_id(self):
        """The next ID."""
        return self.issue()

    def try_next(self):
        """The next ID, or None where next_id() would have to wait."""
        cdef uint64_t first
        cdef Generator* generator
        return id_of(generator[0], first) if self._attempt(1, &first, <void**>&generator, 0) else None

    def next_ids(self, n):
        """The next n IDs, as a NumPy int64 array."""
        out = _checks.new_array(n)
        # Not streamed: the kernel leaves freshly zeroed pages in the caches.
        fill_buffer(self, out, False)
        return out

    def fill(self, out):
        """Fills `out`, a writable C-contiguous buffer of native int64 in any number of dimensions, with the next IDs.

        A buffer that does not fit is left untouched. If a wait raises midway (ClockMovedBackwards, SnowflakeTimeout, a
        signal handler, ...), the front of `out` holds IDs that will not be issued again; the rest is untouched.
        """
        fill_buffer(self, out, True)

    def try_fill(self, out):
        """Fills the front of `out` with what fill() would draw without waiting, and returns how many IDs that is."""
        return fill_buffer(self, out, True, False)

    def decode(self, ids):
        """The fields of an ID, or of a sequence or array of IDs, as Layout.decode()."""
        return self.layout.decode(ids)

    def __iter__(self):
        return self

    def __next__(self):
        return self.issue()

    def __repr__(self):
        return f"Snowflake(worker_id={self.worker_id}, layout={self.layout!r})"

    def __reduce_ex__(self, protocol):
        raise TypeError(_checks.NOT_COPIED)

    cdef int64_t issue(self) except -1 nogil:
        cdef Generator* generator = current(&self._generator)
        cdef Run run
        cdef uint64_t now_ms
        if self._kind != CALLABLE:
            if self._kind == REALTIME:
                now_ms = realtime_ms()
            elif self._kind == COARSE:
                now_ms = catch_up(generator[0], coarse_ms())
            else:
                now_ms = counted_ms()
            run = claim(generator[0], now_ms, 1)
            if run.count:
                return id_of(generator[0], run.first)
        return self._wait()

    cdef int issue_run(self, int64_t* out, uint64_t n, bint stream) except -1 nogil:
        cdef uint64_t now_ns
        cdef uint64_t waiting_since = monotonic_ns(), signals_checked = waiting_since
        cdef int64_t count
        cdef bint interrupted
        while n:
            count = self._draw(out, n, stream, kPatienceNs)
            out += count
            n -= count
            now_ns = monotonic_ns()
            if count:
                waiting_since, interrupted = now_ns, False
            else:
                self._check_timeout(now_ns - waiting_since)
                interrupted = nap()
            if interrupted or now_ns - signals_checked >= CHECK_SIGNALS_EVERY_NS:
                signals_checked = now_ns
                with gil:
                    PyErr_CheckSignals()
        return 0

    cdef uint64_t _now_ms(self) except? 0 nogil:
        if self._kind != CALLABLE:
            return realtime_ms()
        with gil:
            return _checks.clock_ms(self._clock())

    # Up to n IDs into out, and how many: what one claim gives.
    cdef int64_t _draw(self, int64_t* out, uint64_t n, bint stream, double patience_ns) except -1 nogil:
        cdef Generator* generator
        cdef uint64_t first
        cdef int64_t count = self._attempt(n, &first, <void**>&generator, patience_ns)
        if count:
            write_words(generator[0], out, first, count, stream)
        return count

    # Claims up to n words, and says by which generator; 0 where the next one lies ahead of the clock. Where the lease
    # has ended, it may wait for a renewal.
    cdef int64_t _attempt(self, uint64_t n, uint64_t* first, void** claimer, double patience_ns) except -1 nogil:
        cdef Generator* generator
        cdef uint64_t last, now_ms
        cdef Run run
        cdef int64_t behind_ms
        cdef bint extended = False
        while True:
            claimer[0] = generator = current(&self._generator)
            # Read before the clock: another thread's later claim must not look like a step back.
            last = generator.state.word.load(memory_order_acquire)
            now_ms = self._now_ms()
            run = claim(generator[0], now_ms, n)
            if run.count:
                first[0] = run.first
                return <int64_t>run.count
            if run.first == kWait:
                behind_ms = <int64_t>(begin_ms(generator[0], last) - now_ms)
                if behind_ms <= self._max_backward_ms + self._max_drift_ms:
                    return 0
                with gil:
                    raise ClockMovedBackwards(
                        f"the clock reads {behind_ms} ms before the last ID; max_backward_ms = {self._max_backward_ms}"
                        + (f", max_drift_ms = {self._max_drift_ms}" if self._max_drift_ms else "")
                    )
            with gil:
                if current(&self._generator) != generator:
                    continue
                if (run.first == kExpired or run.first == kClosed) and self._held is not None and not extended:
                    extended = self._held.extend(now_ms, min(patience_ns, self._timeout_ns) / 1e9)
                    if extended:
                        continue
                # The word as well: a loss may have closed the state meanwhile.
                self._refuse(min(run.first, generator.state.word.load(memory_order_acquire)))
                if run.first == kExpired:
                    raise_expired(self, now_ms)
                raise_out_of_range(self, now_ms)

    cdef int _refuse(self, uint64_t word) except -1:
        if word == kForked:
            raise ForkedError(
                f"worker {self.worker_id} belongs to the parent of this forked process;"
                " construct a generator with another worker_id here"
            )
        if word == kClosed:
            raise LeaseExpired(f"worker {self.worker_id} {self._held.end() if self._held else _held.CLOSED}")
        return 0

    cdef int64_t _wait(self) except -1 nogil:
        cdef Generator* generator
        cdef uint64_t first, started = monotonic_ns()
        while not self._attempt(1, &first, <void**>&generator, kPatienceNs):
            self._check_timeout(monotonic_ns() - started)
            with gil:
                with nogil:
                    nap()
                PyErr_CheckSignals()
        return id_of(generator[0], first)

    cdef int _check_timeout(self, uint64_t waited_ns) except -1 nogil:
        if waited_ns < self._timeout_ns:
            return 0
        with gil:
            raise SnowflakeTimeout(
                f"no new ID within timeout = {self._timeout_ns / 1e9} s: the clock has not reached the next free tick"
            )


cdef int raise_out_of_range(Snowflake self, now_ms) except -1:
    raise ClockOutOfRange(f"the clock reads {now_ms} ms; {self.layout!r} holds times until {self.layout.lifetime_end}")


cdef int raise_expired(Snowflake self, now_ms) except -1:
    cdef Generator* generator = current(&self._generator)
    until_ms = begin_ms(generator[0], generator.state.granted.load(memory_order_acquire))
    raise LeaseExpired(
        f"worker {self.worker_id} was leased until {until_ms} ms, and the clock reads {now_ms} ms"
        + (self._held.why() if self._held else "")
    )


include "_buffers.pxi"
