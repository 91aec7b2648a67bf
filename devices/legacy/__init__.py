# SPDX-License-Identifier: Apache-2.0
"""Devices of the PC platform, at fixed ports and interrupts: UART, i8042, RTC, pvpanic, ACPI PM."""
