# SPDX-License-Identifier: Apache-2.0
"""Links of the API reference: from code in docstrings and from types in signatures to objects.

In a docstring, `single backticks` mark code. Where the code is a name that means a documented
object in the scope of the docstring, it becomes a link: a member of the same class or of its bases,
a name that the module defines or imports, a member that only one class of the module has, a module
of the same package, a full name, or a name with a capital that only one object has. Parameters are
not linked. Names of classes and of the kernel are links without backticks, too.

Types in signatures are full names. Those of the standard library have no page here, and the site is
built without a network; `outside` accepts them if they exist.
"""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Iterator

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from pyvmm_docs.api_index import documented_names, find, is_documented, owner_of, with_bases
from pyvmm_docs.api_model import Item, Module, parameter_names

NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
PROSE_NAME = re.compile(r"\b(KVM_[A-Z0-9_]*[A-Z0-9]|kvm_\w+|(?:[A-Z][a-z0-9]+){2,})\b(?!\*)")
"""Names that are links without backticks: the kernel's, and those of classes such as errors."""
DISTINCT_NAME = re.compile(r"\w*[A-Z]\w*|kvm_\w+")
"""Names that mean the same object everywhere if only one has that name."""
LINKED_PAGES = ("guides/", "architecture/")
"""Pages outside the reference whose code is linked to it."""
OTHER_PACKAGES = sys.stdlib_module_names | {"hypothesis", "pyvmm", "typing_extensions"}
"""Packages whose names appear in signatures without a page of their own."""


def link_types(node: nodes.Element) -> None:
    """Have the types in signatures refer to exactly the object that they name in full.

    Sphinx would take a member with the same last name anywhere, such as a field `bytes`.
    """
    for reference in list(node.findall(addnodes.pending_xref)):
        for attribute in ("refspecific", "py:module", "py:class"):
            reference.attributes.pop(attribute, None)
        if reference["reftarget"].startswith("_"):  # a type variable
            reference.parent.replace(reference, nodes.Text(reference["reftarget"]))


def link_code(node: nodes.Element, module: Module) -> None:
    """Make references of the code in the docstrings below `node`, a section of `module`."""
    for literal in list(node.findall(nodes.literal)):
        is_target = bool(literal["ids"])
        if not is_target and not isinstance(literal.parent, nodes.title | nodes.reference):
            link = _link_to(literal.deepcopy(), literal.astext(), module, _described_by(literal))
            literal.parent.replace(literal, link)


def link_page(app: Sphinx, page: nodes.document) -> None:
    """Make references of the code in the paragraphs of an ordinary page."""
    if app.env.docname.startswith(LINKED_PAGES):
        for literal in list(page.findall(nodes.literal)):
            target = meaning_anywhere(literal.astext())
            if target is not None and isinstance(literal.parent, nodes.paragraph):
                literal.parent.replace(literal, _reference(literal.deepcopy(), target))


def link_prose(node: nodes.Element, module: Module) -> None:
    """Make references of the names in the prose of the docstrings below `node`."""
    for text in list(node.findall(nodes.Text)):
        if isinstance(text.parent, nodes.paragraph | nodes.inline):
            item = _described_by(text)
            parts = [
                _link_to(nodes.Text(part), part, module, item)
                if PROSE_NAME.fullmatch(part)
                else nodes.Text(part)
                for part in PROSE_NAME.split(text.astext())
            ]
            text.parent.replace(text, parts)


def _link_to(content: nodes.Node, code: str, module: Module, item: Item | None) -> nodes.Node:
    """Return `content` as a reference to the object that `code` means, or as it is.

    An object does not refer to itself.
    """
    target = meaning(code, module, item)
    if target is None or (item is not None and target == item.full_name):
        return content
    return _reference(content, target)


def _reference(content: nodes.Node, target: str) -> addnodes.pending_xref:
    return addnodes.pending_xref("", content, refdomain="py", reftype="obj", reftarget=target)


def _described_by(node: nodes.Node) -> Item | None:
    """Return the item whose docstring contains the node; None if it is the module's."""
    while not isinstance(node, addnodes.desc | nodes.section):
        node = node.parent
    if isinstance(node, nodes.section):
        return None
    signature = node.next_node(addnodes.desc_signature)
    assert signature is not None
    return find(f"{signature['module']}.{signature['fullname']}")


def meaning(code: str, module: Module, item: Item | None = None) -> str | None:
    """Return the full name of the documented object that `code` means, or None.

    The code stands in the docstring of `item`, or in that of `module`.
    """
    name = code.removesuffix("()")
    if not NAME.fullmatch(name):
        return None
    if item is not None and name.partition(".")[0] in parameter_names(item):
        return None
    return next((each for each in _candidates(name, module, item) if is_documented(each)), None)


def _candidates(name: str, module: Module, item: Item | None) -> Iterator[str]:
    """Yield the full names that `name` may stand for, the nearest scope first."""
    for scope in (item, None if item is None else owner_of(item)):
        if scope is not None:
            yield from (f"{cls.full_name}.{name}" for cls in with_bases(scope))
    if full := module.namespace.full_name(name):
        yield full
    members = [f"{each.full_name}.{name}" for each in module.items]
    if len(known := [each for each in members if find(each)]) == 1:
        yield known[0]
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    yield f"{package}.{name}"
    yield from _anywhere(name)


def meaning_anywhere(code: str) -> str | None:
    """Return the full name of the documented object that `code` means in a page, or None."""
    name = code.removesuffix("()")
    candidates = _anywhere(name) if NAME.fullmatch(name) else ()
    return next((each for each in candidates if is_documented(each)), None)


def _anywhere(name: str) -> Iterator[str]:
    """Yield the full names that `name` may stand for outside any module."""
    yield name
    first, dot, rest = name.partition(".")
    if DISTINCT_NAME.fullmatch(first) and len(same := documented_names().get(first, [])) == 1:
        yield same[0] + dot + rest


def outside(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Show a type of another package without a link; a name that does not exist is a fault."""
    target = node["reftarget"]
    if node.get("refdomain") != "py" or target.partition(".")[0] not in OTHER_PACKAGES:
        return None
    try:
        pkgutil.resolve_name(target)
    except (AttributeError, ImportError):
        return None
    return content
