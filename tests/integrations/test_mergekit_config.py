"""The config that mergekit writes beside its result reads back as the one that was given to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mergekit", reason="mergekit is not installed (the extra `test` has it)")

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from fuseo1_kernels import merge_checkpoints
from fuseo1_kernels.config.load import as_config
from support.mergekit.common import make_picollama
from support.models import assert_same_state, read_model

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(
    "changes",
    [
        {"merge_method": "ties", "parameters": {"density": [0.3, 0.7], "normalize": 1.0}},
        {"merge_method": "linear", "parameters": {"weight": [{"filter": "mlp", "value": 0.25}]}},
        {"merge_method": "slerp", "sliced": True, "parameters": {"t": [0.0, 0.5]}},
    ],
)
def test_reads_back(changes: dict[str, Any], tmp_path: Path) -> None:
    names = [make_picollama(tmp_path / name) for name in ("base", "left")]
    listed: list[dict[str, Any]] = [{"model": n, "parameters": {"weight": 1.0}} for n in names]
    given: dict[str, Any] = {"base_model": names[0], "dtype": "float32", "models": listed}
    given |= {key: value for key, value in changes.items() if key != "sliced"}
    if "sliced" in changes:
        sources = [{"model": n, "layer_range": [i, i + 1]} for i, n in enumerate(names)]
        given["slices"] = [{"sources": sources, "base_model": given.pop("base_model")}]
        del given["models"]
    run_merge(
        MergeConfiguration.model_validate(given),
        str(tmp_path / "theirs"),
        MergeOptions(quiet=True, copy_tokenizer=False),
    )
    written = tmp_path / "theirs" / "mergekit_config.yml"
    assert "modules:" in written.read_text()
    assert as_config(written).method.name == changes["merge_method"]
    states: list[dict[str, Any]] = []
    for config in (given, written):
        out = tmp_path / f"merged{len(states)}"
        merge_checkpoints(config, out)
        states.append(read_model(out))
    assert_same_state(*states)
