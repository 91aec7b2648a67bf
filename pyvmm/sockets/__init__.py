# SPDX-License-Identifier: Apache-2.0
"""Sockets: addresses, unix socket files, TLS, links and listeners for migrations.

A leaf: of pyvmm it imports `errors` only. `lab_paths` and `proxy_client` are the part of the lab
that code inside it needs: how its sockets appear on the host, and how to reach the host's.
"""
