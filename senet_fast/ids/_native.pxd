# What _snowflake.pyx uses of csrc/ids.
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "<atomic>" namespace "std" nogil:
    enum memory_order "std::memory_order":
        memory_order_acquire "std::memory_order_acquire"

cdef extern from "ids/snowflake.h" namespace "senet::ids" nogil:
    cppclass Word:
        uint64_t load(memory_order)
    const uint64_t kForked, kClosed, kFresh, kWait, kOutOfRange, kExpired, kFirstTick
    struct State:
        Word word, granted
    struct CLayout "senet::ids::Layout":
        uint64_t tick_0_ms, tick_ms, timestamp_max
        uint32_t timestamp_shift, worker_bits, worker_shift, sequence_bits, sequence_shift
    cppclass Generator:
        Generator()
        Generator(const Generator&)
        State* state
        uint64_t worker_id, max_lag, max_drift, start_mask, seed
        CLayout layout
        Generator* before
    Generator* current(void* const*)
    void publish(void**, Generator*)
    struct Run:
        uint64_t first, count
    Run claim(const Generator&, uint64_t now_ms, uint64_t n)
    void skip_to(State&, uint64_t word)
    void grant(State&, uint64_t end)
    uint64_t close(State&)
    int64_t id_of(const Generator&, uint64_t word)
    uint64_t begin_ms(const Generator&, uint64_t word)
    uint64_t catch_up(const Generator&, uint64_t coarse_ms)

cdef extern from "ids/word.h" namespace "senet::ids" nogil:
    State* new_private_state()
    State* new_shared_state()
    State* map_state(int file, size_t offset)
    uint64_t unmap_state(State*)
    void free_state(State*)

cdef extern from "ids/clock.h" namespace "senet::ids" nogil:
    uint64_t realtime_ms()
    uint64_t coarse_ms()
    uint64_t counted_ms()
    bint has_steady_counter()
    uint64_t monotonic_ns()
    bint nap()

cdef extern from "ids/write_run.h" namespace "senet::ids" nogil:
    const uint64_t kStreamFrom
    void write_words(const Generator&, int64_t* out, uint64_t first, uint64_t count, bint stream)
