# SPDX-License-Identifier: Apache-2.0
"""The scope: a page that shows the events of a machine, live or from a recording.

The page's files are in `page`. The server sends them, and the events, to a browser on this host.
"""
