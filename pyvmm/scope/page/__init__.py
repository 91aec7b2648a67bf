# SPDX-License-Identifier: Apache-2.0
"""The files of the scope's page: HTML, styles, and ES modules that need no build step."""
