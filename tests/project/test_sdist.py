# SPDX-License-Identifier: Apache-2.0
"""The sdist: complete enough to build, test and change pyvmm, and described for a package index."""

from __future__ import annotations

import re
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import pyvmm
from tests.project.packages import NATIVE, run
from tests.project.sources import PRODUCT, ROOT, files, name_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
PARSE_README = MarkdownIt("commonmark").enable("table")


@pytest.fixture(scope="session")
def described(unpacked: Path) -> metadata.PackageMetadata:
    """Return the metadata of the sdist."""
    return metadata.PathDistribution(unpacked).metadata


def values(described: metadata.PackageMetadata, field: str) -> list[str]:
    """Return the values of a field that may occur more than once."""
    return described.get_all(field) or []


def links(markdown: str) -> Iterator[str]:
    """Yield the target of each link and picture of a document."""
    for block in PARSE_README.parse(markdown):
        for token in block.children or []:
            if target := token.attrGet("href") or token.attrGet("src"):
                yield str(target)


def test_the_description_has_no_relative_link_or_picture(
    described: metadata.PackageMetadata,
) -> None:
    targets = list(links(described["Description"]))
    assert targets
    assert [each for each in targets if not each.startswith(("https://", "#"))] == []
    assert "<img" not in described["Description"]


def test_each_link_of_the_description_is_a_file_of_this_version(
    described: metadata.PackageMetadata,
) -> None:
    own = [each for each in links(described["Description"]) if each.startswith(REPOSITORY)]
    relative = [each for each in links((ROOT / "README.md").read_text()) if "://" not in each]
    assert len(own) >= len([each for each in relative if not each.startswith("#")])
    known = {name_of(path) for path in files(suffixes=None)}
    for target in own:
        view, tag, path = target.removeprefix(f"{REPOSITORY}/").split("#")[0].split("/", 2)
        assert path in known or any(name.startswith(f"{path}/") for name in known), target
        assert tag == f"v{pyvmm.__version__}"
        assert view == ("raw" if path.endswith(".png") else "blob")


def test_the_version_comes_from_one_place(described: metadata.PackageMetadata) -> None:
    assert described["Version"] == pyvmm.__version__
    assert "version" not in PROJECT


def test_the_metadata_names_both_licences_and_has_their_texts(
    described: metadata.PackageMetadata, unpacked: Path
) -> None:
    assert described["License-Expression"] == "Apache-2.0 AND GPL-2.0-only"
    texts = values(described, "License-File")
    assert {"LICENSE", "LICENSES/GPL-2.0-only.txt"} <= set(texts)
    assert all((unpacked / name).is_file() for name in texts)
    assert not [each for each in values(described, "Classifier") if each.startswith("License")]


def test_the_metadata_names_the_supported_pythons(
    described: metadata.PackageMetadata,
) -> None:
    prefix = "Programming Language :: Python :: 3."
    minors = [each.removeprefix(prefix) for each in values(described, "Classifier")]
    declared = [int(minor) for minor in minors if minor.isdigit()]
    assert declared == list(range(11, 11 + len(declared)))
    assert described["Requires-Python"] == ">=3.11"


def test_every_text_has_the_address_of_the_project_that_the_metadata_has() -> None:
    address = re.compile(r"https://github\.com/[\w-]+/pyvmm\b")
    texts = files(suffixes=(".py", ".toml", ".md", ".yaml", ".yml", ".txt", ".1"))
    found = [(name_of(path), each) for path in texts for each in address.findall(path.read_text())]
    assert ("pyproject.toml", REPOSITORY) in found
    assert [each for each in found if each[1] != REPOSITORY] == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only git knows every file")
def test_the_sdist_has_every_file_of_the_checkout(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {name_of(path) for path in files(suffixes=None)} - packed == set()


def test_the_sdist_has_nothing_that_is_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = archive.getnames()
    built = [name for name in packed if name.endswith((".so", ".pyc", ".o", ".img"))]
    built += [name for name in packed if f"{NATIVE}/" in name and name.endswith(".c")]
    assert built == []


def test_every_native_source_is_a_module_of_the_build() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    modules = {each["sources"][0]: each["name"] for each in listed["ext-modules"]}
    sources = files(*PRODUCT, suffixes=(".pyx",))
    assert modules == {name_of(path): f"pyvmm_native.{path.stem}" for path in sources}


def test_the_tests_run_in_an_unpacked_sdist(unpacked: Path) -> None:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/project/test_words.py")
    run(sys.executable, *command, "tests/native/test_native_ring.py", cwd=unpacked)
