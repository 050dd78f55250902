"""The README's generated parts: they say what the cards and claims say, and the page links to nothing that is not there."""

import json
import re

import pytest

from spatialprobes import paths, readme

ROOT = paths.root()
TEXT = (ROOT / "README.md").read_text()


def test_lab_table_is_what_the_cards_say():
    assert readme.between(TEXT, "lab", readme.lab_markdown(ROOT / "data" / "lab")) == TEXT


def test_lab_table_names_the_bars_that_were_missed(tmp_path):
    folder = tmp_path / "lab-llava"
    folder.mkdir()
    groups = {f"{one}.a": {"accuracy": 0.9, "n": 10} for one in readme.CLASSES}
    groups["relation.b"] = {"accuracy": 0.5, "n": 10}
    card = {
        "name": "lab-llava",
        "seed": 0,
        "samples": 1000,
        "minutes": 3.2,
        "accuracy": groups,
        "bars": {"relation.b": 0.95, "2ds.a": 0.9},
    }
    card["norms"] = {"start": {"ratio": 2.0}, "now": {"ratio": 30.04}}
    (folder / "card.json").write_text(json.dumps(card))
    table = readme.lab_markdown(tmp_path)
    assert "| `lab-llava` | 1,000 | 3 | 0.900 | 0.500 | 0.900 | 0.900 | 0.900 | 2.0 → 30.0 |" in table
    assert "lab-llava: relation.b is 0.500, under its bar of 0.95" in table
    assert "2ds.a is" not in table


def test_missing_marks_are_an_error():
    with pytest.raises(ValueError, match=r"README\.md lacks the marks '<!-- claims"):
        readme.between("no marks", "claims", "x")
    assert readme.between(TEXT, "claims", "x").count("<!-- end of claims -->") == 1


def test_every_file_that_the_readme_names_is_there():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert len(links) >= 8
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
    named = re.findall(r"`((?:lib|data|notebooks|papermill_runs)[\w/.]*\.(?:py|yaml|png))`", TEXT)
    assert named and not [name for name in named if not (ROOT / name).exists()]


def test_badges_come_from_the_repository_url():
    import tomllib

    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    place = url.removeprefix("https://github.com/")
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        first = json.loads(notebook.read_text())["cells"][0]["source"]
        expected = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{notebook.name}"
        assert expected in "".join(first) and expected in TEXT
        assert f"git+{url}" in notebook.read_text()
