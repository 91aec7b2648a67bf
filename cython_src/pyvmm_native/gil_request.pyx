# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True, embedsignature.format=clinic
"""Requests for the GIL that the main thread grants sooner than after a switch interval.

A thread that waits for the GIL requests it only after `sys.getswitchinterval()`, and a shorter
interval would let every thread interrupt every other. A vCPU whose exit needs Python is not like
other threads: it needs the GIL for a few microseconds, and its guest waits. While the event loop,
on the main thread, executes Python code, a `GilRequest` is therefore a signal to the main thread.
Python calls the signal's handler, `let_in`, between two instructions, where the GIL can be
released: it does so until each vCPU that waits has had the GIL, and continues.

The main thread keeps half of the time: after it has let others in, a vCPU requests the GIL only
when the main thread has had it for as long as it was away. A signal would be of no use while the
main thread waits for events without the GIL: only the next `SIGNALLING_REQUESTS` after one that had
to wait send one. So the usual exit reads the processor's time-stamp counter twice, and makes no
system call. A request that the main thread does not grant waits for the switch interval.
"""

import atexit
import signal

cimport cython
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport strerror

from pyvmm_native.clock cimport monotonic_ns

cdef extern from *:
    """
    #include <sched.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* Threads between a request and the GIL, and those that have taken it. Decreased and increased
       with the GIL only, so that they agree for the thread that holds it. */
    static int gil_waiting;
    static unsigned gil_taken;

    static inline void add_waiting(int change)
    {
        __atomic_add_fetch(&gil_waiting, change, __ATOMIC_SEQ_CST);
    }
    static inline int number_waiting(void)
    {
        return __atomic_load_n(&gil_waiting, __ATOMIC_SEQ_CST);
    }
    static inline void add_taken(void)
    {
        __atomic_add_fetch(&gil_taken, 1, __ATOMIC_SEQ_CST);
    }
    static inline unsigned number_taken(void)
    {
        return __atomic_load_n(&gil_taken, __ATOMIC_SEQ_CST);
    }
    static inline void forget_waiting(void)
    {
        __atomic_store_n(&gil_waiting, 0, __ATOMIC_SEQ_CST);
    }
    /* For hints that any thread may read and change, without an order between them. */
    static inline int64_t load(const int64_t *hint)
    {
        return __atomic_load_n(hint, __ATOMIC_RELAXED);
    }
    static inline void store(int64_t *hint, int64_t value)
    {
        __atomic_store_n(hint, value, __ATOMIC_RELAXED);
    }
    /* The time-stamp counter: 2 to 4 ticks in a nanosecond, and good enough for a threshold. */
    static inline int64_t read_ticks(void)
    {
        return (int64_t)__builtin_ia32_rdtsc();
    }
    static inline void send_signal(int tid, int signum)
    {
        syscall(SYS_tgkill, getpid(), tid, signum);
    }
    static inline int thread_id(void)
    {
        return syscall(SYS_gettid);
    }
    """
    void add_waiting(int change) nogil
    int number_waiting() nogil
    void add_taken() nogil
    unsigned int number_taken() nogil
    void forget_waiting() nogil
    int64_t load(const int64_t *hint) nogil
    void store(int64_t *hint, int64_t value) nogil
    int64_t read_ticks() nogil
    void send_signal(int tid, int signum) nogil
    int thread_id() nogil
    int sched_yield() nogil
    ssize_t read(int fd, void *buffer, size_t count) nogil

cdef enum:
    # A longer wait, of some 20 us, shows that another thread executes Python code. It may do so for
    # as many further requests.
    WAIT_TICKS = 50_000
    SIGNALLING_REQUESTS = 16
    MAX_SHARE_NS = 200_000

# So many more requests send a signal.
cdef int64_t requests_to_signal = 0
# Until then the main thread is not interrupted again.
cdef int64_t share_end_ns = 0

cdef int request_signal = 0
cdef int main_thread = 0


@cython.final
cdef class GilRequest:
    """The requests of one thread; without `install_request_handler` they do nothing."""

    cdef void begin(self) noexcept nogil:
        if load(&requests_to_signal):
            self._send()
        self._begun = read_ticks()

    cdef void _send(self) noexcept nogil:
        while <int64_t>monotonic_ns() < load(&share_end_ns):
            sched_yield()
        self._is_sent = True
        add_waiting(1)
        send_signal(main_thread, request_signal)

    cdef void granted(self) noexcept:
        cdef bint waited = read_ticks() - self._begun > WAIT_TICKS
        if self._is_sent:
            self._is_sent = False
            add_waiting(-1)
            add_taken()
            if not waited:
                store(&requests_to_signal, max(load(&requests_to_signal) - 1, 0))
        if waited and main_thread:
            store(&requests_to_signal, SIGNALLING_REQUESTS)


def install_request_handler(int signum):
    """Grant requests of the GIL in the calling thread, by a handler of `signum`.

    Call it on the main thread, where Python executes handlers of signals; ValueError on another.
    System calls that the signal interrupts are restarted. A program that this process executes
    starts with the default action of the signal.
    """
    global request_signal, main_thread
    signal.signal(signum, let_in)
    signal.siginterrupt(signum, False)
    if (request_signal, main_thread) == (signum, thread_id()):
        return  # another thread may be reading them
    if main_thread == 0:
        # Python restores the default action while it ends: the end of the process. A vCPU that
        # waits for the GIL by then must not cause that.
        atexit.register(_ignore_requests)
    forget_waiting()  # after fork(): those threads are the parent's
    request_signal, main_thread = signum, thread_id()


def _ignore_requests():
    signal.signal(request_signal, signal.SIG_IGN)


def let_in(signum, frame):
    """Release the GIL until all threads that have requested it had it; the handler of the signal.

    CPython waits in the same way, without a limit, when it releases the GIL on request.
    """
    cdef int64_t begin_ns = monotonic_ns()
    cdef int64_t now_ns
    cdef int waiting = number_waiting()
    cdef unsigned int taken = number_taken()
    if waiting == 0:
        return
    with nogil:
        while <int>(number_taken() - taken) < waiting:
            sched_yield()
    now_ns = monotonic_ns()
    store(&share_end_ns, now_ns + min(now_ns - begin_ns, MAX_SHARE_NS))


def read_signals(int fd):
    """Read numbers of signals from the descriptor of `signal.set_wakeup_fd`.

    Those of requests for the GIL are left out; they do not even take the GIL. Waits for at least
    one other; empty at the end of the file. Raises OSError.
    """
    cdef uint8_t[64] numbers
    cdef ssize_t i, count = 1, kept = 0
    cdef int error = 0
    with nogil:
        while kept == 0 and (count > 0 or error == EINTR):
            count = read(fd, numbers, sizeof(numbers))
            error = errno if count < 0 else 0  # before taking the GIL, which may change it
            for i in range(count):
                if numbers[i] != request_signal:
                    numbers[kept] = numbers[i]
                    kept += 1
    if error:
        raise OSError(error, strerror(error).decode())
    return (<char *>numbers)[:kept]
