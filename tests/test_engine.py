"""Whole merges: the same bits as the in-memory function, whatever the files, threads and memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from models import (
    LAYERS,
    TEMPLATE,
    VOCAB,
    Family,
    State,
    assert_same_state,
    base_state,
    make_family,
    merge_json,
    merged,
    model_config,
    read_model,
    spawn,
    tokenizer_files,
    tokenizer_json,
    tuned,
    weights,
    write_model,
)
from tensors import BF16, DTYPES, FP16, FP32, ISAS

from fuseo1_kernels import MergeError, MergeResult, _cpu, engine, merge_checkpoints
from fuseo1_kernels.checkpoint.source import Source

MIB = 1 << 20


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return make_family(tmp_path)


def merge(family: Family, out: str = "results/merged", **options: Any) -> MergeResult:
    return merge_checkpoints(family.config, family.home / out, **options)


# --- the same bits as merge_tensors ------------------------------------------------------


@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
@pytest.mark.parametrize("select_topk", [1.0, 0.5, 0.1, 0.0])
def test_equals_the_in_memory_function(select_topk: float, variant: str, family: Family) -> None:
    parameters = {"select_topk": select_topk, "variant": variant}
    family.configure(parameters=parameters)
    merge(family)
    assert_same_state(read_model(family.out), family.expected(**parameters))


@pytest.mark.parametrize("select_topk", [1.0, 0.3])
def test_equals_the_reference_backend(select_topk: float, family: Family) -> None:
    family.configure(parameters={"select_topk": select_topk})
    assert merge(family, "cpu", backend="cpu").backend.startswith("cpu: ")
    assert merge(family, "reference", backend="reference").backend.startswith("reference: ")
    assert weights(family.home / "cpu") == weights(family.home / "reference")


def test_auto_is_the_cpu_backend(family: Family) -> None:
    assert merge(family).backend.startswith("cpu: ")


@pytest.mark.parametrize("targets", [1, 2, 5])
def test_any_number_of_targets(targets: int, tmp_path: Path) -> None:
    base = base_state(layers=1)
    states = [base, *(tuned(base, i + 1) for i in range(targets))]
    family = make_family(tmp_path, states)
    family.configure(parameters={"select_topk": 0.5})
    result = merge(family)
    assert_same_state(read_model(family.out), family.expected(select_topk=0.5))
    assert list(result.energy_share) == [str(family.target(i + 1)) for i in range(targets)]
    # One model has no variance, so nothing is selected.
    assert sum(result.energy_share.values()) == pytest.approx(1.0 if targets > 1 else 0.0)


def test_identical_models_give_the_base(tmp_path: Path) -> None:
    base = base_state(layers=1)
    family = make_family(tmp_path, [base, base, base])
    result = merge(family)
    assert_same_state(read_model(family.out), base)
    assert set(result.energy_share.values()) == {0.0}


def test_mixed_dtypes_across_models(tmp_path: Path) -> None:
    base = base_state(FP32, layers=1)
    states = [{n: t.to(BF16) for n, t in base.items()}, tuned(base, 1, FP16), tuned(base, 2, FP32)]
    family = make_family(tmp_path, states)
    family.configure(parameters={"select_topk": 0.5})
    merge(family, "promoted")
    assert_same_state(read_model(family.home / "promoted"), family.expected(select_topk=0.5))
    assert {t.dtype for t in read_model(family.home / "promoted").values()} == {FP32}


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_dtype(dtype: torch.dtype, key: str, family: Family) -> None:
    name = str(dtype).removeprefix("torch.")
    family.configure(**{key: name})
    merge(family)
    expected = {n: merged(family.states, n, out_dtype=dtype) for n in family.states[0]}
    assert_same_state(read_model(family.out), expected)
    config = json.loads((family.out / "config.json").read_text())
    assert config == model_config(dtype)


def test_out_dtype_wins_over_dtype(family: Family) -> None:
    family.configure(dtype="float16", out_dtype="float32")
    merge(family)
    expected = {n: merged(family.states, n, out_dtype=FP32) for n in family.states[0]}
    assert_same_state(read_model(family.out), expected)


@pytest.mark.parametrize(
    "state",
    [
        {"empty": torch.empty(0, 5), "scalar": torch.tensor(2.0), "one": torch.ones(1)},
        {"w": torch.ones(3, 0), "model.layers.0.w": torch.ones(2, 2, 2, 2)},
        {"nothing": torch.empty(0)},
    ],
)
def test_odd_shapes(state: State, tmp_path: Path) -> None:
    family = make_family(tmp_path, [state, tuned(state, 1), tuned(state, 2)])
    family.configure(parameters={"select_topk": 0.5})
    merge(family)
    assert_same_state(read_model(family.out), family.expected(select_topk=0.5))


# --- parameters per tensor ---------------------------------------------------------------


def test_gradients_and_filters(family: Family) -> None:
    filters = [
        {"filter": "mlp", "value": [0.1, 0.9]},
        {"filter": "self_attn", "value": 0.25},
        {"filter": "norm", "value": 0.0},
        {"value": [0.75, 1.0]},
    ]
    family.configure(parameters={"select_topk": filters, "variant": [{"value": "mergekit"}]})
    merge(family)
    assert LAYERS == 3
    mlp = {0: 0.1, 1: 0.5 * 0.1 + 0.5 * 0.9, 2: 0.9}

    def topk(name: str) -> float:
        if "mlp" in name:
            return mlp[int(name.split(".")[2])]
        return 0.25 if "self_attn" in name else 0.0 if "norm" in name else 0.75

    expected = {
        n: merged(family.states, n, parameters={"select_topk": topk(n), "variant": "mergekit"})
        for n in family.states[0]
    }
    assert_same_state(read_model(family.out), expected)


def test_slices(family: Family) -> None:
    base, left, right = str(family.base), str(family.target(1)), str(family.target(2))

    def part(topk: object, *sources: tuple[str, int, int]) -> dict[str, Any]:
        listed = [{"model": m, "layer_range": [a, b]} for m, a, b in sources]
        return {"sources": listed, "parameters": {"select_topk": topk}}

    family.configure(
        models=...,
        slices=[
            part([0.2, 0.8], (base, 0, 2), (left, 1, 3)),
            part([{"filter": "mlp", "value": 0.1}], (base, 1, 3), (right, 1, 3), (left, 0, 2)),
        ],
        parameters={"select_topk": 0.6},
    )
    result = merge(family)
    b, t1, t2 = family.states
    expected = {}

    def put(name: str, topk: float, *parts: tuple[State, str]) -> None:
        states = [{name: state[part]} for state, part in parts]
        expected[name] = merged(states, name, parameters={"select_topk": topk})

    for name in b:
        if ".layers." not in name:
            first = "embed" in name
            put(
                name, 0.2 if first else 0.6, (b, name), *([] if first else [(t2, name)]), (t1, name)
            )
    for name in b:
        if ".layers.0." in name:
            after = name.split(".layers.0.")[1]

            def layer(i: int, after: str = after) -> str:
                return f"model.layers.{i}.{after}"

            for i, topk in ((0, 0.2), (1, 0.8)):
                put(layer(i), topk, (b, layer(i)), (t1, layer(i + 1)))
            for i in (0, 1):
                topk = 0.1 if "mlp" in name else 0.6
                put(layer(i + 2), topk, (b, layer(i + 1)), (t2, layer(i + 1)), (t1, layer(i)))
    assert_same_state(read_model(family.out), expected)
    config = json.loads((family.out / "config.json").read_text())
    assert config == model_config(num_hidden_layers=4)
    assert set(result.energy_share) == {left, right}


# --- kinds of files ----------------------------------------------------------------------


@pytest.mark.parametrize("torch_bin", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_input_files(shards: int, torch_bin: bool, family: Family, tmp_path: Path) -> None:
    merge(family)
    other = make_family(tmp_path / "other", family.states, shards=shards, torch_bin=torch_bin)
    merge(other)
    assert_same_state(read_model(other.out), read_model(family.out))
    if shards == 1 and not torch_bin:
        assert weights(other.out) == weights(family.out)


def test_models_in_different_formats(family: Family, tmp_path: Path) -> None:
    base, left, right = family.states
    other = Family(tmp_path / "other", family.states, tmp_path / "other.yaml")
    write_model(other.base, base, shards=2)
    write_model(other.target(1), left, torch_bin=True)
    write_model(other.target(2), right)
    other.configure()
    merge(other)
    merge(family)
    assert_same_state(read_model(other.out), read_model(family.out))


def test_output_shards(family: Family) -> None:
    merge(family)
    size = 20_000
    result = merge(family, "sharded", shard_size=size)
    sharded = family.home / "sharded"
    assert len(result.shards) > 3
    assert result.shards == tuple(sorted(p.name for p in sharded.glob("*.safetensors")))
    assert_same_state(read_model(sharded), read_model(family.out))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    total = sum(t.nbytes for t in family.states[0].values())
    assert index["metadata"] == {"total_size": total}
    assert set(index["weight_map"].values()) == set(result.shards)
    for name in result.shards:
        assert (sharded / name).stat().st_size < size + 5_000  # the header is not counted
    assert not (family.out / "model.safetensors.index.json").exists()


# --- the same bytes, however it is run ---------------------------------------------------


@pytest.mark.parametrize("select_topk", [1.0, 0.1])
def test_threads_and_runs(select_topk: float, family: Family) -> None:
    family.configure(parameters={"select_topk": select_topk})
    found = []
    for number, threads in enumerate((1, 2, 3, None, 3)):
        merge(family, f"out{number}", threads=threads, shard_size=30_000)
        found.append(weights(family.home / f"out{number}"))
    assert all(files == found[0] for files in found)
    everything = [
        {p.name: p.read_bytes() for p in (family.home / f"out{n}").iterdir()} for n in (0, 4)
    ]
    for files, name in zip(everything, ("out0", "out4"), strict=True):
        title = f"# {name}\n".encode()
        assert title in files["README.md"]
        files["README.md"] = files["README.md"].replace(title, b"")
        recorded = json.loads(files["fuseo1_checksums.json"])
        del recorded["files"]["README.md"]
        files["fuseo1_checksums.json"] = json.dumps(recorded).encode()
    assert everything[0] == everything[1]


LARGE = 1280, 1024  # in bf16, 2.6 MB a model: more than the least memory holds


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """Tensors that do not fit into a worker's share: random deltas, and two of many ties."""
    g = torch.Generator().manual_seed(5)
    base = {
        "model.embed_tokens.weight": torch.randn(LARGE, generator=g) * 0.02,
        "model.layers.0.mlp.up_proj.weight": torch.randn(LARGE, generator=g) * 0.02,
        "model.layers.0.mlp.down_proj.weight": torch.zeros(LARGE),
        "model.norm.weight": torch.ones(1024),
    }
    states = [{n: t.to(BF16) for n, t in base.items()}, *(tuned(base, i, BF16) for i in (1, 2, 3))]
    for number, state in enumerate(states[1:], start=1):
        state["model.layers.0.mlp.down_proj.weight"] = torch.full(LARGE, number / 64, dtype=BF16)
    yield make_family(tmp_path_factory.mktemp("large"), states)


@pytest.mark.parametrize("way", ["cached", "read ahead", "direct"])
@pytest.mark.parametrize("select_topk", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
def test_any_memory(
    variant: str, select_topk: float, way: str, large: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "is_cached", lambda self, info: way == "cached")
    if way == "direct":
        monkeypatch.setattr(engine, "free_memory", lambda: 0)
    large.configure(parameters={"select_topk": select_topk, "variant": variant})
    expected = large.expected(select_topk=select_topk, variant=variant)
    first = None
    twice = 2 * 8 * sum(t.numel() for t in large.states[0].values())
    for max_memory, threads in ((512, 2), (8, 1), (8, 3), (9, 2), (13, 1), (60, 3)):
        out = f"{variant}-{select_topk}-{way}-{max_memory}-{threads}"
        result = merge(large, out, max_memory=max_memory * MIB, threads=threads)
        files = weights(large.home / out)
        if first is None:
            assert_same_state(read_model(large.home / out), expected)
            first = files
            assert result.exact_path == 0
        assert files == first, (max_memory, threads)
        # Once for the survey, once for the fuse; an exact path needs more.
        assert (result.bytes_read > twice) if result.exact_path else (result.bytes_read == twice)
        if max_memory == 8 and select_topk < 1:
            # Its candidates are all tied, more than the survey may keep.
            assert result.exact_path >= 1


def test_the_exact_path_with_the_reference_backend(large: Family) -> None:
    large.configure(parameters={"select_topk": 0.5})
    merge(large, "reference", backend="reference", max_memory=32 * MIB)
    merge(large, "cpu", max_memory=8 * MIB)
    assert weights(large.home / "reference") == weights(large.home / "cpu")


@pytest.mark.parametrize("cached", [True, False])
def test_memory_is_bounded(cached: bool, large: Family) -> None:
    """Memory that no file backs, above what a merge of nothing needs, stays near --max-memory."""
    large.configure(parameters={"select_topk": 0.1})
    code = (
        "import re, sys, threading, time\n"
        "from fuseo1_kernels.merge import main\n"
        "from fuseo1_kernels import engine\n"
        "from fuseo1_kernels.checkpoint.source import Source\n"
        f"Source.is_cached = lambda self, info: {cached}\n"
        "def anonymous():\n"
        "    text = open('/proc/self/status').read()\n"
        "    return sum(map(int, re.findall(r'Rss(?:Anon|Shmem):\\s+(\\d+)', text))) * 1024\n"
        "before, peak, run = anonymous(), [0], engine._run\n"
        "def watch():\n"
        "    while True:\n"
        "        peak[0] = max(peak[0], anonymous())\n"
        "        time.sleep(0.001)\n"
        "def watched(*args):\n"
        "    global before\n"
        "    before = anonymous()\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
        "    return run(*args)\n"
        "engine._run = watched\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(peak[0] - before)\n"
    )
    out = large.home / f"bounded-{cached}"
    argv = ["-c", code, large.config, out, "--quiet", "--max-memory", "10MiB", "--threads", "2"]
    ran = spawn(*argv)
    assert ran.code == 0, ran.err
    assert int(ran.out) < 14 * MIB


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets(isa: str, large: Family) -> None:
    if isa not in _cpu.available_isas():
        pytest.skip(f"this machine or build has no {isa} kernels")
    large.configure(parameters={"select_topk": 0.3})
    merge(large, f"default-{isa}")
    out = large.home / f"forced-{isa}"
    ran = spawn(
        *("-m", "fuseo1_kernels.merge", large.config, out, "--json", "--quiet"),
        env={"FUSEO1_ISA": isa},
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["backend"].startswith(f"cpu: {isa} kernels")
    assert weights(out) == weights(large.home / f"default-{isa}")


def test_hash_seeds(family: Family) -> None:
    for seed in ("1", "2"):
        out = family.home / f"seed{seed}" / "merged"
        argv = ["-m", "fuseo1_kernels.merge", family.config, out, "--quiet", "--shard-size", "20KB"]
        assert spawn(*argv, env={"PYTHONHASHSEED": seed}).code == 0
    first, second = family.home / "seed1" / "merged", family.home / "seed2" / "merged"
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {
        p.name: p.read_bytes() for p in second.iterdir()
    }


# --- NaN, infinity, overflow -------------------------------------------------------------


def spoil(family: Family, model: int, name: str, values: dict[int, float]) -> None:
    for place, value in values.items():
        family.states[model][name].view(-1)[place] = value
    path = family.target(model) if model else family.base
    write_model(path, family.states[model])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("model", [0, 2])
def test_nonfinite_is_an_error_that_counts(model: int, backend: str, family: Family) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    spoil(family, model, name, {0: float("nan"), 70: float("inf"), 2000: float("-inf")})
    path = family.target(model) if model else family.base
    with pytest.raises(MergeError) as caught:
        merge(family, backend=backend)
    text = str(caught.value)
    assert str(path) in text and name in text and "3 NaN or infinite" in text
    assert "--nonfinite propagate" in text
    assert not family.out.parent.exists()


@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
@pytest.mark.parametrize("select_topk", [1.0, 0.4])
def test_nonfinite_propagates(select_topk: float, variant: str, family: Family) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    spoil(family, 0, name, {5: float("nan")})
    spoil(family, 2, name, {0: float("nan"), 70: float("inf")})
    parameters = {"select_topk": select_topk, "variant": variant}
    family.configure(parameters=parameters)
    merge(family, nonfinite="propagate")
    found = read_model(family.out)
    expected = {
        n: merged(family.states, n, parameters=parameters, nonfinite="propagate")
        for n in family.states[0]
    }
    assert_same_state(found, expected)
    assert found[name].isnan().nonzero().tolist() == [[0, 0], [0, 5], [2, 6]]


def test_nonfinite_found_in_a_tensor_that_is_read_in_chunks(large: Family, tmp_path: Path) -> None:
    base, left, *_ = large.states
    name = "model.embed_tokens.weight"
    bad = {n: t.clone() for n, t in left.items()}
    bad[name][-1, -1] = float("inf")
    family = make_family(tmp_path, [base, bad])
    with pytest.raises(MergeError, match=rf"target1, tensor {name}: 1 NaN or infinite"):
        merge(family, max_memory=8 * MIB)
    assert not family.out.parent.exists()
    merge(family, max_memory=8 * MIB, nonfinite="propagate")
    assert read_model(family.out)[name].isnan().sum() == 1


def test_overflow_of_the_output_dtype(tmp_path: Path) -> None:
    base = {"w": torch.full((300,), 60000.0)}
    target = {"w": base["w"].clone()}
    target["w"][7] = 70000.0
    family = make_family(tmp_path, [base, target])
    family.configure(out_dtype="float16")
    with pytest.raises(MergeError, match=r"tensor w: 1 merged elements overflow float16"):
        merge(family)
    assert not family.out.parent.exists()
    merge(family, nonfinite="propagate")
    assert read_model(family.out)["w"].isinf().nonzero().tolist() == [[7]]


# --- embeddings of different sizes -------------------------------------------------------


@pytest.mark.parametrize("rows", [(VOCAB, VOCAB - 6, VOCAB - 2), (VOCAB - 6, VOCAB, VOCAB)])
def test_crop_embeddings(rows: tuple[int, ...], tmp_path: Path) -> None:
    whole = base_state(layers=1)
    states = [whole, tuned(whole, 1), tuned(whole, 2)]
    embeddings = ("model.embed_tokens.weight", "lm_head.weight")
    for state, count in zip(states, rows, strict=True):
        state |= {n: state[n][:count].clone() for n in embeddings}
    family = make_family(tmp_path, states)
    for number, count in enumerate(rows):
        path = family.target(number) if number else family.base
        write_model(path, states[number], config=model_config(vocab_size=count))
    family.configure(parameters={"select_topk": 0.5})

    with pytest.raises(MergeError, match="--crop-embeddings") as caught:
        merge(family)
    assert all(f"tensor {n}: vocabulary sizes differ" in str(caught.value) for n in embeddings)
    merge(family, crop_embeddings=True)
    least = min(rows)
    sliced = [{n: t[:least] if n in embeddings else t for n, t in s.items()} for s in states]
    expected = {n: merged(sliced, n, parameters={"select_topk": 0.5}) for n in whole}
    assert_same_state(read_model(family.out), expected)
    config = json.loads((family.out / "config.json").read_text())
    assert config == model_config(vocab_size=least)


def test_crop_embeddings_of_equal_sizes_changes_nothing(family: Family) -> None:
    merge(family)
    merge(family, "cropped", crop_embeddings=True)
    for name in ("model.safetensors", "config.json"):
        assert (family.out / name).read_bytes() == (family.home / "cropped" / name).read_bytes()


# --- what goes along ---------------------------------------------------------------------


def test_files_beside_the_weights(family: Family) -> None:
    (family.base / "generation_config.json").write_text('{"do_sample": true}')
    (family.base / "notes.txt").write_text("not copied")
    merge(family)
    assert sorted(p.name for p in family.out.iterdir()) == [
        "README.md",
        "config.json",
        "fuseo1_checksums.json",
        "generation_config.json",
        "mergekit_config.yml",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name, content in tokenizer_files().items():
        assert (family.out / name).read_bytes() == content
    assert (family.out / "generation_config.json").read_text() == '{"do_sample": true}'


def test_model_card(family: Family) -> None:
    family.configure(parameters={"select_topk": 0.5}, dtype="float32")
    merge(family)
    card = (family.out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert {"merge", "sce"} <= set(front["tags"])
    assert "# merged\n" in card
    for path in (family.base, family.target(1), family.target(2)):
        assert str(path) in card
    recipe = card.split("```yaml\n")[1].split("```")[0]
    assert recipe == (family.out / "mergekit_config.yml").read_text()
    from fuseo1_kernels import __version__

    assert f"fuseo1-kernels {__version__}" in card
    assert "float32" in card


def test_the_config_that_went_along_makes_the_same_model(family: Family) -> None:
    family.configure(
        parameters={"select_topk": [{"filter": "mlp", "value": [0.2, 0.7]}, {"value": 1.0}]},
        dtype="float32",
        tokenizer_files={"model": str(family.target(1)), "overrides": {"add_bos_token": False}},
        chat_template="{{ messages }}",
    )
    merge(family)
    again = family.home / "again" / "merged"
    merge_checkpoints(family.out / "mergekit_config.yml", again)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in family.out.iterdir()
    }


def test_the_config_as_a_mapping(family: Family) -> None:
    merge(family)
    merge_checkpoints(yaml.safe_load(family.config.read_text()), family.home / "other")
    assert weights(family.out) == weights(family.home / "other")


@pytest.mark.parametrize("source", ["base", "target1"])
def test_tokenizer_source(source: str, family: Family) -> None:
    write_model(family.target(1), family.states[1], tokenizer=tokenizer_files("{{ other }}"))
    name = "base" if source == "base" else str(family.target(1))
    family.configure(tokenizer_source=name)
    merge(family)
    copied = json.loads((family.out / "tokenizer_config.json").read_text())
    assert copied["chat_template"] == (TEMPLATE if source == "base" else "{{ other }}")


def test_tokenizer_source_of_other_ids(family: Family) -> None:
    files = tokenizer_files() | {"tokenizer.json": tokenizer_json(special=("<a>", "<b>", "<c>"))}
    write_model(family.target(1), family.states[1], tokenizer=files)
    family.configure(tokenizer_source="base")
    merge(family)  # other tokens under the same ids: no token has two ids
    swapped = tokenizer_json(special=("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    files["tokenizer.json"] = swapped
    write_model(family.target(1), family.states[1], tokenizer=files)
    with pytest.raises(MergeError, match=r"token '<\|.*has id .*tokenizer_files"):
        merge(family, "other")
    family.configure(tokenizer_files={"model": str(family.target(1))})
    merge(family, "other")
    assert (family.home / "other" / "tokenizer.json").read_bytes() == swapped
    assert weights(family.home / "other") == weights(family.out)  # no row is moved


def test_tokenizer_files_of_a_model_that_is_not_merged(family: Family) -> None:
    lender = family.home / "lender"
    lender.mkdir()
    files = tokenizer_files("{{ lent }}", add_bos_token=True)
    for name, content in files.items():
        (lender / name).write_bytes(content)
    family.configure(tokenizer_files={"model": str(lender), "overrides": {"add_bos_token": False}})
    merge(family)
    assert (family.out / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    copied = json.loads((family.out / "tokenizer_config.json").read_text())
    assert copied == json.loads(files["tokenizer_config.json"]) | {"add_bos_token": False}


def test_literal_chat_template(family: Family) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    family.configure(chat_template=template)
    merge(family)
    copied = json.loads((family.out / "tokenizer_config.json").read_text())
    assert copied["chat_template"] == template
    assert (family.out / "chat_template.jinja").read_text() == template


def test_no_tokenizer(family: Family) -> None:
    merge(family, copy_tokenizer=False)
    assert not list(family.out.glob("tokenizer*"))


# --- what is told ------------------------------------------------------------------------


class Recorder:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.closed = 0

    def start(self, title: str, total_bytes: int) -> None:
        self.total = total_bytes

    def advance(self, nbytes: int) -> None:
        assert nbytes >= 0
        self.done += nbytes

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("max_memory", [512, 8])
def test_progress_ends_where_it_said(max_memory: int, large: Family) -> None:
    large.configure(parameters={"select_topk": 0.1})
    progress = Recorder()
    merge(large, f"told{max_memory}", max_memory=max_memory * MIB, progress=progress, threads=1)
    elements = sum(t.numel() for t in large.states[0].values())
    assert progress.total == progress.done == elements * 2 * 5
    assert progress.closed == 1


def test_progress_is_closed_when_the_merge_fails(family: Family) -> None:
    spoil(family, 1, "model.norm.weight", {0: float("nan")})
    progress = Recorder()
    with pytest.raises(MergeError):
        merge(family, progress=progress)
    assert progress.closed == 1


def test_result(family: Family) -> None:
    extra = family.states[1] | {"left_over": torch.ones(3)}
    write_model(family.target(1), extra)
    result = merge(family, shard_size=30_000)
    assert result.out_dir == str(family.out)
    assert result.tensors == len(family.states[0])
    assert result.parameters == sum(t.numel() for t in family.states[0].values())
    assert result.bytes_written == 2 * result.parameters
    assert result.bytes_read == 2 * 3 * result.bytes_written  # by survey and fuse
    assert result.seconds > 0
    assert set(result.shards) == {p.name for p in family.out.glob("*.safetensors")}
    # Deltas of rms 1e-3 and 2e-3: a fifth and four fifths of the energy.
    assert list(result.energy_share.values()) == pytest.approx([0.2, 0.8], abs=0.02)
    assert len(result.notes) == 1 and "left_over" in result.notes[0]
    assert "left_over" not in read_model(family.out)
    assert merge_json(family.config, family.home / "other").keys() == result.as_dict().keys()


def test_bad_options(family: Family) -> None:
    for options, message in (
        ({"nonfinite": "ignore"}, "nonfinite: must be error or propagate"),
        ({"backend": "cuda"}, "cuda"),
        ({"backend": "nope"}, "nope"),
        ({"shard_size": 0}, "shard_size: 0: a size must be positive"),
        ({"max_memory": "2GiB"}, "max_memory: '2GiB' is not a number of bytes"),
        ({"max_memory": 1}, "--max-memory"),
    ):
        with pytest.raises(MergeError, match=message):
            merge(family, **options)
        assert not family.out.parent.exists()


def test_an_instruction_set_that_is_not_there(family: Family) -> None:
    ran = spawn(
        *("-m", "fuseo1_kernels.merge", family.config, family.out), env={"FUSEO1_ISA": "sse9"}
    )
    assert ran.code == 1
    assert "sse9" in ran.err and "baseline" in ran.err and "Traceback" not in ran.err
