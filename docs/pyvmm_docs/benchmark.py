# SPDX-License-Identifier: Apache-2.0
"""The directive `{benchmark}`: plot and tables of the stored results of one benchmark.

The argument is its name in `bench.catalogue`, the results are in bench/results::

    ```{benchmark} encodings
    ```

Both are those of bench/results/README.md. A benchmark that has not been run in full has no
results; then the page says how to get them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from bench.catalogue import CATALOGUE
from bench.report import markdown_lines, tables_of
from bench.results import Result, load

RESULTS = Path(__file__).parents[2] / "bench" / "results"

PLOT = """```{{image}} /../bench/results/{name}.png
:alt: "{title}: the tables have all values."
:class: plot
```
"""


def lines_of(name: str, directory: Path = RESULTS) -> Iterator[str]:
    """Yield the Markdown of the results of a benchmark. Raises ValueError if there is none."""
    if name not in CATALOGUE:
        raise ValueError(f"{name!r} is none of {', '.join(CATALOGUE)}")
    path = directory / f"{name}.json"
    if not path.exists():
        yield f"There are no stored results yet; `pyvmm bench {name}` measures them."
        return
    result = load(path)
    yield f"*{_provenance(result)}*\n"
    yield PLOT.format(name=name, title=result.title)
    for table in tables_of(result):
        yield from markdown_lines(table)


def _provenance(result: Result) -> str:
    where = "the lab, an emulated machine" if result.emulated else result.machine["processor"]
    return f"Taken on {result.taken[:10]} in {where}: compare ratios, not absolute values."


class BenchmarkDirective(SphinxDirective):
    """Shows results; an unknown benchmark fails the build."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the tables."""
        name = self.arguments[0]
        self.env.note_dependency(str(RESULTS / f"{name}.json"))
        try:
            lines = "\n".join(lines_of(name))
        except ValueError as error:
            raise self.error(str(error)) from None
        return self.parse_text_to_nodes(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("benchmark", BenchmarkDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
