# SPDX-License-Identifier: Apache-2.0
"""The documentation site: Sphinx, MyST Markdown, and the furo theme. `make docs` builds it.

Everything that can be generated is generated, by the extensions in `pyvmm_docs`. The site needs
no network: neither to build it nor to read it.
"""

import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent), str(DOCS.parent / "cython_src")]

from pyvmm.version import VERSION  # noqa: E402  (needs the path above)

PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]

project = "pyvmm"
author = "The pyvmm developers"
copyright = author
release = version = VERSION

extensions = [
    "myst_parser",
    "sphinx_copybutton",
    "pyvmm_docs.api_reference",
    "pyvmm_docs.benchmark",
    "pyvmm_docs.bit_layout",
    "pyvmm_docs.command_reference",
    "pyvmm_docs.docstring",
    "pyvmm_docs.event_reference",
    "pyvmm_docs.glossary",
    "pyvmm_docs.locks",
    "pyvmm_docs.qmp_reference",
    "pyvmm_docs.repository_links",
    "pyvmm_docs.rooms",
    "pyvmm_docs.sequence",
    "pyvmm_docs.values",
]
source_suffix = {".md": "markdown"}
nitpicky = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 1  # unless api_markdown makes it a single line
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_fence_as_directive: list[str] = []

repository_url = PROJECT["urls"]["Repository"]

html_theme = "furo"
html_title = f"pyvmm {VERSION}"
html_static_path = ["_static"]
html_css_files = ["pyvmm.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": repository_url,
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_exclude = ".linenos, .gp, .go"  # the prompt and the output of a console
