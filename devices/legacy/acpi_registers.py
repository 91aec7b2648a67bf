# SPDX-License-Identifier: Apache-2.0
"""Numbers of legacy devices that the ACPI tables announce (ACPI 6.4, 4.8.3 and 5.2.9).

They are apart from the devices, as the tables are written before the guest runs, and the devices
are imported after that.
"""

PM1A_EVENT_OFFSET = 0
PM1A_EVENT_BYTES = 4
PM1A_CONTROL_OFFSET = 4
PM1A_CONTROL_BYTES = 2
RESET_OFFSET = 8
"""Layout of the ports of `devices.legacy.acpi_pm`: offsets and sizes in bytes."""
SLEEP_TYPE_SOFT_OFF = 5
"""SLP_TYP that switches the power off, as in `\\_S5` of the DSDT."""
RESET_VALUE = 1
"""The value that resets when written to the reset register."""
CENTURY_INDEX = 0x32
"""The byte of `devices.legacy.rtc` that has the century."""
