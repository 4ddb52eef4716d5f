"""Rows of embeddings gathered by token, beside mergekit 0.1.5 in float64 with real tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fuseo1_kernels import merge_checkpoints, verify_model

pytest.importorskip("mergekit", reason="mergekit is not installed (the extra `test` has it)")

pytestmark = [pytest.mark.peer, pytest.mark.slow]

HIDDEN = 48
TEXTS = (
    "the cat sat on the mat and the dog ran after the cat while birds sang in the trees " * 3,
    "merging models by token needs rows of every embedding gathered while streaming " * 3,
    "le chat est sur la table et le chien court dans le jardin avec les oiseaux " * 3,
)


def byte_level(text: str, size: int, added: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens(added)
    return tokenizer


def pieces(text: str, size: int, added: list[str]) -> Tokenizer:
    """What a sentencepiece model is converted to."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<|end|>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens(added)
    return tokenizer


def words(text: str, size: int, added: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|end|>"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens(added)
    return tokenizer


#: How a tokenizer is made, its size, and how many rows more than tokens the first model has.
KINDS = {
    "bytes": (byte_level, 290, 19),
    "few rows": (byte_level, 290, -4),
    "pieces": (pieces, 60, 19),
    "words": (words, 80, 19),
}


def write_models(home: Path, kind: str, tied: bool) -> None:
    """Write three models whose tokenizers share some tokens; the third has ones of its own."""
    make, size, more = KINDS[kind]
    for number, (text, added) in enumerate(
        zip(TEXTS, ([], ["<think>"], ["<tool>", "<think>"]), strict=True)
    ):
        path = home / "abc"[number]
        if number == 0 and more < 0:  # as where a padding token was added, but no row
            added = [f"<pad{i}>" for i in range(-more)]
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_object=make(text, size + 3 * number, added), eos_token="<|end|>"
        )
        tokenizer.save_pretrained(path)
        rows = len(tokenizer.get_vocab())
        rows += more if number == 0 else 0
        torch.manual_seed(number)
        sizes: dict[str, Any] = {
            "vocab_size": rows,
            "hidden_size": HIDDEN,
            "intermediate_size": 224,  # no vocabulary has as many tokens
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
        }
        if kind == "words":
            model = hf.PhiForCausalLM(hf.PhiConfig(**sizes, tie_word_embeddings=tied))
            torch.nn.init.normal_(model.lm_head.bias)
        else:
            model = hf.LlamaForCausalLM(
                hf.LlamaConfig(**sizes, eos_token_id=0, tie_word_embeddings=tied)
            )
        model.to(torch.bfloat16).save_pretrained(path)


def by_mergekit(config: dict[str, Any], out: Path) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    run_merge(
        MergeConfiguration.model_validate(config | {"dtype": "float64"}),
        str(out),
        MergeOptions(quiet=True, write_model_card=False),
    )


def state(path: Path) -> dict[str, torch.Tensor]:
    return {k: t for file in path.glob("*.safetensors") for k, t in load_file(file).items()}


def vocabulary(path: Path) -> dict[str, int]:
    ids: dict[str, int] = hf.AutoTokenizer.from_pretrained(path).get_vocab()
    return ids


def added_tokens(path: Path) -> dict[str, Any]:
    """Return the added tokens by their text, with how they are matched."""
    decoder = hf.AutoTokenizer.from_pretrained(path).added_tokens_decoder
    return {token.content: token for token in decoder.values()}


NEW: dict[str, dict[str, Any]] = {
    "<zero>": {"source": {"kind": "zero"}},
    "<new>": {"source": {"kind": "model_token", "model": "b", "token_id": 5}},
    "<like>": {"source": {"kind": "model_token", "model": "c", "token": "<tool>"}},
    "<think>": {"source": "c"},
    "<|end|>": {"source": "b", "force": True},
}
#: With `source: base` mergekit takes the rows behind the base's tokens for tokens that are new, unless forced.
FORCED: dict[str, dict[str, Any]] = {token: row | {"force": True} for token, row in NEW.items()}
TASK = {
    "merge_method": "task_arithmetic",
    "base_model": "a",
    "models": [
        {"model": "b", "parameters": {"weight": 0.5}},
        {"model": "c", "parameters": {"weight": 0.25}},
    ],
}
PADDED: dict[str, Any] = {"pad_to_multiple_of": 32}
LINEAR = {
    "merge_method": "linear",
    "models": [{"model": m, "parameters": {"weight": 1 + (m == "b")}} for m in "abc"],
}


@pytest.mark.parametrize(
    ("kind", "tied", "config", "keys"),
    [
        ("bytes", True, TASK, {"tokenizer_source": "union"}),
        ("bytes", False, TASK, {"tokenizer_source": "base"}),
        ("few rows", False, TASK, {"tokenizer_source": "union"}),
        ("few rows", True, TASK, {"tokenizer_source": "base"}),
        ("bytes", True, TASK, {"tokenizer_source": "c"}),
        ("bytes", False, LINEAR | {"base_model": "b"}, {"tokenizer": {}}),
        ("bytes", False, TASK, {"tokenizer": PADDED | {"source": "base", "tokens": FORCED}}),
        ("pieces", False, TASK, {"tokenizer": {"tokens": NEW}}),
        ("pieces", True, LINEAR | {"base_model": "a"}, {"tokenizer": PADDED}),
        ("words", False, TASK, {"tokenizer": PADDED}),
        ("words", False, TASK, {"tokenizer": {"source": "b"}}),
    ],
)
def test_results_are_mergekits(
    kind: str, tied: bool, config: dict[str, Any], keys: dict[str, Any], tmp_path: Path
) -> None:
    write_models(tmp_path, kind, tied)
    merge = _with_paths(config | keys, tmp_path)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    merge_checkpoints(merge | {"dtype": "float32"}, ours)
    by_mergekit(merge, theirs)
    assert verify_model(ours, recompute=None).problems == ()
    ids, their_ids = vocabulary(ours), vocabulary(theirs)
    assert ids.keys() == their_ids.keys()
    assert added_tokens(ours) == added_tokens(theirs)
    order = torch.tensor([their_ids[token] for token in sorted(ids, key=ids.__getitem__)])
    found, expected = state(ours), state(theirs)
    assert found.keys() == expected.keys()
    sizes = {json.loads((p / "config.json").read_text())["vocab_size"] for p in (ours, theirs)}
    assert len(sizes) == 1
    rows = sizes.pop()
    order = torch.cat([order, torch.arange(len(order), rows)])
    for name, tensor in found.items():
        reference = expected[name]
        if reference.shape[0] == rows:
            reference = reference[order]
        assert tensor.shape == reference.shape, name
        differing = (tensor.double() - reference).abs() > 2**-22 * reference.abs() + 1e-9
        assert differing.sum() == 0, name


def _with_paths(value: Any, home: Path) -> Any:
    """Return a config in which single letters are models in `home`."""
    if isinstance(value, dict):
        return {key: _with_paths(item, home) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_paths(item, home) for item in value]
    return str(home / value) if isinstance(value, str) and value in ("a", "b", "c") else value
