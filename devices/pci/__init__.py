# SPDX-License-Identifier: Apache-2.0
"""The PCI framework: host bridge, configuration space, capabilities and MSI-X."""
