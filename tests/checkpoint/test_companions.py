"""Everything in a model's folder but weights goes along with the weights, within limits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fuseo1_kernels.checkpoint import companions
from fuseo1_kernels.checkpoint.companions import find_companions, is_tokenizers
from fuseo1_kernels.checkpoint.custom_code import find_code
from fuseo1_kernels.checkpoint.files import is_inner_name
from fuseo1_kernels.checkpoint.identity import MergeIdentity
from fuseo1_kernels.checkpoint.journal import TensorRecord
from fuseo1_kernels.checkpoint.shards import OutputTensor, plan_shards
from fuseo1_kernels.checkpoint.sink import Sink
from fuseo1_kernels.errors import CheckpointError
from support.checkpoint_files import tree, write_json

TOKENIZERS = [
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *(
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "tokenizer.model.v3",
        "spm.model",
    ),
    *("spiece.model", "sentencepiece.bpe.model", "source.spm", "qwen.tiktoken", "tekken.json"),
    *("vocab.bpe", "encoder.json", "normalizer.json", "chat_template.jinja", "chat_template.json"),
    "additional_chat_templates/tool_use.jinja",
]
OTHERS = [
    *("LICENSE", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", "a/b/c.txt"),
    *("2_Dense/config.json", "2_Dense/model.safetensors", "3_Dense/pytorch_model.bin"),
]
LEFT_OUT = [
    *("pytorch_model.bin", "other.safetensors", "model.gguf", "model.onnx", "optimizer.pt"),
    *("training_args.bin", "rng_state_0.pth", "trainer_state.json", "adapter_config.json"),
]
FOLDERS = ["checkpoint-500", "runs", "unet/", "4_Dense/", "onnx", "linked", "pipe.txt", "lost"]
SILENT = [
    *("config.json", "README.md", ".gitattributes", ".git/config", ".env", "a/.hidden"),
    *("model.safetensors.index.json", "mergekit_config.yml", "fuseo1_checksums.json"),
]
CODE = ["modeling_x.py", "setup.py", "a/b.py", "evil.so"]


def test_what_goes_along(tmp_path: Path) -> None:
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    inner = [
        "checkpoint-500/config.json",
        "runs/events",
        "unet/model.safetensors",
        "unet/config.json",
    ]
    inner += ["4_Dense/model.safetensors", "4_Dense/config.json", "onnx/config.json"]
    for name in [*TOKENIZERS, *OTHERS, *LEFT_OUT, *SILENT, *CODE, *inner]:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    os.truncate(model / "4_Dense/model.safetensors", (64 << 20) + 1)
    elsewhere.mkdir()
    (elsewhere / "secret.txt").write_text("")
    (model / "linked").symlink_to(elsewhere)
    os.mkfifo(model / "pipe.txt")
    (model / "lost").symlink_to("nowhere")
    found = find_companions(model)
    assert found.names == sorted([*TOKENIZERS, *OTHERS])
    assert sorted(found.code) == sorted(CODE)
    assert set(found.left_out) == {*LEFT_OUT, *FOLDERS}
    assert [name for name in found.names if is_tokenizers(name)] == sorted(TOKENIZERS)
    assert all(map(is_inner_name, found.names))


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/x", "../x", "a/../../x", "a//b", "a/", "\0"])
def test_names_that_lead_elsewhere(name: str) -> None:
    assert not is_inner_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "vocab.txt", "chat_template.jinja", "special_tokens_map.json"),
        *("generation_config.json", "modules.json", "preprocessor_config.json"),
        *("processor_config.json", "video_preprocessor_config.json", "1_Pooling/config.json"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "pipe", "lost link"])
def test_a_file_that_cannot_be_copied_is_an_error(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if kind == "folder":
        (tmp_path / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("nowhere")
    found = find_companions(tmp_path)
    with pytest.raises(CheckpointError, match=name):
        found.read_into({}, found.names)


def test_a_tokenizer_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").touch()
    os.truncate(tmp_path / "vocab.txt", 3 << 30)
    found = find_companions(tmp_path)
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        found.read_into({}, found.names)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("a.txt", 5), ("b.txt", 11), ("c.txt", 6), ("d.txt", 5)):
        (tmp_path / name).write_bytes(bytes(size))
    deep = tmp_path.joinpath(*["e"] * 30)
    deep.mkdir(parents=True)
    (deep / "deep.txt").write_text("")
    monkeypatch.setattr(companions, "_MOST_BYTES", 10)
    monkeypatch.setattr(companions, "_MOST_BYTES_OF_ALL", 15)
    files: dict[str, bytes] = {}
    found = find_companions(tmp_path)
    found.read_into(files, found.names)
    assert files.keys() == {"a.txt", "c.txt"}
    nested, *too_large = sorted(found.left_out.items(), reverse=True)
    assert "too deep" in nested[1]
    assert too_large == [("d.txt", "more than 4 bytes"), ("b.txt", "more than 10 bytes")]

    monkeypatch.setattr(companions, "_MOST_FILES", 2)
    found = find_companions(tmp_path)
    assert found.names == ["a.txt", "b.txt"]
    assert found.left_out == {"c.txt": "there are more than 2 files"}


def test_code_that_auto_map_names(tmp_path: Path) -> None:
    """And what that imports relatively; nothing that only looks like it."""
    texts = {
        "modeling_x.py": "from .configuration_x import A\nfrom . import (one,\n  two as b)\nimport os",
        "configuration_x.py": "    from .kernels.fast import f  # indented\nfrom ..above import z",
        "kernels/fast.py": "from .common import c\nfrom ..helpers import (\n    h,\n)\n",
        "kernels/common.py": "",
        "helpers.py": "from .modeling_x import A  # in a circle\n",
        "one.py": "",
        "two.py": "import setup\n# from .setup import x\n",
        "tokenization_x.py": "",
        "processing_x.py": "",
        "setup.py": "",
        "above.py": "",
    }
    configs = [
        {"auto_map": {"AutoModel": "modeling_x.M", "AutoModelForCausalLM": "org/repo--setup.S"}},
        {"auto_map": {"AutoTokenizer": ["tokenization_x.T", None]}},
        {"image_processor": {"auto_map": {"AutoProcessor": "processing_x.P"}}},
        {"auto_map": ["setup.S"], "x": {"auto_map": {"y": {"z": 1}, "a": "../setup.S", "b": "os"}}},
    ]
    found = find_code(json.loads(json.dumps(configs)), texts, lambda name: texts[name].encode())
    assert found == sorted(set(texts) - {"setup.py", "above.py"})


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    write_json(tmp_path / "config.json", {})
    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
        find_companions(tmp_path)


def test_folders_in_the_output(tmp_path: Path) -> None:
    """They are written, and what an earlier run left of others is gone."""
    shards = plan_shards([OutputTensor(name, "U8", (2,)) for name in "ab"], 10)

    def sink() -> Sink:
        identity = MergeIdentity(version="1", nonfinite="error", plan="0" * 32, files={})
        return Sink(tmp_path / "out", shards, identity, overwrite=False, inputs=())

    with sink() as stopped:
        stopped.write("a", 0, memoryview(b"aa"))
        stopped.complete({"a": TensorRecord("0" * 32, (), 0)})
        stopped.add_file("left/over.json", b"")
    with sink() as finished:
        for name in "ab":
            finished.write(name, 0, memoryview(b"xx"))
        finished.add_file("1_Pooling/config.json", b"{}")
        finished.publish()
    files = tree(tmp_path / "out")
    assert files.keys() == {"1_Pooling", "1_Pooling/config.json", "model.safetensors"}
    assert files["1_Pooling/config.json"] == b"{}"
