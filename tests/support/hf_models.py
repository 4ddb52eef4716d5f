"""Small models of many architectures, by transformers' own classes, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

VOCAB, HIDDEN, FFN, HEADS = 96, 48, 64, 4
_LENGTH = 12

_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 6,
    "max_position_embeddings": 64,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = {**_SMALL, **_TOKENS, "num_key_value_heads": 2}
_ROPE = {**_DECODER, "head_dim": 12}
_VISION = {
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 4,
}
_PAIR = {
    **_TOKENS,
    "vocab_size": VOCAB,
    "d_model": HIDDEN,
    "encoder_layers": 4,
    "decoder_layers": 6,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": FFN,
    "decoder_start_token_id": 1,
}


def llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER))


def qwen2() -> Any:
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**_DECODER, **windows))


def gemma2() -> Any:
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**_ROPE, sliding_window=4))


def gemma3() -> Any:
    return hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**_ROPE, sliding_window=4, sliding_window_pattern=3)
    )


def gemma4() -> Any:
    """Its 6th and 12th layers have larger heads."""
    heads = {"global_head_dim": 24, "hidden_size_per_layer_input": 0, "sliding_window": 4}
    return hf.Gemma4ForCausalLM(hf.Gemma4TextConfig(**_ROPE | heads | {"num_hidden_layers": 12}))


def mixtral() -> Any:
    return hf.MixtralForCausalLM(hf.MixtralConfig(**_DECODER, num_local_experts=2))


def qwen3_moe() -> Any:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**_ROPE, **experts, decoder_sparse_step=2, mlp_only_layers=[3])
    )


def deepseek() -> Any:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8}
    heads = {"qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": HEADS}
    groups = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 2}
    return hf.DeepseekV3ForCausalLM(
        hf.DeepseekV3Config(**_SMALL, **_TOKENS, **experts, **latent, **heads, **groups)
    )


def gpt_neo() -> Any:
    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_layers": 6, "num_heads": HEADS}
    types = {"attention_types": [[["global", "local"], 3]], "window_size": 4}
    return hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(**sizes, **types, **_TOKENS, max_position_embeddings=64)
    )


def gpt2() -> Any:
    sizes = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": 6, "n_head": HEADS}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **_TOKENS, n_positions=64))


def gpt_neox() -> Any:
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_SMALL, **_TOKENS))


def smollm3() -> Any:
    return hf.SmolLM3ForCausalLM(hf.SmolLM3Config(**_DECODER, tie_word_embeddings=False))


def llama4() -> Any:
    moe = {"intermediate_size_mlp": FFN, "num_local_experts": 2, "interleave_moe_layer_step": 2}
    return hf.Llama4ForCausalLM(hf.Llama4TextConfig(**_ROPE, **moe, attention_chunk_size=8))


def lfm2() -> Any:
    return hf.Lfm2ForCausalLM(hf.Lfm2Config(**_DECODER, full_attn_idxs=[1, 4]))


def bert() -> Any:
    return hf.BertForMaskedLM(hf.BertConfig(**_SMALL))


def electra() -> Any:
    return hf.ElectraForMaskedLM(hf.ElectraConfig(**_SMALL, embedding_size=24))


def vit() -> Any:
    return hf.ViTForImageClassification(hf.ViTConfig(**{**_VISION, "num_hidden_layers": 6}))


def t5() -> Any:
    sizes = {"vocab_size": VOCAB, "d_model": HIDDEN, "d_kv": 12, "d_ff": FFN, "num_heads": HEADS}
    layers = {"num_layers": 4, "num_decoder_layers": 6, "decoder_start_token_id": 0}
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes, **layers))


def whisper() -> Any:
    sizes = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**_PAIR, **sizes))


def bart() -> Any:
    return hf.BartForConditionalGeneration(hf.BartConfig(**_PAIR, max_position_embeddings=32))


def qwen2_5_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4}
    vision = {"depth": 8, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_heads": HEADS}
    windows = {"fullatt_block_indexes": [1, 3, 7], "patch_size": 4, "window_size": 16}
    return hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(
            text_config={**_DECODER, "rope_parameters": rope},
            vision_config={**vision, **windows, "out_hidden_size": HIDDEN},
            image_token_id=5,
            video_token_id=6,
            vision_start_token_id=4,
            vision_end_token_id=7,
        )
    )


def gemma3_vl() -> Any:
    pattern = {"sliding_window": 4, "sliding_window_pattern": 3}
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(
            text_config={**_ROPE, **pattern},
            vision_config=_VISION,
            mm_tokens_per_image=4,
            image_token_id=5,
            image_token_index=5,
        )
    )


def clip() -> Any:
    return hf.CLIPModel(
        hf.CLIPConfig(text_config={**_SMALL, **_TOKENS}, vision_config=_VISION, projection_dim=16)
    )


def modernbert() -> Any:
    return hf.ModernBertForMaskedLM(
        hf.ModernBertConfig(**_SMALL, **_TOKENS, cls_token_id=3, sep_token_id=4, local_attention=4)
    )


def text() -> dict[str, Any]:
    return {"input_ids": torch.randint(8, VOCAB, (2, _LENGTH))}


def pair(_: Any) -> dict[str, Any]:
    return text() | {"decoder_input_ids": torch.randint(8, VOCAB, (2, 7))}


def picture(_: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


def sound(_: Any) -> dict[str, Any]:
    ids = torch.randint(8, VOCAB, (2, 7))
    return {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": ids}


def with_picture(number: int) -> Callable[[Any], dict[str, Any]]:
    def inputs(model: Any) -> dict[str, Any]:
        ids = torch.randint(8, VOCAB, (1, _LENGTH + number))
        ids[0, 2 : 2 + number] = model.config.image_token_id
        return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16)}

    return inputs


def qwen_picture(_: Any) -> dict[str, Any]:
    ids = torch.randint(8, VOCAB, (1, _LENGTH + 16))
    ids[0, 1], ids[0, 2:18] = 4, 5
    kinds = (ids == 5).to(torch.int32)
    return {
        "input_ids": ids,
        "mm_token_type_ids": kinds,
        "pixel_values": torch.randn(64, 3 * 2 * 16),
        "image_grid_thw": torch.tensor([[1, 8, 8]]),
    }


def text_and_picture(_: Any) -> dict[str, Any]:
    return text() | {"pixel_values": torch.randn(2, 3, 16, 16)}
