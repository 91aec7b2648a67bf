# SPDX-License-Identifier: Apache-2.0
"""The directive `api`: sections of the API reference, one for each module that it names.

    ```{api}
    devices.virtio
    devices.virtio.device
    devices.virtio.*
    ```

The last line stands for all modules of the package that the lines above do not name. A section has
the docstring of its module and all its public names (`pyvmm_docs.api_model`) as Markdown
(`pyvmm_docs.api_markdown`), with tables (`pyvmm_docs.api_tables`) and links
(`pyvmm_docs.api_links`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyvmm_docs.api_links import link_code, link_page, link_prose, link_types, outside
from pyvmm_docs.api_markdown import module_markdown
from pyvmm_docs.api_model import Module, read_module
from pyvmm_docs.api_names import ROOT, modules_below
from pyvmm_docs.api_tables import ConstantsDirective, FieldsDirective, RequestsDirective


class ApiDirective(SphinxDirective):
    """Places one section for each module that its content names."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        try:
            return [self._section(name) for name in modules_of(self.content)]
        except ModuleNotFoundError as error:
            raise self.error(str(error)) from None

    def _section(self, name: str) -> nodes.section:
        module = read_module(name)
        self.env.note_dependency(module.namespace.path)
        section = nodes.section(ids=[nodes.make_id(name)], names=[name])
        section += nodes.title("", "", nodes.literal("", name))
        section += self._source(module)
        section += self.parse_text_to_nodes(module_markdown(module))
        for raw in section.findall(nodes.raw):
            raise self.error(f"{name}: a docstring contains HTML: {raw.astext()}")
        link_types(section)
        link_code(section, module)
        link_prose(section, module)
        for block in section.findall(nodes.literal_block):
            block["language"] = "python" if is_python(block.astext()) else "none"
        return section

    def _source(self, module: Module) -> nodes.paragraph:
        """Return a link to the source in the repository."""
        path = module.namespace.path
        implementation = path.with_suffix(".pyx")
        path = (implementation if implementation.exists() else path).relative_to(ROOT)
        link = nodes.reference(
            "", str(path), refuri=f"{self.config.repository_url}/blob/main/{path}"
        )
        return nodes.paragraph("", "Source: ", link, classes=["api-source"])


def modules_of(lines: Iterable[str]) -> list[str]:
    """Return the modules that the lines of a directive `api` name."""
    names: list[str] = []
    for line in lines:
        package = line.removesuffix(".*")
        below = modules_below(package) if package != line else [line]
        names += (name for name in below if name and name not in names)
    return names


def is_python(code: str) -> bool:
    """Return whether `code` is Python; `await` may stand outside a function."""
    try:
        compile(code, "docstring", "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        return False
    return True


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_directive("api", ApiDirective)
    app.add_directive("api-constants", ConstantsDirective)
    app.add_directive("api-fields", FieldsDirective)
    app.add_directive("api-requests", RequestsDirective)
    app.connect("doctree-read", link_page)
    app.connect("missing-reference", outside)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
