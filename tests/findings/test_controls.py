"""Control ids that exist, and every detector citing only such."""

from __future__ import annotations

import re

import pytest

from mlsecd import plugins
from mlsecd.findings.controls import catalogues, names

PATTERNS = {
    "atlas": r"AML\.T\d{4}(\.\d{3})?",
    "owasp": r"LLM(0[1-9]|10):2025",
    "iso42001": r"A\.\d{1,2}(\.\d){1,2}",
}


def test_names_of_known_ids() -> None:
    assert names(["AML.T0024.002", "LLM10:2025", "A.6.2.8"]) == {
        "AML.T0024.002": "Extract AI Model",
        "LLM10:2025": "Unbounded Consumption",
        "A.6.2.8": "AI system recording of event logs",
    }
    assert list(names(["LLM10:2025", "AML.T0012"])) == ["LLM10:2025", "AML.T0012"]


@pytest.mark.parametrize("wrong", ["AML.T9999", "LLM11:2025", "LLM10", "", "A.99"])
def test_an_unknown_id_is_refused(wrong: str) -> None:
    with pytest.raises(KeyError):
        names(["AML.T0012", wrong])


@pytest.mark.parametrize("framework", sorted(PATTERNS))
def test_ids_look_as_their_framework_writes_them(framework: str) -> None:
    catalogue = catalogues()[framework]
    assert catalogue.names
    for control, name in catalogue.names.items():
        assert re.fullmatch(PATTERNS[framework], control), control
        assert name == name.strip() != ""


def test_every_sub_technique_has_its_technique() -> None:
    """The log cites both."""
    known = catalogues()["atlas"].names
    for control in known:
        assert control.rpartition(".")[0] in {*known, "AML"}


def test_sources_and_licences_are_kept() -> None:
    assert set(catalogues()) == set(PATTERNS)
    assert "Apache-2.0" in catalogues()["atlas"].licence
    assert catalogues()["atlas"].version == "5.6.0"
    assert all(catalogue.source for catalogue in catalogues().values())


@pytest.mark.parametrize("name", sorted(plugins.detectors()))
def test_detectors_cite_controls_that_exist(name: str) -> None:
    detector = plugins.detectors()[name]
    assert names(detector.atlas).keys() <= catalogues()["atlas"].names.keys()
    assert names(detector.owasp).keys() <= catalogues()["owasp"].names.keys()
