"""Models and arguments that are something else: one message says what they are and what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from support.checkpoint_files import safetensors_file, write_json
from support.models import Family, write_model
from support.processes import done, run
from support.refusals import one_layer_family, refused


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return one_layer_family(tmp_path)


def one_line(family: Family, *words: object) -> str:
    message = refused(family, words=words)
    assert "\n" not in message and "missing in model" not in message
    return message


# --- what is no whole model --------------------------------------------------------------


@pytest.mark.parametrize("base", [{"base_model_name_or_path": "org/base"}, {}])
def test_an_adapter(base: dict[str, str], family: Family) -> None:
    adapter = family.target(1)
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    write_json(adapter / "adapter_config.json", {"peft_type": "LORA", **base})
    words = f"{adapter}: is an adapter{' of org/base' if base else ''} (adapter_config.json)"
    one_line(family, words, f"give both, as {'org/base' if base else 'MODEL'}+{adapter}")


def test_an_adapter_that_is_called_a_model(family: Family) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    write_model(family.target(1), {name: torch.ones(2, 2)})
    one_line(family, f"model {family.target(1)}: is an adapter (tensor {name!r})")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model-Q4_K_M.gguf", "llama.cpp"),
        ("consolidated.00.pth", "Meta"),
        ("consolidated.safetensors", "Mistral"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("model_index.json", "diffusers"),
    ],
)
def test_other_formats(file: str, words: str, family: Family) -> None:
    (family.target(1) / "model.safetensors").rename(family.target(1) / file)
    one_line(family, f"{family.target(1)}: holds no weights but {file}, ", words)


PROJ = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("model", [0, 2])
@pytest.mark.parametrize(
    ("method", "held"),
    [
        ("gptq", {"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"}),
        ("awq", {"qweight": "I32", "qzeros": "I32", "scales": "F16"}),
        ("bitsandbytes", {"weight": "U8", "weight.absmax": "F32", "weight.quant_map": "F32"}),
        ("bitsandbytes", {"weight": "I8", "SCB": "F32"}),
        ("compressed-tensors", {"weight_packed": "I32", "weight_scale": "BF16"}),
        ("mxfp4", {"gate_up_proj_blocks": "U8", "gate_up_proj_scales": "U8"}),
        (None, {"weight": "U32", "scales": "F16", "biases": "F16"}),
    ],
    ids=str,
)
def test_quantised_weights(
    method: str | None, held: dict[str, str], model: int, family: Family
) -> None:
    path = family.target(model) if model else family.base
    sizes = {"I32": 4, "U32": 4, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}
    tensors = {f"{PROJ}.{n}": (dtype, (2, 2), bytes(4 * sizes[dtype])) for n, dtype in held.items()}
    safetensors_file(path / "model.safetensors", tensors)
    if method is not None:
        write_json(path / "config.json", {"quantization_config": {"quant_method": method}})
    by = f" by {method}" if method else ""
    one_line(family, f"model {path}: its weights are quantised{by} (tensor '{PROJ}.", "dequantise")


def test_whole_numbers_are_not_taken_for_quantised_weights(family: Family) -> None:
    for number, state in enumerate(family.states):
        path = family.target(number) if number else family.base
        write_model(path, state | {"model.position_ids": torch.arange(4)})
    assert "quantised" not in run(family.config, family.out).err


# --- names that differ by a prefix -------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "advice"),
    [
        ("module.", "`.module`"),
        ("_orig_mod.", "`._orig_mod`"),
        ("model._orig_mod.", "`._orig_mod`"),
        ("bert.", "one class of transformers"),
    ],
)
def test_prefixes_that_differ(prefix: str, advice: str, family: Family) -> None:
    longer = {prefix + name: tensor for name, tensor in family.states[1].items()}
    name = next(iter(sorted(family.states[0])))
    words = (f"are called {prefix}{name}", f"has {name}: the prefix '{prefix}' differs", advice)
    write_model(family.target(1), longer)
    one_line(family, f"model {family.target(1)}: its tensors", f"where {family.base}", *words)
    write_model(family.base, longer)
    write_model(family.target(1), family.states[1])
    write_model(family.target(2), longer)
    one_line(family, f"model {family.base}: its tensors", f"where {family.target(1)}", *words)


def test_a_head_that_only_one_model_has(family: Family) -> None:
    """A bare encoder among models with heads: the names of what both have differ by the prefix."""
    with_head = {f"bert.{n}": t for n, t in family.states[1].items()} | {"cls.w": torch.ones(2)}
    write_model(family.target(1), with_head)
    one_line(family, "the prefix 'bert.' differs")


def test_other_models_are_not_taken_for_prefixed_ones(family: Family) -> None:
    other = {f"transformer.h.{i}.mlp.c_fc.weight": torch.ones(2) for i in range(3)}
    write_model(family.target(1), other)
    assert "prefix" not in run(family.config, family.out).err


# --- arguments ---------------------------------------------------------------------------


def test_config_and_out_in_each_others_place(family: Family) -> None:
    recipe = "FuseO1-DeepSeekR1-QwQ-32B-Preview"
    family.out.mkdir(parents=True)
    for first in (family.out, family.home / "absent", family.base):
        for second in (family.config, recipe):
            for options in ([], ["--dry-run"], ["--overwrite"]):
                result = run(first, second, *options)
                assert result.code == 1
                words = f"error: {first}: is no config, but {second} is: CONFIG comes first"
                assert words in result.err
    # A new model may be called as a recipe is, or by a name that ends like a config's.
    done(family.config, family.home / recipe)
    done(family.config, family.home / "merged.yaml")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf"])
def test_weights_for_a_config(name: str, family: Family) -> None:
    file = family.base / name
    file.touch()
    result = run(file, family.out)
    assert result.code == 1 and f"error: {file}: holds weights; give a YAML file" in result.err


def test_a_model_for_a_config(family: Family) -> None:
    result = run(family.base, family.out)
    assert result.code == 1 and f"error: {family.base}: is a model; give a YAML" in result.err


def test_a_config_that_is_too_large(family: Family) -> None:
    os.truncate(family.config, 17 << 20)
    result = run(family.config, family.out)
    assert result.code == 1 and f"{family.config}: is not a config: it has more than" in result.err


# --- a method that is misspelt -----------------------------------------------------------


@pytest.mark.parametrize("method", ["sec", "ties2", ..., 5, None])
def test_a_misspelt_method_is_all_that_is_said(method: object, family: Family) -> None:
    family.configure(merge_method=method, base_model=...)
    message = refused(family, words=(f"{family.config}: merge_method: ",))
    assert "base_model" not in message and "\n" not in message


# --- --json ------------------------------------------------------------------------------


def test_errors_are_json_too(family: Family) -> None:
    write_model(family.target(1), {"w": torch.ones(1)})
    cases = {
        ("absent.yaml", "out", "--json"): 1,
        (family.config, family.out, "--json", "--quiet"): 1,
        (family.config, family.base, "--json"): 1,
        (family.config, family.out, "--json", "--device", "tpu"): 1,
        (family.config, "--json"): 2,
        ("--json",): 2,
        (family.config, family.out, "--json", "--threads", "none"): 2,
        (family.config, family.out, "--json", "--absent"): 2,
    }
    for argv, code in cases.items():
        result = run(*argv)
        assert result.code == code, argv
        assert result.out.count("\n") == 1
        said = json.loads(result.out)
        assert said.keys() == {"error"}
        assert f"error: {said['error']}\n" in result.err
