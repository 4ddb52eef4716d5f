"""What goes along with a merged model is what transformers needs: tokenizers, processors, custom code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from support.engine_runs import merge
from support.models import Family, model_config, read_model, write_model

pytestmark = pytest.mark.peer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "merge", "me", "##s"]


def wordpieces(path: Path) -> None:
    """BERT's vocab.txt alone."""
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    hf.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(path)
    (path / "tokenizer.json").unlink()


def pieces(path: Path) -> None:
    """A sentencepiece model alone, as older checkpoints of Llama have it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["merge me, merges"] * 20),
        model_writer=out,
        model_type="bpe",
        vocab_size=24,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (path / "tokenizer.model").write_bytes(out.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "bos_token": "<s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def code(path: Path) -> None:
    """A tokenizer of the model's own."""
    text = "from transformers import BertTokenizer\nfrom .words import Words\n\n\n"
    (path / "tokenization_own.py").write_text(
        f"{text}class OwnTokenizer(BertTokenizer, Words):\n    pass\n"
    )
    (path / "words.py").write_text("class Words:\n    own = True\n")
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    auto = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": auto}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def bare(family: Family, kind: str) -> None:
    """Write the family's models without tokenizers, with a config of the model type `kind`."""
    for number, state in enumerate(family.states):
        path = family.target(number) if number else family.base
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path / name).unlink()
        write_model(path, state, tokenizer={}, config={"model_type": kind})


@pytest.mark.parametrize(
    ("write", "kind"), [(wordpieces, "bert"), (pieces, "llama"), (code, "bert")]
)
def test_tokenizers(write: Callable[[Path], None], kind: str, family: Family) -> None:
    bare(family, kind)
    write(family.target(1))
    family.configure(tokenizer_source=str(family.target(1)))
    merge(family)
    loaded, original = (
        hf.AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        for path in (family.out, family.target(1))
    )
    ids = loaded("merge me merges").input_ids
    assert ids == original("merge me merges").input_ids
    assert len(set(ids)) >= 3 and loaded.get_vocab() == original.get_vocab()
    assert getattr(loaded, "own", False) == (write is code)


def test_processor(family: Family) -> None:
    bare(family, "wav2vec2")
    vocabulary = family.home / "vocab.json"
    vocabulary.write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "m": 3, "e": 4}))
    tokenizer = hf.Wav2Vec2CTCTokenizer(str(vocabulary), bos_token=None, eos_token=None)
    hf.Wav2Vec2Processor(hf.Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(family.base)
    merge(family)
    processor = hf.AutoProcessor.from_pretrained(family.out)
    assert isinstance(processor, hf.Wav2Vec2Processor)
    assert processor([0.5] * 400, sampling_rate=16000).input_values[0].shape == (400,)
    assert processor.tokenizer("me").input_ids == [3, 4]


def test_custom_code(family: Family) -> None:
    """A model whose classes lie beside it, in files that import each other."""
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    config = model_config(model_type="own", auto_map=auto)
    texts = {
        "configuration_own.py": "from transformers import Qwen2Config\n"
        "class OwnConfig(Qwen2Config):\n    model_type = 'own'\n",
        "modeling_own.py": "from transformers import Qwen2ForCausalLM\n"
        "from .configuration_own import OwnConfig\nfrom .marks import MARK\n"
        "class Own(Qwen2ForCausalLM):\n    config_class = OwnConfig\n    mark = MARK\n",
        "marks.py": "MARK = 7\n",
        "train.py": "raise SystemExit('run')\n",
    }
    for number, state in enumerate(family.states):
        path = family.target(number) if number else family.base
        write_model(path, state, config=config)
        for name, text in texts.items():
            (path / name).write_text(text)
    [note] = merge(family).notes
    assert "train.py (Python code that no auto_map names)" in note
    assert not (family.out / "train.py").exists()
    loaded: Any = hf.AutoConfig.from_pretrained(family.out, trust_remote_code=True)
    assert type(loaded).__name__ == "OwnConfig"
    model = hf.AutoModelForCausalLM.from_pretrained(family.out, trust_remote_code=True)
    assert type(model).__name__ == "Own" and model.mark == 7
    assert model.state_dict().keys() == read_model(family.out).keys()
