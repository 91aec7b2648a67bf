# SPDX-License-Identifier: Apache-2.0
"""The API reference contains every public name, documented, and agrees with `help()`."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sphinx.application import Sphinx

from pykvm import abi
from pyvmm_docs.api_index import find, overridden_by, owner_of
from pyvmm_docs.api_links import meaning, meaning_anywhere
from pyvmm_docs.api_markdown import module_markdown, prose
from pyvmm_docs.api_model import Item, Module, read_module
from pyvmm_docs.api_names import ROOT, documented_modules, modules_below
from pyvmm_docs.api_reference import is_python, modules_of
from pyvmm_docs.api_tables import FieldRow, field_rows, is_request

pytestmark = pytest.mark.filterwarnings("ignore:.*MystReferenceResolver")
PAGES = sorted((ROOT / "docs/reference/api").glob("*.md"))
MODULES = [read_module(name) for name in sorted(documented_modules())]
NATIVE = [read_module(name) for name in modules_below("pyvmm_native")]


def placed_modules() -> Iterator[str]:
    for page in PAGES:
        for block in re.findall(r"^```\{api\}\n(.*?)^```", page.read_text(), re.M | re.S):
            yield from modules_of(block.splitlines())


def test_every_public_module_has_one_place() -> None:
    assert sorted(placed_modules()) == sorted(documented_modules())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        exec(compile(code, page.name, "exec"), {})


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build the pages alone, with warnings as errors; return the names that they define."""
    output = tmp_path_factory.mktemp("api")
    app = Sphinx(
        PAGES[0].parent,
        confdir=ROOT / "docs",
        outdir=output,
        doctreedir=output / "doctrees",
        buildername="dummy",
        confoverrides={"suppress_warnings": ["myst.xref_missing"]},  # links to other pages
        status=None,
        warning=io.StringIO(),
        warningiserror=True,
    )
    app.build()
    return set(app.env.domains.python_domain.objects)


def test_every_public_name_has_an_entry(objects: set[str]) -> None:
    names = {item.full_name for module in MODULES for item in module.walk()}
    assert names | documented_modules() <= objects


def test_every_field_of_a_kernel_structure_has_an_entry(objects: set[str]) -> None:
    assert {"pykvm.abi.kvm_regs.rax", "pykvm.abi.kvm_run.mmio.phys_addr"} <= objects


def is_documented(item: Item, module: Module) -> bool:
    """Return whether a reader learns the meaning of `item`.

    It has a docstring, shares one or a heading with its group, overrides or implements a documented
    member, or its owner explains it: an enumeration its values, a class or module each name that
    its docstring mentions, a module of constants all of them.
    """
    owner, name = owner_of(item), item.name.rpartition(".")[2]
    if item.doc or any(each.doc or each.heading for each in item.group) or overridden_by(item):
        return True
    if owner is None:
        return f"`{name}`" in module.doc or all(each.kind == "data" for each in module.items)
    return f"`{name}`" in owner.doc or any(base.startswith("enum.") for base in owner.bases)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_every_public_name_is_documented(module: Module) -> None:
    assert module.doc
    assert [i.full_name for i in module.walk() if not is_documented(i, module)] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_docstrings_are_markdown(module: Module) -> None:
    for text in [module.doc, *(item.doc for item in module.walk())]:
        above = ["", *text.splitlines()]
        for line, before in zip(above[1:], above, strict=False):
            begins_code = line.startswith("    ") and not before.startswith("    ")
            assert not (begins_code and before), f"a blank line is missing above: {line}"
        assert "::\n" not in text, "a colon is enough before code"
        assert "``" not in text, "single backticks are enough"


@pytest.mark.parametrize("module", NATIVE, ids=lambda module: module.name)
def test_native_docstrings_are_those_that_help_shows(module: Module) -> None:
    compiled = importlib.import_module(module.name)
    assert module.doc == inspect.getdoc(compiled)
    for item in module.walk():
        value: object = compiled
        for part in item.name.split("."):
            value = getattr(value, part, None)
        if value is not None and item.kind != "data":
            assert item.doc == (inspect.getdoc(value) or ""), item.name


@pytest.mark.parametrize("module", NATIVE, ids=lambda module: module.name)
def test_native_signatures_have_all_types(module: Module) -> None:
    for item in module.walk():
        arguments = item.parameters
        if arguments is not None:
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            assert all(each.annotation for each in every), item.name
        assert item.type or item.kind in ("class", "exception") or item.value, item.name


def test_an_exported_name_is_documented_where_users_import_it() -> None:
    item = find("pykvm.system.System")
    assert item is not None
    assert item.full_name == "pykvm.System"
    assert find("pykvm.System") is item


def test_a_function_with_the_name_of_its_module_keeps_its_full_name() -> None:
    assert find("pyvmm.harness.guest_session") is None
    item = find("pyvmm.harness.guest_session.guest_session")
    assert item is not None
    assert item.module == "pyvmm.harness.guest_session"


def test_attributes_have_their_evident_types_and_precede_methods() -> None:
    board = find("devices.testing.Board")
    assert board is not None
    kinds = [member.kind for member in board.members]
    assert kinds == sorted(kinds), "attributes, then methods"
    types = {member.name.rpartition(".")[2]: member.type for member in board.members}
    assert types["device"] == "devices.virtio.device.VirtioDevice", "a parameter"
    assert types["mmio"] == "devices.bus.Bus", "an instance"
    assert types["tracer"] == "devices.testing.RecordingTracer", "an alternative"


def test_a_group_of_constants_is_one_table_below_its_heading() -> None:
    text = module_markdown(read_module("devices.legacy.uart_bits"))
    assert text.count("{api-constants}") == 6, "the line control register has one bit"
    assert "FIFO control register\n\n```{api-constants} devices.legacy.uart_bits FCR_ENABLE" in text
    text = module_markdown(read_module("devices.testing.driver"))
    assert "PCI capability ids.\n\n```{api-constants} devices.testing.driver CAP_VENDOR CAP" in text


def test_annotations_name_types_in_full() -> None:
    item = find("devices.bus.Bus.map")
    assert item is not None
    assert item.parameters is not None
    shown = ast.unparse(item.parameters)
    assert shown == "start: int, length: int, device: devices.ports.BusDevice"


@pytest.mark.parametrize(
    ("code", "where", "full_name"),
    [
        ("map", "devices.bus.Bus.unmap", "devices.bus.Bus.map"),
        ("BusDevice", "devices.bus.Bus", "devices.ports.BusDevice"),
        ("set_capability", "devices.virtio.device.VirtioDevice", None),
        ("size", "devices.bus.Bus.read", None),
        ("RingError", "devices.bus.Bus", "pyvmm_native.ring.RingError"),
        ("devices.pci", "devices.bus.Bus", "devices.pci"),
        ("a + b", "devices.bus.Bus", None),
    ],
)
def test_code_means_the_name_in_its_scope(code: str, where: str, full_name: str | None) -> None:
    item = find(where)
    assert item is not None
    assert meaning(code, read_module(item.defined_in), item) == full_name


@pytest.mark.parametrize(
    ("code", "full_name"),
    [
        ("devices.testing.states", "devices.testing.states"),
        ("Board.serve()", "devices.testing.Board.serve"),
        ("RecordingTracer", "devices.testing.RecordingTracer"),
        ("serve", None),
        ("STANDARD", None),
        ("pyvmm.qmp", None),
    ],
)
def test_code_in_pages_means_full_and_distinct_names(code: str, full_name: str | None) -> None:
    assert meaning_anywhere(code) == full_name


def test_a_power_is_no_emphasis() -> None:
    assert prose("below 2**52, see `2**52`") == r"below 2\*\*52, see `2**52`"
    assert prose("    2**52") == "    2**52"


def test_a_structure_has_a_row_for_each_field_that_c_code_can_name() -> None:
    rows = list(field_rows(abi.kvm_irq_level))
    assert rows == [
        FieldRow("irq", "__u32", 0, 4),
        FieldRow("status", "__s32", 0, 4),
        FieldRow("level", "__u32", 4, 4),
    ]
    names = {row.name: row for row in field_rows(abi.kvm_irq_routing_entry)}
    assert names["u.msi"] == FieldRow("u.msi", "struct kvm_irq_routing_msi", 16, 16)


def test_every_request_names_its_section_and_the_capability_exists() -> None:
    requests = [item for item in read_module("pykvm.ioctls").items if is_request(item)]
    assert len(requests) > 55
    for item in requests:
        assert re.match(r"(Section|In section) 4\.\d+[.;]", item.doc), item.name
        for capability in re.findall(r"KVM_CAP_\w+", item.doc):
            assert hasattr(abi, capability), item.name


def test_python_is_told_from_other_code() -> None:
    assert is_python("result = await vm.run()")
    assert not is_python("u16 cmd   command of the request")
