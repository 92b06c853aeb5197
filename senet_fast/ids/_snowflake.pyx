# cython: language_level=3, binding=False, embedsignature=True, freethreading_compatible=True, autotestdict=False
"""`Snowflake`: the compiled generator. Only Python's concerns are here; the claim is in csrc/ids/snowflake.h."""

from cpython.buffer cimport PyBUF_FULL_RO, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t

from senet_fast.ids import _checks
from senet_fast.ids.errors import ClockMovedBackwards, ClockOutOfRange, ForkedError, SnowflakeTimeout
from senet_fast.ids.layout import TWITTER


cdef extern from "<atomic>" namespace "std" nogil:
    enum memory_order "std::memory_order":
        memory_order_acquire "std::memory_order_acquire"

cdef extern from "ids/snowflake.h" namespace "senet::ids" nogil:
    cppclass Word:
        uint64_t load(memory_order)
    const uint64_t kForked, kWait, kOutOfRange
    struct CLayout "senet::ids::Layout":
        uint64_t tick_0_ms, tick_ms, last_tick
        uint32_t timestamp_shift, worker_bits, worker_shift, sequence_bits, sequence_shift
    cppclass Generator:
        Generator()
        Word* word
        uint64_t worker_id
        CLayout layout
    struct Run:
        uint64_t first, count
    Run claim(const Generator&, uint64_t now_ms, uint64_t n)
    int64_t id_of(const Generator&, uint64_t word)
    int64_t id_step(const Generator&)
    uint64_t begin_ms(const Generator&, uint64_t word)

cdef extern from "ids/word.h" namespace "senet::ids" nogil:
    Word* new_word()

cdef extern from "ids/clock.h" namespace "senet::ids" nogil:
    uint64_t realtime_ms()
    uint64_t monotonic_ns()
    bint nap()

cdef extern from "ids/write_run.h" namespace "senet::ids" nogil:
    const uint64_t kStreamFrom
    void write_run(int64_t* out, uint64_t n, int64_t first, int64_t step, bint stream)


# Below this many IDs, releasing the GIL costs more than writing them.
cdef uint64_t RELEASE_GIL_FROM = 256
# In bulk. A thread that holds the GIL may keep it for 5 ms, so it is not asked for once a tick.
cdef uint64_t CHECK_SIGNALS_EVERY_NS = 50_000_000


cdef class _Place:
    """The word of one (layout, worker_id, clock)."""
    cdef Word* word

    def __cinit__(self):
        self.word = new_word()
        if self.word == NULL:
            raise MemoryError("no page for the state of a Snowflake generator")


# Kept for the life of the process: a generator made again within the same tick goes on from the last ID.
cdef dict _places = {}


cdef class Snowflake:
    """Snowflake(worker_id=None, layout=TWITTER, *, max_backward_ms=1000, timeout=None, clock=None)

    Issues IDs that are unique and strictly increasing, from any number of threads, without a lock. No ID carries a
    time that the clock has not reached yet. Where a tick's sequence is used up, calls sleep until the next tick;
    Ctrl-C ends the sleep. Generators of the same worker and layout in one process share their state.

    worker_id: who issues; must be unique among all generators of the layout. May be left out if the layout has no
        worker field.
    max_backward_ms: how far, in ms, the clock may step back. Calls sleep until it has caught up; beyond, they raise
        ClockMovedBackwards.
    timeout: the longest, in seconds, that a call may wait without getting an ID; then SnowflakeTimeout. None: no limit.
    clock: for tests: a callable that returns ms since 1970-01-01 UTC, in place of the system's clock. Called for every
        claim, so it is slow. Generators share state only if their clocks are equal.

    The last ID is remembered as long as the process lives. Across a restart it is not: if the clock was set back
    meanwhile, IDs may repeat.

    After a fork, the child's copy raises ForkedError, and so does a generator made there for a worker of the parent.
    Past the layout's lifetime, or before its epoch, calls raise ClockOutOfRange.
    """

    def __cinit__(self, worker_id=None, layout=TWITTER, *, max_backward_ms=1000, timeout=None, clock=None):
        cdef Generator* generator = new Generator()
        cdef _Place place
        self._generator = generator
        self.worker_id = _checks.worker_id(worker_id, layout)
        self.layout = layout
        self._max_backward_ms = _checks.max_backward_ms(max_backward_ms)
        self._timeout_ns = _checks.timeout(timeout) * 1e9
        self._clock = _checks.clock(clock)
        self._system_clock = clock is None
        key = layout, self.worker_id, clock
        place = _places.get(key) or _places.setdefault(key, _Place())
        generator.word = place.word
        generator.worker_id = self.worker_id
        generator.layout = CLayout(
            tick_0_ms=<int64_t>(layout.epoch_ms - layout.tick_ms), tick_ms=layout.tick_ms,
            last_tick=layout.timestamp.max + 1,
            timestamp_shift=layout.timestamp.shift,
            worker_bits=layout.worker.width, worker_shift=layout.worker.shift,
            sequence_bits=layout.sequence.width, sequence_shift=layout.sequence.shift,
        )
        if generator.word.load(memory_order_acquire) == kForked:
            raise_forked(self)

    def __dealloc__(self):
        cdef Generator* generator = <Generator*>self._generator
        del generator

    def next_id(self):
        """The next ID."""
        return self.issue()

    def try_next(self):
        """The next ID, or None where next_id() would have to wait."""
        cdef uint64_t first
        if self._attempt(1, &first):
            return id_of((<Generator*>self._generator)[0], first)
        return None

    def next_ids(self, n):
        """The next n IDs, as a NumPy int64 array."""
        out = _checks.new_array(n)
        # Not streamed: the kernel leaves freshly zeroed pages in the caches.
        fill_buffer(self, out, False)
        return out

    def fill(self, out):
        """Fills `out`, a writable C-contiguous buffer of native int64 in any number of dimensions, with the next IDs.

        A buffer that does not fit is left untouched. If a wait raises midway (ClockMovedBackwards, ClockOutOfRange,
        SnowflakeTimeout, a signal handler), the front of `out` holds IDs that are valid and will not be issued again,
        and the rest is untouched.
        """
        fill_buffer(self, out, True)

    def decode(self, ids):
        """The fields of an ID or of an int64 array of IDs, as Layout.decode()."""
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
        cdef Generator* generator = <Generator*>self._generator
        cdef Run run
        if self._system_clock:
            run = claim(generator[0], realtime_ms(), 1)
            if run.count:
                return id_of(generator[0], run.first)
        return id_of(generator[0], self._wait())

    cdef int issue_run(self, int64_t* out, uint64_t n, bint stream) except -1 nogil:
        cdef Generator* generator = <Generator*>self._generator
        cdef uint64_t first, now_ns
        cdef uint64_t waiting_since = monotonic_ns(), signals_checked = waiting_since
        cdef int64_t count
        cdef bint interrupted
        while n:
            interrupted = False
            count = self._attempt(n, &first)
            if count:
                write_run(out, count, id_of(generator[0], first), id_step(generator[0]), stream)
                out += count
                n -= count
            now_ns = monotonic_ns()
            if count:
                waiting_since = now_ns
            else:
                self._check_timeout(now_ns - waiting_since)
                interrupted = nap()
            if interrupted or now_ns - signals_checked >= CHECK_SIGNALS_EVERY_NS:
                signals_checked = now_ns
                with gil:
                    PyErr_CheckSignals()
        return 0

    cdef uint64_t _now_ms(self) except? 0 nogil:
        if self._system_clock:
            return realtime_ms()
        with gil:
            return _checks.clock_ms(self._clock())

    # Claims up to n words; 0 where the next one lies ahead of the clock.
    cdef int64_t _attempt(self, uint64_t n, uint64_t* first) except -1 nogil:
        cdef Generator* generator = <Generator*>self._generator
        # Read before the clock: another thread's later claim must not look like a step back.
        cdef uint64_t last = generator.word.load(memory_order_acquire)
        cdef uint64_t now_ms = self._now_ms()
        cdef Run run = claim(generator[0], now_ms, n)
        cdef int64_t behind_ms
        if run.count:
            first[0] = run.first
            return <int64_t>run.count
        if run.first == kWait:
            behind_ms = <int64_t>(begin_ms(generator[0], last) - now_ms)
            if behind_ms <= self._max_backward_ms:
                return 0
            with gil:
                raise ClockMovedBackwards(
                    f"the clock reads {behind_ms} ms before the last ID; max_backward_ms = {self._max_backward_ms}"
                )
        with gil:
            if run.first == kForked:
                raise_forked(self)
            raise ClockOutOfRange(
                f"the clock reads {now_ms} ms; {self.layout!r} holds times until {self.layout.lifetime_end}"
            )

    cdef uint64_t _wait(self) except 0 nogil:
        cdef uint64_t first, started = monotonic_ns()
        while not self._attempt(1, &first):
            self._check_timeout(monotonic_ns() - started)
            with gil:
                with nogil:
                    nap()
                PyErr_CheckSignals()
        return first

    cdef int _check_timeout(self, uint64_t waited_ns) except -1 nogil:
        if waited_ns < self._timeout_ns:
            return 0
        with gil:
            raise SnowflakeTimeout(
                f"no new ID within timeout = {self._timeout_ns / 1e9} s: the clock has not reached the next free tick"
            )


cdef int raise_forked(Snowflake self) except -1:
    raise ForkedError(
        f"worker {self.worker_id} belongs to the parent of this forked process;"
        " construct a generator with another worker_id here"
    )


cdef bint is_int64(Py_buffer* view) noexcept:
    cdef const char* code = view.format
    if code == NULL or view.itemsize != 8:
        return False
    if code[0] == c"@" or code[0] == c"=":
        code += 1
    return (code[0] == c"l" or code[0] == c"q") and code[1] == 0


cdef int fill_held(Snowflake self, int64_t* out, uint64_t n, bint stream) except -1:
    cdef Generator* generator = <Generator*>self._generator
    cdef uint64_t first
    cdef int64_t count
    if n < RELEASE_GIL_FROM:
        count = self._attempt(n, &first)
        if count:
            write_run(out, count, id_of(generator[0], first), id_step(generator[0]), False)
            out += count
            n -= count
    if n:
        with nogil:
            self.issue_run(out, n, stream)
    return 0


cdef int fill_buffer(Snowflake self, out, bint stream) except -1:
    cdef Py_buffer view
    try:
        PyObject_GetBuffer(out, &view, PyBUF_FULL_RO)
    except (TypeError, ValueError, BufferError):
        _checks.int64_view(out)
        raise
    try:
        if view.readonly or not is_int64(&view) or <uintptr_t>view.buf % 8 or not PyBuffer_IsContiguous(&view, b"C"):
            _checks.int64_view(out)
        if view.len:
            fill_held(self, <int64_t*>view.buf, view.len // 8, stream and <uint64_t>view.len // 8 >= kStreamFrom)
    finally:
        PyBuffer_Release(&view)
    return 0
