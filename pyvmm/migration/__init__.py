# SPDX-License-Identifier: Apache-2.0
"""Live migration: a running guest goes from one pyvmm to another by pre-copy.

    messages.py      what either side can say, checked when it is read
    stream.py        bytes to messages, in the one order there is; no input or output
    precopy.py       the source: rounds of copying while the guest runs, then the hand-over
    destination.py   the other side: takes everything in, and starts what is complete
    dirty.py         which pages have changed, from KVM's log and from our own
    transport.py     tcp and unix sockets, TLS

The two sides are at the end of one connection. Each runs in a thread of its own, because it does
nothing but copy and wait; what it needs of a machine are two short Protocols, `precopy.Guest` and
`destination.Target`, so that both are tested without KVM.

The source speaks first:

    source                                    destination
    hello: what machine it is          --->   makes one, not yet running
                                       <---   welcome
    pages, zeros …                     --->   into its RAM
    end of round n                     --->
                                       <---   round n is in
    … more rounds, as long as the guest writes more than fits into the downtime limit …
    (the guest stops) pages, zeros     --->
    end of round n, parts, ready       --->   restores all parts; compares the totals
                                       <---   complete
    commit                             --->   lets the guest run
                                       <---   running

The destination may say instead, until it has read the commit, that it gives up, and why. The source
gives up by closing the connection.

**Exactly one side runs the guest.** The destination lets it run when it has read the commit, and
never otherwise; nor does it after it has said that it gives up. The source lets it go on, whatever
fails, until it begins to send the commit; afterwards only if the destination has given up. So there
are never two. What can happen, and who has the guest then:

* Anything fails, on either side or between them, before the commit is sent: the source goes on.
  The destination has no commit, so it ends.
* The source is killed before it sends the commit: its guest dies with it, as a guest does when its
  VMM is killed. The destination ends.
* The destination gives up while the commit is under way: it will not read it, and the source, which
  reads that it has given up, goes on.
* The connection breaks after the commit was sent and before "running" came back: the source cannot
  know whether the commit arrived (no protocol can; the last message of any would have the same
  fate). Its guest stays stopped, whole, and it says so. A person looks at the destination: if the
  guest does not run there, and it can no longer begin to (the destination has ended; it does so
  when its connection breaks), `cont` lets it go on at the source.
* The destination is killed after it has read the commit: as in the case before, and the guest is
  still whole at the source, as it was when it stopped.
* The source is killed after it sent the commit: the destination runs.

The source forgets nothing until it has read "running". From then on it refuses `cont`.
"""
