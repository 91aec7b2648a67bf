# SPDX-License-Identifier: Apache-2.0
"""The state of a machine as a sequence of records, in a file or on its way to another host."""
