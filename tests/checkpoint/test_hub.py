"""From a model's name to a directory: a local one, the hub's cache, or an error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from fuseo1_kernels.checkpoint.adapter import open_adapter
from fuseo1_kernels.checkpoint.companions import find_companions
from fuseo1_kernels.checkpoint.hub import repo_of_snapshot, resolve, split_hub_id
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.errors import CheckpointError
from support.checkpoint_files import TWO, cached_model, safetensors_file, single_model

CONFIG = {"config.json": b'{"num_hidden_layers": 2}'}
SHARD = "model-00001-of-00001.safetensors"
INDEX = {
    "model.safetensors.index.json": json.dumps({"weight_map": dict.fromkeys(TWO, SHARD)}).encode()
}


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    return safetensors_file(tmp_path / "weights", TWO).read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def bytes_of(model: str) -> bytes:
    with open_source(model) as source:
        assert source.name == model
        buffer = bytearray(source.tensors["a"].nbytes)
        source.read_into(source.tensors["a"], 0, memoryview(buffer))
        return bytes(buffer)


@pytest.mark.parametrize(
    ("model", "split"),
    [
        ("org/name", ("org/name", "main")),
        ("Qwen/Qwen2.5-32B@v1.0", ("Qwen/Qwen2.5-32B", "v1.0")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
        ("name", None),
        ("a/b/c", None),
        ("./org/name", None),
        ("../name", None),
        ("/org/name", None),
        ("~/name", None),
        ("org/name@", None),
        ("org/name@../../x", None),
        ("org/na me", None),
        ("", None),
    ],
)
def test_split(model: str, split: tuple[str, str] | None) -> None:
    assert split_hub_id(model) == split


@pytest.mark.parametrize(
    "model", ["nowhere", "./org/name", "/no/such/dir", "org/a--b", "org/name.", "a/" + "b" * 99, ""]
)
def test_neither_directory_nor_hub_id(model: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(model)
    seen = "" if model.startswith("/") else f" (seen from {tmp_path})"
    assert str(caught.value) == (
        f"{model!r}: no such directory{seen}, nor a hub id (org/name or org/name@revision)"
    )


def test_a_name_that_no_file_can_have(cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(File name too long\)"):
        resolve("x" * 5000)


def test_a_directory_wins_over_the_hub(cache: Path, weights: bytes, tmp_path: Path) -> None:
    cached_model(cache, "org/name", {**CONFIG, "model.safetensors": weights})
    assert resolve("org/name") != Path("org/name")
    single_model(tmp_path / "org" / "name")
    assert resolve("org/name") == Path("org/name")


def test_cached_single_file(cache: Path, weights: bytes) -> None:
    snapshot = cached_model(cache, "org/name", {**CONFIG, "model.safetensors": weights})
    assert resolve("org/name") == snapshot
    assert bytes_of("org/name") == TWO["a"][2]


def test_cached_shards_are_links_out_of_the_snapshot(cache: Path, weights: bytes) -> None:
    cached_model(cache, "org/name", {**CONFIG, **INDEX, SHARD: weights})
    assert bytes_of("org/name") == TWO["a"][2]


def test_cached_shards_in_the_store_that_models_share(cache: Path, weights: bytes) -> None:
    """huggingface_hub 2: models--*/blobs link on to blobs/ of the whole cache."""
    snapshot = cached_model(cache, "org/name", {**INDEX, SHARD: weights})
    blob = (snapshot / SHARD).resolve()
    shared = cache / "blobs" / "ab" / "abcd"
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert bytes_of("org/name") == TWO["a"][2]


def test_a_cached_shard_may_not_be_another_models(cache: Path, weights: bytes) -> None:
    other = cached_model(cache, "org/other", {SHARD: weights})
    snapshot = cached_model(cache, "org/name", INDEX)
    (snapshot / SHARD).symlink_to(other / SHARD)
    with pytest.raises(CheckpointError, match="outside of the model's directory"):
        open_source("org/name")


def test_cached_revision(cache: Path, weights: bytes) -> None:
    cached_model(cache, "org/name", {"model.safetensors": weights}, revision="v2")
    assert bytes_of("org/name@v2") == TWO["a"][2]
    with pytest.raises(CheckpointError, match="holds nothing of revision 'main'"):
        resolve("org/name")


def test_offline_and_not_cached(cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve("org/name")
    assert str(caught.value) == (
        f"org/name: no such directory (seen from {cache.parent}), and not in the hub cache {cache}, "
        "which holds nothing of revision 'main'; offline (HF_HUB_OFFLINE is set): go online, or run "
        "`hf download org/name --revision main` where you are online"
    )


@pytest.mark.parametrize("has_config", [False, True])
def test_not_cached_where_nothing_is_downloaded(
    has_config: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if has_config:
        cached_model(cache, "org/name", CONFIG)
    with pytest.raises(CheckpointError) as caught:
        resolve("org/name", download=False)
    message = str(caught.value)
    assert f"{'not whole' if has_config else 'not'} in the hub cache {cache}" in message
    assert message.endswith(
        "; dry runs and checks download nothing: run the merge itself, or "
        "`hf download org/name --revision main`, first (or mend the path)"
    )
    assert "online" not in message


def test_offline_and_no_weights_cached(cache: Path) -> None:
    cached_model(cache, "org/name", CONFIG)
    with pytest.raises(CheckpointError, match=r"lacks its weights \(model.safetensors or"):
        resolve("org/name")


def test_offline_and_a_shard_not_cached(cache: Path, weights: bytes) -> None:
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = {"weight_map": dict(zip("abc", shards, strict=True))}
    files = {"model.safetensors.index.json": json.dumps(index).encode(), shards[1]: weights}
    cached_model(cache, "org/name", files)
    with pytest.raises(CheckpointError, match=f"{cache}: .* lacks {shards[0]}, {shards[2]};"):
        resolve("org/name")


# --- online, against a hub that is simulated ------------------------------------------------


class Hub:
    """Simulates list_repo_tree and snapshot_download: gives the files that match, records what was asked."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        self.folder, self.files = folder, files
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []
        self.bars_disabled: set[bool] = set()
        self.sizes: dict[str, int] = {}
        self.error: Exception | None = None

    def tree(self, repo: str, *, recursive: bool, revision: str) -> Iterator[Any]:
        assert recursive
        if self.error:
            raise self.error
        for name, data in self.files.items():
            size = self.sizes.get(name, len(data))
            yield huggingface_hub.hf_api.RepoFile(path=name, size=size, oid="0")
        yield huggingface_hub.hf_api.RepoFolder(path="1_Pooling", oid="0")

    def __call__(self, repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        if self.error:
            raise self.error
        self.asked.append((repo, revision, tuple(allow_patterns)))
        self.bars_disabled.add(huggingface_hub.utils.are_progress_bars_disabled())
        self.folder.mkdir(exist_ok=True)
        for name in huggingface_hub.utils.filter_repo_objects(
            self.files, allow_patterns=allow_patterns
        ):
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_bytes(self.files[name])
        return str(self.folder)


@pytest.fixture
def hub(cache: Path, tmp_path: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Hub:
    simulated = Hub(tmp_path / "snapshot", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", simulated)
    monkeypatch.setattr(huggingface_hub, "list_repo_tree", simulated.tree)
    return simulated


MORE = {"tokenizer.json": b"{}", "merges.txt": b"", "chat_template.jinja": b"", "README.md": b""}
MORE |= {"modeling_x.py": b"", "1_Pooling/config.json": b"{}", "LICENSE": b"", "qwen.tiktoken": b""}
MORE |= {"2_Dense/config.json": b"{}", "2_Dense/model.safetensors": b"", "preprocessor.yaml": b""}
MORE |= {"a[0]*.txt": b"", "assets/logo.png": b"", "modules.json": b"[]", "Notice": b""}
USELESS = {"pytorch_model.bin": b"", "consolidated.safetensors": b"", "onnx/config.json": b""}
USELESS |= {".gitattributes": b"", "a00.bin": b"", "transformer/model.safetensors": b""}
USELESS |= {"transformer/config.json": b"{}", "checkpoint-5/config.json": b"{}"}
LARGE = {"movie.mp4": b"", "3_Dense/model.safetensors": b"", "3_Dense/config.json": b"{}"}


@pytest.mark.parametrize("sharded", [False, True])
def test_download(sharded: bool, hub: Hub, weights: bytes) -> None:
    """The hub gives the files that go along from a local folder, and those that are read besides."""
    model: dict[str, Any] = {**INDEX, SHARD: weights} if sharded else {"model.safetensors": weights}
    hub.files = CONFIG | MORE | USELESS | LARGE | model
    hub.sizes = dict.fromkeys(LARGE, (64 << 20) + 1)
    assert bytes_of("org/name@v2") == TWO["a"][2]
    got = {str(file.relative_to(hub.folder)) for file in hub.folder.rglob("*") if file.is_file()}
    assert got == {*CONFIG, *MORE, *model}
    found = find_companions(hub.folder)
    assert {*found.names, *found.code, "config.json", "README.md"} == {*CONFIG, *MORE}
    assert {asked[:2] for asked in hub.asked} == {("org/name", "v2")}


def test_download_of_torch_files_where_there_are_no_others(hub: Hub) -> None:
    index = {"weight_map": {"a": "pytorch_model-1.bin"}}
    hub.files = {
        "pytorch_model.bin.index.json": json.dumps(index).encode(),
        "pytorch_model-1.bin": b"x",
        "other.bin": b"",
    }
    folder = resolve("org/name")
    assert {file.name for file in folder.iterdir()} == set(hub.files) - {"other.bin"}
    hub.files["model.safetensors"] = b"better"
    assert (resolve("org/name") / "model.safetensors").read_bytes() == b"better"


def test_download_of_a_repository_without_weights(hub: Hub) -> None:
    hub.files = dict(CONFIG)
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_source("org/name")


def test_progress_bars_are_left_as_they_were(hub: Hub, weights: bytes) -> None:
    hub.files = {"model.safetensors": weights}
    resolve("org/name", progress=False)
    assert hub.bars_disabled == {True}
    assert not huggingface_hub.utils.are_progress_bars_disabled()
    hub.bars_disabled.clear()
    resolve("org/name", progress=True)
    assert hub.bars_disabled == {False}


def test_a_hub_that_is_out_of_reach(hub: Hub, cache: Path, weights: bytes) -> None:
    """A model that is whole in the cache is taken."""
    hub.error = ConnectionError("no route to host")
    snapshot = cached_model(cache, "org/name", {**CONFIG, "model.safetensors": weights})
    assert resolve("org/name") == snapshot


def test_the_hub_refuses(hub: Hub) -> None:
    hub.error = ConnectionError("no route to host")
    with pytest.raises(CheckpointError, match=r"no such directory \(seen from .* no route to host"):
        resolve("org/name")


def test_a_snapshot_tells_its_model(cache: Path, tmp_path: Path) -> None:
    assert repo_of_snapshot(cached_model(cache, "org/some--name", CONFIG)) is None  # no hub id
    assert repo_of_snapshot(cached_model(cache, "org/name", CONFIG)) == "org/name"
    assert repo_of_snapshot(tmp_path) is None


# --- adapters ---------------------------------------------------------------------------------


def adapter_files(ending: str, weights: bytes) -> dict[str, bytes]:
    return {"adapter_config.json": b'{"peft_type": "LORA"}', f"adapter_model.{ending}": weights}


def test_a_cached_adapter(cache: Path, weights: bytes) -> None:
    snapshot = cached_model(cache, "org/lora", adapter_files("safetensors", weights))
    assert resolve("org/lora", adapter=True) == snapshot
    with pytest.raises(CheckpointError, match="PEFT's names begin with"):  # its header was read
        open_adapter("org/lora")
    cached_model(cache, "org/bare", {"adapter_config.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"lacks its weights \(adapter_model.safetensors"):
        resolve("org/bare", adapter=True)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_download_of_an_adapter(ending: str, hub: Hub, weights: bytes) -> None:
    wanted = {**adapter_files(ending, weights), "README.md": b""}
    hub.files = {**wanted, **CONFIG, "tokenizer.json": b"{}", "training_args.bin": b""}
    folder = resolve("org/lora", adapter=True)
    assert {file.name for file in folder.iterdir()} == wanted.keys()
