# SPDX-License-Identifier: Apache-2.0
"""Put a Linux guest into RAM: kernel images, the boot protocol, ACPI tables, initial registers."""
