# SPDX-License-Identifier: Apache-2.0
"""PC platform devices at fixed ports and interrupts: UART, i8042, RTC, pvpanic, ACPI PM."""
