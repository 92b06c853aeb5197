# For other Cython code: `from senet_fast.ids._snowflake cimport Snowflake`. Needs no header and no C++.
cimport cython
from libc.stdint cimport int64_t, uint64_t


@cython.final
cdef class Snowflake:
    cdef void* _generator
    cdef int _kind
    cdef double _timeout_ns
    cdef int64_t _max_backward_ms, _max_drift_ms
    cdef object _clock, _held, _place, _on_fork, __weakref__
    cdef bint _begins_now
    cdef readonly object layout

    # The next ID, as next_id(). Sleeps without the GIL, whether or not the caller holds it.
    cdef int64_t issue(self) except -1 nogil

    # The next n IDs into out, as fill(). Call it without the GIL: it sleeps in place. stream: write past the caches,
    # which pays for arrays larger than they are.
    cdef int issue_run(self, int64_t* out, uint64_t n, bint stream) except -1 nogil

    cdef uint64_t _now_ms(self) except? 0 nogil
    cdef int64_t _draw(self, int64_t* out, uint64_t n, bint stream, double patience_ns) except -1 nogil
    cdef int64_t _attempt(self, uint64_t n, uint64_t* first, void** claimer, double patience_ns) except -1 nogil
    cdef int64_t _wait(self) except -1 nogil
    cdef int _settle(self, void* unsettled, path, grant) except -1
    cdef int _refuse(self, uint64_t word) except -1
    cdef int _check_timeout(self, uint64_t waited_ns) except -1 nogil
