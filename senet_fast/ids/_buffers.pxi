# Of _snowflake.pyx: IDs into other people's memory.

cdef bint is_int64(Py_buffer* view) noexcept:
    cdef const char* code = view.format
    if code == NULL or view.itemsize != 8:
        return False
    if code[0] == c"@" or code[0] == c"=":
        code += 1
    return (code[0] == c"l" or code[0] == c"q") and code[1] == 0


cdef int64_t fill_held(Snowflake self, int64_t* out, int64_t n, bint stream, bint wait) except -1:
    cdef int64_t count = self._draw(out, n, False, kPatienceNs if wait else 0) if n < RELEASE_GIL_FROM else 0
    if count < n and (wait or n >= RELEASE_GIL_FROM):
        with nogil:
            if wait:
                self.issue_run(out + count, n - count, stream)
            else:
                count = self._draw(out, n, stream, 0)
    return count


cdef int64_t fill_buffer(Snowflake self, out, bint stream, bint wait=True) except -1:
    cdef Py_buffer view
    cdef int64_t n
    try:
        PyObject_GetBuffer(out, &view, PyBUF_FULL_RO)
    except (TypeError, ValueError, BufferError):
        _checks.int64_view(out)
        raise
    try:
        if view.readonly or not is_int64(&view) or <uintptr_t>view.buf % 8 or not PyBuffer_IsContiguous(&view, b"C"):
            _checks.int64_view(out)
        n = view.len // 8
        return fill_held(self, <int64_t*>view.buf, n, stream and <uint64_t>n >= kStreamFrom, wait) if n else 0
    finally:
        PyBuffer_Release(&view)
