"""A config that cannot be read, or is not YAML, raises one ConfigError."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuseo1_kernels.config.load import load_config
from fuseo1_kernels.errors import ConfigError, MergeError
from support.config_files import FUSEO1, config

# --- mistakes: the file and its YAML -------------------------------------------------------------


def test_from_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + FUSEO1.encode())
    assert load_config(file) == load_config(str(file)) == config()


def bomb(first: str, level: str) -> str:
    """YAML of a few hundred bytes that stands for 9 ** 11 values."""
    lines = [f"a0: &a0 {first}"]
    for n in range(1, 12):
        lines.append(f"a{n}: &a{n} " + level.format(", ".join([f"*a{n - 1}"] * 9)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping of keys such as merge_method, not nothing"),
        ("# only a comment\n", "not nothing"),
        ("- model: a\n", "must be a mapping"),
        ("merge", "must be a mapping"),
        ("42", "must be a mapping"),
        ("models: [a\nmerge_method: sce\n", "line 2, column"),
        ("models:\n\t- a\n", "line 2, column 1: found character '\\t'"),
        ("a: *nowhere\n", "line 1, column 4: found undefined alias"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1, column 4: could not determine"),
        ("a: \x00\n", "is not YAML"),
        ("a: 2024-13-45\n", "line 1, column 4: '2024-13-45' is no timestamp; put text in quotes"),
        ("a: !!timestamp x\n", "line 1, column 4: 'x' is no timestamp"),
        ("a: !!int ''\n", "line 1, column 4: '' is no int"),
        ("a: !!bool x\n", "line 1, column 4: 'x' is no bool"),
        ("a: " + "9" * 5000, "is no int"),
        ("a: 1" + ":1" * 200 + ".5", "is no float"),
        ('a: "\\UFFFFFFFF"\n', "is not YAML"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: &a {<<: *a}\n", "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        (bomb("[x, x]", "[{}]"), "it has more than 100000 values"),
        (bomb("{x: 1, y: 2}", "{{<<: [{}]}}"), "it has more than 100000 values"),
        ("{}: 1\n", "line 1, column 1: found unhashable key"),
        ("[" * 5000, "nested too deeply"),
        (FUSEO1 + "dtype: float32\n", "line 11, column 1: the key 'dtype' stands here again"),
        ("parameters:\n  a: 1\n  a: 2\n", "(first in line 2)"),
        (FUSEO1 + "on: 1\n", "unknown key True; there are: models"),  # YAML 1.1 reads `on` as true
    ],
)
def test_yaml_mistakes(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(text)
    with pytest.raises(MergeError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"is a directory; give a YAML file or a recipe's name$"):
        load_config(tmp_path)
    (tmp_path / "merge.yaml").write_bytes(b"\x80\x00\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "merge.yaml")
