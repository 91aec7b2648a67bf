# SPDX-License-Identifier: Apache-2.0
"""The runtime directory: the running guests of this user, by name.

Each `pyvmm run` announces its guest there (`announcement`) with two files: NAME.json describes the
guest, NAME.sock is its control socket. `guests` finds those that are alive. `directory` chooses and
checks the directory.

Belongs here: names of guests, and the files that announce them. What a guest does is asked over
its control socket, not here.
"""
