# SPDX-License-Identifier: Apache-2.0
"""Every attribute of a device model that changes is saved, or listed as not being state.

The test reads the source. An attribute changes as the machine runs if a class sets it outside
`__init__`, or sets it there to a value that does not depend on the arguments. Such an attribute
either occurs where its class (or, for virtio devices, `devices.virtio.saved`) saves its state, or
is in the list below with the reason why it is not state.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import devices

ROOT = Path(devices.__file__).parent

NOT_STATE = {
    # Set by the machine before the guest runs.
    "Bus._map": "the machine maps its devices, and restored functions their BARs",
    "Listeners._callbacks": "wiring",
    "Capability.header": "made when the machine is",
    "Capability._body": "no capability of ours has plain bits that a guest can change",
    "_Bar.address": "saved by PciFunction",
    "_Bar.gpa": "saved by PciFunction",
    "PciFunction._capabilities": "made when the machine is",
    "PciFunction._next_capability": "made when the machine is",
    "PciFunction.bar_moved": "wiring",
    "PciFunction.bus_master_set": "wiring",
    "PciFunction.placement": "wiring",
    "PciFunction.intx_line": "wiring",
    "PciBus._functions": "made when the machine is; each is a part of its own",
    "RegisterTable._by_name": "made when the machine is",
    "RegisterTable._by_span": "made when the machine is",
    "RegisterTable._readers": "made when the machine is",
    "RegisterTable._exact_readers": "made when the machine is",
    "MsixTable.control_written": "wiring",
    "MsixTable._table_location": "made when the machine is",
    "MsixTable._pba_location": "made when the machine is",
    "PvPanic.read": "wiring",
    "PvPanic.write": "wiring",
    "BalloonDevice.actual_written": "wiring",
    "StatsQueue.report_received": "wiring",
    "Uart16550.room_available": "wiring",
    "VirtioDevice.queue_ready": "wiring",
    "VirtioDevice._guest_notifier": "wiring",
    "ConsolePort.host": "wiring",
    "ConsolePort.removed": "a port that was unplugged is not part of the device",
    "ConsoleDevice._paused": "a machine is saved while it is paused, and restored to run",
    "ConsoleDevice.config": "the size of the terminal of this process, sent again",
    # Saved under another name, or derived from the saved state.
    "DeviceQueue.stalled": "a restored queue is served at once, and stalls again",
    "RngDevice._credit_ns": "saved by _credit_at",
    "RngDevice._credited_at_ns": "saved state is credited up to the moment of saving",
    "RegisterTable._values": "saved by name through __getitem__",
    "VirtioDevice._generation": "saved as config_generation",
    "MsixTable.enabled": "follows the capability",
    "MsixTable._live": "follows the capability and the table",
    "MsixTable._routed": "routes are made again from the table",
    "PciFunction._interrupt_asserted": "driven again by the interrupt source",
    "PciFunction.bus_master_enabled": "follows the command register",
    "PciFunction._line_level": "follows _interrupt_asserted",
    "VirtioDevice.running": "follows status",
    "VirtioPciTransport._assigned": "follows the BARs and which queues are live",
    "Uart16550._irq_level": "follows the registers",
    "Uart16550._dlab": "follows LCR",
    "Uart16550._loopback": "follows MCR",
    "Uart16550._gate_open": "follows MCR",
    "Uart16550._modem_inputs": "follows MCR",
    # State of the host's process, or sent again.
    "FreePageQueue.pages": "the hints of a round belong to the process that began it",
    "FreePageQueue._begun": "so does the round",
    "FreePageQueue._on_end": "so does the round",
    "_OutstandingRequest.id": "so does the request",
    "_OutstandingRequest.messages": "so does the request",
    "_OutstandingRequest._parts": "so does the request",
    "MiscQueue._request": "belongs to the process that made it",
    "StatsQueue._waiters": "belong to the process that made the requests",
    "Uart16550._refused": "the console offers refused input again",
    "ConsolePort._refused": "so does the host of a port",
    "ConsolePort.window_size": "belongs to the terminal of the process, sent again",
    "InflateQueue.pages": "saved by PageQueue",
    "DeflateQueue.pages": "saved by PageQueue",
    "PageQueue.shown": "a view of memory begins in each process",
    "VirtioDevice._traced": "a log of its own",
    "VirtioDevice._config_changed": "always true after a restore",
}


def own_attribute(node: ast.AST) -> str | None:
    """Return the x of `self.x` or `self.x[...]`."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" else None
    return None


def assigned(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield (attribute, value) of every assignment to an attribute of self."""
    for node in ast.walk(function):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                if name := own_attribute(each):
                    yield name, getattr(node, "value", None)


def comes_from_outside(function: ast.FunctionDef, value: ast.expr | None) -> bool:
    """Return whether a value set in `__init__` depends on its arguments."""
    arguments = {each.arg for each in (*function.args.args, *function.args.kwonlyargs)}
    names = {each.id for each in ast.walk(value) if isinstance(each, ast.Name)} if value else set()
    return bool(names & arguments)


def changing(function: ast.FunctionDef) -> set[str]:
    made = function.name == "__init__"
    return {
        name
        for name, value in assigned(function)
        if not made or not comes_from_outside(function, value)
    }


def found() -> tuple[set[str], set[str]]:
    """Return every changing attribute as Class.name, and those of them that are saved."""
    everything, saved = set(), set()
    in_virtio = mentioned(ast.parse((ROOT / "virtio" / "saved.py").read_text()), "device")
    for path in set(ROOT.rglob("*.py")) - {ROOT / "state.py", *(ROOT / "testing").rglob("*.py")}:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef):
                continue
            functions = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            names = set().union(*map(changing, functions))
            here = set().union(
                *(mentioned(each, "self") for each in functions if each.name.startswith("save_"))
            )
            here |= in_virtio if node.name in ("VirtioDevice", "BalloonDevice") else set()
            everything |= {f"{node.name}.{name}" for name in names}
            saved |= {f"{node.name}.{name}" for name in names & here}
    return everything, saved


def mentioned(tree: ast.AST, owner: str) -> set[str]:
    """Return the attributes of `owner`, and strings, because counters are named by strings."""
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == owner
    }
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return names | {each for each in strings if isinstance(each, str)}


def test_changing_attributes_are_saved_or_listed_as_no_state() -> None:
    everything, saved = found()
    assert sorted(everything - saved - NOT_STATE.keys()) == []


def test_the_list_of_attributes_that_are_no_state_is_up_to_date() -> None:
    everything, saved = found()
    assert sorted(NOT_STATE.keys() - everything) == []
    assert sorted(NOT_STATE.keys() & saved) == []


def test_the_search_finds_known_attributes() -> None:
    everything, saved = found()
    assert len(everything) > 60
    assert {"StatsQueue._in_flight", "Uart16550._ier", "DeviceQueue.size", "Rtc._memory"} <= saved
