"""README.md of a merged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fuseo1_kernels.checkpoint.model_card import model_card, read_license


def card(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "name": "Fused",
        "recipe_yaml": "merge_method: sce\n",
        "base": "Qwen/Qwen2.5-32B@main",
        "targets": ["Qwen/QwQ-32B-Preview", "/local/model"],
        "method": "sce",
        "dtype": "bfloat16",
        "versions": {"fuseo1-kernels": "0.1.0"},
        "license": {},
    }
    return bytes(model_card(**(arguments | changes))).decode()


def test_model_card() -> None:
    text = card()
    _, front, body = text.split("---\n")
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["merge", "fuseo1-kernels", "sce"],
        "base_model": ["Qwen/Qwen2.5-32B", "Qwen/QwQ-32B-Preview"],
        "base_model_relation": "merge",
    }
    for part in (
        "# Fused",
        "```yaml\nmerge_method: sce\n```\n",
        "- base: `Qwen/Qwen2.5-32B@main`",
        "- merged: `/local/model`",
        "2 models with the method `sce`",
        "bfloat16",
        "- fuseo1-kernels 0.1.0",
    ):
        assert part in body


def test_model_card_of_local_models() -> None:
    front = yaml.safe_load(card(base="./base", targets=["/x"]).split("---\n")[1])
    assert "base_model" not in front


def test_a_recipe_cannot_end_its_fence() -> None:
    assert "````yaml\na: |\n  ```\n````\n" in card(recipe_yaml="a: |\n  ```\n")


@pytest.mark.parametrize(
    ("front", "stated"),
    [
        ("license: apache-2.0\n", {"license": "apache-2.0"}),
        ('license: "mit"\r\nlicense_link: https://x/LICENSE\r\n', {"license": "mit"}),
        (
            "tags:\n- x\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\n",
            {"license": "other", "license_name": "qwen", "license_link": "LICENSE"},
        ),
        ("license: [mit, x]\n", {}),
        ("license: &a {b: *a}\n", {}),
        ("x: |\n  license: mit\n", {}),
        ("", {}),
    ],
)
def test_license(front: str, stated: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(f"---\n{front}---\nlicense: gpl-3.0\n".encode())
    assert read_license(tmp_path) == stated
    written = yaml.safe_load(card(license=stated).split("---\n")[1])
    assert {key: value for key, value in written.items() if "license" in key} == stated


def test_no_license(tmp_path: Path) -> None:
    assert read_license(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"license: mit\n\xff")
    assert read_license(tmp_path) == {}
