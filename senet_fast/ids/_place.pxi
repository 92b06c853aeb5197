# Of _snowflake.pyx: a worker's state.

cdef class _Place:
    """The state of one (layout, worker_id, clock)."""
    cdef State* state
    cdef bint mapped
    cdef readonly object layout, kind, last_tick, successors
    cdef public object holder

    def __cinit__(self, layout, kind, file):
        self.layout = layout
        self.successors = {}
        self.kind = kind
        self.mapped = file is not None
        if file is not None:
            self.state = map_state(file, _wordfile.OFFSET)
        elif kind == "share":
            self.state = new_shared_state()
        else:
            self.state = new_private_state()
        if self.state == NULL:
            raise MemoryError("no page for the state of a Snowflake generator")

    def __dealloc__(self):
        if self.state != NULL:
            free_state(self.state)

    @property
    def gone(self):
        return self.state.word.load(memory_order_acquire) <= kClosed

    def skip_to(self, from_ms):
        self.skip_to_tick(_places.first_tick(self.layout, from_ms))

    def skip_to_tick(self, tick):
        cdef uint64_t ticks = tick + kFirstTick
        skip_to(self.state[0], (ticks << <int>self.layout.sequence.width) - 1)

    def grant(self, until_ms):
        cdef uint64_t ticks = _places.end_tick(self.layout, until_ms) + kFirstTick
        grant(self.state[0], ticks << <int>self.layout.sequence.width)

    def close(self):
        """Refuses all later claims of this process, and of children that share the state; the time of the first tick
        that is free, in ms.
        """
        cdef uint64_t last
        if self.last_tick is not None:  # closed already
            return self.layout.epoch_ms + (self.last_tick + 1) * self.layout.tick_ms
        if self.mapped:
            last = unmap_state(self.state)
            if not last:
                raise MemoryError("no page for the state of a closed Snowflake generator")
        else:
            last = close(self.state[0])
        tick = -1 if last <= kFresh else <int64_t>((last >> <int>self.layout.sequence.width) - kFirstTick)
        self.last_tick = tick
        return self.layout.epoch_ms + (tick + 1) * self.layout.tick_ms
