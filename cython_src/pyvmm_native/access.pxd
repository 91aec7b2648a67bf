# SPDX-License-Identifier: Apache-2.0
# Loads and stores on memory that the guest reads and writes at the same time.
#
# Each is exactly one access: the compiler may neither repeat nor split nor drop it, so that a value
# checked is the value used. Atomic ones need natural alignment; "any" works at any address.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "guest structures are little-endian and read without conversion"
    #endif

    typedef uint64_t __attribute__((aligned(1))) shared_any_u64;

    static inline uint16_t shared_load_acquire_u16(const void *p) {
        return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE);
    }
    static inline uint16_t shared_load_u16(const void *p) {
        return __atomic_load_n((const uint16_t *)p, __ATOMIC_RELAXED);
    }
    static inline void shared_store_u16(void *p, uint16_t value) {
        __atomic_store_n((uint16_t *)p, value, __ATOMIC_RELAXED);
    }
    static inline void shared_store_release_u16(void *p, uint16_t value) {
        __atomic_store_n((uint16_t *)p, value, __ATOMIC_RELEASE);
    }
    static inline void shared_store_u32(void *p, uint32_t value) {
        __atomic_store_n((uint32_t *)p, value, __ATOMIC_RELAXED);
    }
    static inline uint64_t shared_load_any_u64(const void *p) {
        return *(const volatile shared_any_u64 *)p;
    }
    static inline void shared_full_barrier(void) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    """
    uint16_t load_acquire_u16 "shared_load_acquire_u16"(const void *p) noexcept nogil
    uint16_t load_u16 "shared_load_u16"(const void *p) noexcept nogil
    void store_u16 "shared_store_u16"(void *p, uint16_t value) noexcept nogil
    void store_release_u16 "shared_store_release_u16"(void *p, uint16_t value) noexcept nogil
    void store_u32 "shared_store_u32"(void *p, uint32_t value) noexcept nogil
    uint64_t load_any_u64 "shared_load_any_u64"(const void *p) noexcept nogil
    void full_barrier "shared_full_barrier"() noexcept nogil
