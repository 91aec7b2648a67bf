# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The KVM_RUN loop of one vCPU, and how to interrupt it.

Most exits of a running guest are accesses to device registers. Going through Python for each
ioctl would cost more than the exit; here the loop stays in C, takes the GIL only to call the
device model (`pyvmm_native.gil_request`), and calls KVM_RUN again; accesses that a
`SerialFastPath` serves do not even take the GIL. The kernel describes the exit in `struct kvm_run`
at the start of the area shared with the vCPU, and completes the guest's access when KVM_RUN is
called again (Documentation/virt/kvm/api.rst, section 5, "The kvm_run structure").

`run` belongs to the vCPU's thread; it serves port and memory-mapped I/O by calling an `IoHandler`
and returns for everything else. Another thread makes it return with `kick`, without a race: `kick`
sets `kvm_run.immediate_exit`, which KVM checks when KVM_RUN starts, and then sends a signal, which
ends a KVM_RUN that started before (ibid., "immediate_exit"). The vCPU's thread runs

    while True:
        reason = run(vcpu_fd, run_area, io)
        if reason == -errno.EINTR:
            clear_kick(run_area)
            ...look for requests to this thread...

and the requesting thread stores its request, then kicks. The kick is cleared before the thread
checks for requests, so a request made at any moment is either seen now or interrupts the next
`run`.

Exits are counted by reason in an `ExitCounters`, and while its `EventBuffer` is watched each Nth is
an event, if that is asked for.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_WRITABLE,
    Py_buffer,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strerror

from pyvmm_native.events cimport VM_EXIT, EventBuffer
from pyvmm_native.gil_request cimport GilRequest
from pyvmm_native.serial cimport SerialFastPath

cdef extern from "<linux/kvm.h>" nogil:
    enum:
        KVM_RUN
        KVM_GET_MP_STATE
        KVM_MP_STATE_RUNNABLE
        KVM_EXIT_IO
        KVM_EXIT_IO_OUT
        KVM_EXIT_MMIO

    # The two members of kvm_run's unnamed union that are served here. These names are Cython's
    # only: the types have none in C.
    struct pio_exit:
        uint8_t direction
        uint8_t size
        uint16_t port
        uint32_t count
        uint64_t data_offset

    struct mmio_exit:
        uint64_t phys_addr
        uint8_t data[8]
        uint32_t len
        uint8_t is_write

    struct kvm_mp_state:
        uint32_t mp_state

    struct kvm_run:
        uint8_t immediate_exit
        uint32_t exit_reason
        pio_exit io
        mmio_exit mmio

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    struct sigaction_t "sigaction":
        void (*sa_handler)(int) noexcept
        sigset_t sa_mask
        int sa_flags
    int sigaction(int signum, const sigaction_t *act, sigaction_t *oldact)
    int sigemptyset(sigset_t *set)
    int tgkill(int tgid, int tid, int signum)

cdef extern from *:
    """
    /* The kernel reads immediate_exit on another CPU than the one that sets it. Whatever the
       kicking thread wrote before must be visible to a vCPU thread that sees it set. */
    static inline void set_immediate_exit(struct kvm_run *run)
    {
        __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_RELEASE);
    }
    /* The vCPU thread's later reads must not be reordered before the store: a kick in between would
       be cleared and its reason not seen. */
    static inline void clear_immediate_exit(struct kvm_run *run)
    {
        __atomic_exchange_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    }
    """
    void set_immediate_exit(kvm_run *run) nogil
    void clear_immediate_exit(kvm_run *run) nogil

cdef int kick_signal = 0


cdef class _RunArea:
    """The area shared with the kernel, kept mapped while this object exists."""

    cdef Py_buffer view
    cdef kvm_run *run
    cdef uint64_t size_bytes

    def __cinit__(self, area):
        PyObject_GetBuffer(area, &self.view, PyBUF_WRITABLE)
        self.run = <kvm_run *>self.view.buf
        self.size_bytes = <uint64_t>self.view.len
        if self.size_bytes < sizeof(kvm_run):
            raise ValueError(f"run area of {self.size_bytes} bytes is smaller than kvm_run")

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef enum:
    NATIVE = 0
    PIO = 1
    MMIO = 2
    INTERRUPTED = 3
    OTHER = 4
    REASONS = 5

# Served by the fast path, a port, MMIO, by a signal, and every other reason.
_EXIT_REASONS = ("fast path", "pio", "mmio", "interrupted", "other")


@cython.final
cdef class ExitCounters:
    """The exits of vCPU number `vcpu` since it was created, by reason.

    While `events` is watched each `sample_every`th exit is an event; 0, the default, makes none.
    Counted by the vCPU's thread; any thread may read.
    """

    cdef uint64_t _counts[REASONS]
    cdef uint64_t _reason_ids[REASONS]
    cdef uint64_t _vcpu
    cdef EventBuffer _events
    cdef uint64_t _until_sample
    cdef public uint64_t sample_every

    def __init__(self, int vcpu=0, EventBuffer events=None):
        cdef int i
        self._vcpu = vcpu
        self._events = events
        if events is not None:
            for i in range(REASONS):
                self._reason_ids[i] = events.string_id(_EXIT_REASONS[i])

    @property
    def counts(self):
        """Exits served by the fast path, for ports, for MMIO, by a signal, and all others."""
        return tuple([self._counts[i] for i in range(REASONS)])

    cdef void count(self, const kvm_run *run, int reason) noexcept nogil:
        self._counts[reason] += 1
        if self.sample_every and self._events is not None and self._events.watched:
            self._until_sample += 1
            if self._until_sample >= self.sample_every:
                self._until_sample = 0
                self._emit(run, reason)

    cdef void _emit(self, const kvm_run *run, int reason) noexcept nogil:
        cdef uint64_t[5] values = [self._vcpu, self._reason_ids[reason], 0, 0, 0]
        if reason == MMIO:
            values[2], values[3], values[4] = run.mmio.phys_addr, run.mmio.len, run.mmio.is_write
        elif reason in (NATIVE, PIO):
            values[2], values[3] = run.io.port, <uint64_t>run.io.size * run.io.count
            values[4] = run.io.direction == KVM_EXIT_IO_OUT
        self._events.emit(VM_EXIT, values, 5)


def run(int vcpu_fd, run_area, io, SerialFastPath serial=None, ExitCounters exits=None):
    """Run guest code until an exit that `io` cannot serve, and return its KVM_EXIT_* reason.

    Return -errno.EINTR when a signal arrived or `immediate_exit` is set. `run_area` is the whole
    mmap of `vcpu_fd`; it cannot be closed meanwhile. Accesses that `serial` serves never reach
    `io`. `exits` counts all exits. The GIL is released while guest code runs. Python's signal
    handlers do not run in here, only between two calls.

    An exception raised by a method of `io` propagates; OverflowError is raised if it returns a
    value that does not fit the read. In both cases the guest reads all ones for the part that was
    not served, once `run` is called again. OSError if KVM_RUN fails, RuntimeError if KVM names data
    outside `run_area`.
    """
    cdef _RunArea area = _RunArea(run_area)
    cdef int result, error = 0
    cdef bint runnable = False    # since the last KVM_RUN, which has failed with EAGAIN
    cdef bint has_fast_path = serial is not None
    cdef GilRequest request = GilRequest()
    cdef ExitCounters counters = ExitCounters() if exits is None else exits
    cdef object pio_read = io.pio_read
    cdef object pio_write = io.pio_write
    cdef object mmio_read = io.mmio_read
    cdef object mmio_write = io.mmio_write
    while True:
        with nogil:
            result = ioctl(vcpu_fd, KVM_RUN, 0)
            while result == 0 and has_fast_path and _serve_serial(area, serial):
                counters.count(area.run, NATIVE)
                result = ioctl(vcpu_fd, KVM_RUN, 0)
            if result < 0:
                error = errno  # before taking the GIL, which may change it
            request.begin()
        request.granted()
        if result < 0:
            if error == EINTR:
                counters.count(area.run, INTERRUPTED)
                return -EINTR
            # EAGAIN: a vCPU that waited for its start-up IPI has received it, and has not run yet.
            # If it was runnable before, the host lets KVM start no thread, and retrying is endless.
            if error == EAGAIN and area.run.immediate_exit:
                return -EINTR
            if error == EAGAIN and not runnable:
                runnable = _is_runnable(vcpu_fd)
                continue
            raise OSError(error, f"KVM_RUN: {strerror(error).decode()}")
        runnable = False
        if area.run.exit_reason == KVM_EXIT_IO:
            counters.count(area.run, PIO)
            _serve_pio(area, pio_read, pio_write)
        elif area.run.exit_reason == KVM_EXIT_MMIO:
            counters.count(area.run, MMIO)
            _serve_mmio(area.run, mmio_read, mmio_write)
        else:
            counters.count(area.run, OTHER)
            return area.run.exit_reason


cdef bint _is_runnable(int vcpu_fd):
    """Return True unless the vCPU waits for its start-up IPI."""
    cdef kvm_mp_state state
    return ioctl(vcpu_fd, KVM_GET_MP_STATE, &state) < 0 or state.mp_state == KVM_MP_STATE_RUNNABLE


cdef bint _serve_serial(_RunArea area, SerialFastPath serial) noexcept nogil:
    """Serve a one-byte IN or OUT on the fast path; return False if nothing was done."""
    cdef kvm_run *run = area.run
    cdef uint8_t *data
    if run.exit_reason != KVM_EXIT_IO or run.io.size != 1 or run.io.count != 1:
        return False
    if run.io.data_offset >= area.size_bytes:
        return False
    data = <uint8_t *>run + run.io.data_offset
    if run.io.direction == KVM_EXIT_IO_OUT:
        return serial.serve_write(run.io.port, data[0])
    return serial.serve_read(run.io.port, data)


cdef int _serve_pio(_RunArea area, object pio_read, object pio_write) except -1:
    """Pass the items of one IN, OUT, INS or OUTS to the handler, in order."""
    cdef uint32_t size = area.run.io.size
    cdef uint32_t count = area.run.io.count
    cdef uint16_t port = area.run.io.port
    cdef uint64_t offset = area.run.io.data_offset
    cdef uint64_t length = <uint64_t>count * size
    cdef uint64_t value
    cdef uint8_t *data
    if size not in (1, 2, 4) or offset > area.size_bytes or length > area.size_bytes - offset:
        raise RuntimeError(
            f"KVM_EXIT_IO names {count} items of {size} bytes at offset {offset} "
            f"of a {area.size_bytes}-byte run area"
        )
    data = <uint8_t *>area.run + offset
    if area.run.io.direction == KVM_EXIT_IO_OUT:
        for _ in range(count):
            value = 0
            memcpy(&value, data, size)
            pio_write(port, size, value)
            data += size
        return 0
    # If the handler raises, the guest reads all ones, as from an absent device, not stale bytes.
    memset(data, 0xFF, length)
    for _ in range(count):
        _store(data, size, pio_read(port, size))
        data += size
    return 0


cdef int _serve_mmio(kvm_run *area, object mmio_read, object mmio_write) except -1:
    """Pass one access to the handler, in pieces of 1, 2, 4 or 8 bytes.

    An access that crosses a page arrives as two, of any length from 1 to 7; devices see only the
    sizes of bus accesses.
    """
    cdef uint64_t gpa = area.mmio.phys_addr
    cdef uint32_t left = area.mmio.len
    cdef uint32_t size
    cdef uint64_t value
    cdef uint8_t *data = area.mmio.data
    if left > 8:
        raise RuntimeError(f"KVM_EXIT_MMIO names {left} bytes")
    if not area.mmio.is_write:
        memset(data, 0xFF, left)
    while left:
        size = 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1
        if area.mmio.is_write:
            value = 0
            memcpy(&value, data, size)
            mmio_write(gpa, size, value)
        else:
            _store(data, size, mmio_read(gpa, size))
        data += size
        gpa += size
        left -= size
    return 0


cdef int _store(uint8_t *data, uint32_t size, object value) except -1:
    """Store a handler's result, little-endian; a value that does not fit is the handler's bug."""
    cdef uint64_t bits = value
    if size < 8 and bits >> (8 * size):
        raise OverflowError(f"the handler returned {value:#x} for a read of {size} bytes")
    memcpy(data, &bits, size)
    return 0


cdef void _on_kick(int signum) noexcept nogil:
    """Do nothing: the arrival of the signal alone ends the ioctl."""


def install_kick_handler(int signum):
    """Make `signum` the signal that `kick` sends, and give it a handler that does nothing.

    The handler is process-wide, in C and without SA_RESTART. Call it once, before the first vCPU
    runs; the signal must not be blocked in the vCPUs' threads. Raises OSError.
    """
    global kick_signal
    cdef sigaction_t action
    memset(&action, 0, sizeof(action))
    action.sa_handler = _on_kick
    sigemptyset(&action.sa_mask)
    # Without SA_RESTART in sa_flags the interrupted ioctl returns EINTR.
    if sigaction(signum, &action, NULL) < 0:
        raise OSError(errno, f"sigaction({signum}): {strerror(errno).decode()}")
    kick_signal = signum


def kick(int native_thread_id, run_area):
    """Make the current or next `run` of another thread return -errno.EINTR without delay.

    `native_thread_id` is that thread's `threading.get_native_id()`; `run_area` its vCPU's. Return
    False if that thread has ended. The kick stays in force until `clear_kick`. Raises RuntimeError
    if `install_kick_handler` was not called.
    """
    cdef _RunArea area = _RunArea(run_area)
    if kick_signal == 0:
        raise RuntimeError("install_kick_handler() was not called")
    set_immediate_exit(area.run)
    return tgkill(getpid(), native_thread_id, kick_signal) == 0


def clear_kick(run_area):
    """Let the vCPU of `run_area` run again; called by its own thread after -errno.EINTR."""
    cdef _RunArea area = _RunArea(run_area)
    clear_immediate_exit(area.run)
