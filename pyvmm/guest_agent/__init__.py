# SPDX-License-Identifier: Apache-2.0
"""Commands in a guest: the VMM's side of the guest agent (docs/reference/protocols/agent.md).

The agent, `guest_images/src/agent`, is started by the guest's kernel. `client` asks it to run
commands, `messages` has the format of what the two exchange over a virtio-console port, and
`streams` connects a command's own ports to files and to Python programs.
"""
