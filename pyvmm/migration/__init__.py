# SPDX-License-Identifier: Apache-2.0
"""Live migration: a running guest moves from one pyvmm to another by pre-copy.

    source.py               the source: setup, pre-copy rounds, switchover, commit
    source_channel.py       the source's end of the connection: messages, replies, aborts
    stream_senders.py       further connections of the source, which carry pages
    destination.py          the destination: receives and restores the guest, runs it on the commit
    destination_channel.py  the destination's end of a connection: messages, pages, aborts
    stream_receivers.py     further connections at the destination, and their admission
    source_candidates.py    finds the source among the connections to a waiting destination
    outgoing.py             migrations away from a running machine, on its event loop
    incoming.py             a migration to this process, on its event loop
    messages.py             the messages of both sides, checked when they are read
    stream.py               bytes to messages, in the one valid order; no input or output
    link.py                 the connection
    checksum_choice.py      the checksum of pages that both sides agree on
    auto_converge.py        how far to throttle a guest that writes too fast
    rate_limiter.py         the limit on bandwidth
    progress.py             settings and figures
    collection.py           the garbage collector, kept out of the switchover
    timeouts.py             the longest time for each step

`pyvmm.memory.precopy` selects the pages to copy; `pyvmm.sockets` has the sockets. Each side runs in
a thread of its own, because it only copies and waits; so does each further stream. It uses the
machine through a small Protocol, `source.SourceGuest` or `destination.Target`, so both sides are
tested without KVM.

The source speaks first:

    source                                       destination
    migration: the machine's configuration  -->  creates one, not yet running
                                            <--  welcome
    pages, zeros ...                        -->  into its RAM
    round-end n                             -->
                                            <--  round-ack n
    ... more rounds, as long as the guest writes more than fits into the downtime limit ...
    (the guest is paused) pages, zeros      -->
    round-end n, parts, ready               -->  restores all parts; compares the totals
                                            <--  round-ack n, restored
    commit                                  -->  runs the guest
                                            <--  running

With several streams, "welcome" has a token with which further connections join, the destination
confirms that with "joined", and pages and a "round-end" travel on each of them. The destination
acknowledges a round when it has ended on all connections.

Until it has read the commit, the destination may abort instead, and give the reason. The source
aborts by closing the connection.

**Exactly one side runs the guest.** The destination runs it when it has read the commit, and never
otherwise, and not after it has aborted. The source resumes it after any failure until it begins to
send the commit; afterwards only if the destination has aborted. So it never runs on both sides. The
cases, and the side that has the guest afterwards:

* Anything fails, on either side or between them, before the commit is sent: the source resumes the
  guest. The destination has no commit, so it ends, or waits for another source if no state has
  arrived. A step that exceeds its time (`Timeouts`) is such a failure, and the whole switchover up
  to the commit has one, so a peer that stops or dribbles cannot keep the guest paused.
* The source is killed before it sends the commit: its guest dies with it, as a guest does when its
  VMM is killed. The destination ends.
* The destination aborts while the commit is under way: it will not read the commit, and the source,
  which reads the abort, resumes the guest.
* The connection breaks after the commit was sent and before "running" arrives: the source cannot
  know whether the commit arrived (no protocol can; the last message of any would have the same
  fate). A confirmation that does not come in time is the same case, as the destination may run the
  guest and be unable to say so. The guest stays paused and complete at the source, which reports
  that. The operator checks the destination: if the guest does not run there and can no longer start
  (the destination has ended; it does so when its connection breaks), `cont` resumes it at the
  source.
* The destination is killed after it has read the commit: as in the case before, and the guest is
  still complete at the source, as it was when it was paused.
* The source is killed after it sent the commit: the destination runs the guest.

The source keeps the guest until it has read "running". From then on it refuses `cont`.
"""
