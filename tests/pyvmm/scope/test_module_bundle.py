# SPDX-License-Identifier: Apache-2.0
"""The modules of the page as one script. tests/scope runs the result in a browser."""

from __future__ import annotations

import pytest

from pyvmm.scope.module_bundle import BundleError, bundle

MODULES = {
    "main": 'import * as shapes from "./shapes.js";\nimport { area, side } from "./area.js";\n'
    "await area(shapes.Square);",
    "area": 'import { Square } from "./shapes.js";\n'
    "/** @param {import('./shapes.js').Square} square */\n"
    "export async function area(square) {\n  export_(square);\n}\nexport const side = 1;",
    "shapes": "export class Square {}",
}


def bundled(**modules: str) -> str:
    return bundle("main", {**MODULES, **modules}.__getitem__)


def test_a_module_follows_those_that_it_imports_and_stands_once() -> None:
    assert bundled() == (
        "const modules = {};\n"
        "modules.shapes = await (async () => {\nclass Square {}\nreturn { Square };\n})();\n"
        "modules.area = await (async () => {\nconst { Square } = modules.shapes;\n"
        "/** @param {import('./shapes.js').Square} square */\n"
        "async function area(square) {\n  export_(square);\n}\nconst side = 1;\n"
        "return { area, side };\n})();\n"
        "modules.main = await (async () => {\nconst shapes = modules.shapes;\n"
        "const { area, side } = modules.area;\nawait area(shapes.Square);\nreturn {  };\n})();\n"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export default 1;", "not known: export default"),
        ("export { a };", "not known: export {"),
        ("export let a;", "not known: export let"),
        ('import a from "./area.js";', "not known: import a"),
        ('import { area as a } from "./area.js";', "not known: import { area as"),
        ('import "./area.js";', "not known: import"),
        ('import { area } from "https://example.org/area.js";', "not known: import"),
        ('import { circle } from "./circle.js";', "shapes.js imports circle of circle.js"),
        ('import { area } from "./area.js";', "area.js and shapes.js import each other"),
    ],
)
def test_a_module_that_cannot_be_bundled_is_an_error(line: str, message: str) -> None:
    with pytest.raises(BundleError, match=message.replace("{", "[{]")):
        bundled(shapes=f"{MODULES['shapes']}\n{line}", circle="export class Round {}")
