"""Configurations of tiny models, one of each architecture: to probe what works where, and for tests."""

from __future__ import annotations

from typing import Any


def tiny_configs(
    hidden: int = 16,
    head_dim: int = 6,
    *,
    layers: int = 2,
    heads: int = 4,
    key_value_heads: int = 2,
    inner: int = 24,
    tokens: int = 96,
    vocabulary: int = 160,
) -> dict[str, dict[str, Any]]:
    """Fields of a config.json, by model type.

    head_dim: where an architecture lets it differ from hidden / heads. Weights are drawn wide, so that every
    part of a model matters to its output. key_value_heads: of decoders that can share them.
    """
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": tokens,
    }
    encoder = {**sizes, "initializer_range": 0.2, "pad_token_id": 0}
    grouped = {**sizes, "num_key_value_heads": key_value_heads, "initializer_range": 0.3}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    padded = {"pad_token_id": 0}  # real Llamas, Mistrals and GPTs have no padding token
    gpt = {
        "vocab_size": vocabulary,
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": tokens,
        "initializer_range": 0.2,
        **ends,
    }
    t5 = {
        "vocab_size": vocabulary,
        "d_model": hidden,
        "d_kv": head_dim,
        "d_ff": inner,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "initializer_factor": 2.0,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
    }
    configs: dict[str, dict[str, Any]] = {
        "bert": encoder,
        "roberta": {**encoder, "max_position_embeddings": tokens + 2},
        "electra": {**encoder, "embedding_size": hidden // 2},
        "distilbert": {
            "vocab_size": vocabulary,
            "dim": hidden,
            "n_layers": layers,
            "n_heads": heads,
            "hidden_dim": inner,
            "max_position_embeddings": tokens,
            "initializer_range": 0.2,
            "pad_token_id": 0,
        },
        "deberta-v2": {
            **encoder,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 8,
            "type_vocab_size": 0,
            "position_biased_input": False,
        },
        "modernbert": {**encoder, **ends, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 16},
        "llama": {**grouped, **ends},
        "mistral": {**grouped, "sliding_window": 16},
        "qwen2": {**grouped, **ends},
        "gpt2": gpt,
        "opt": {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "word_embed_proj_dim": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "ffn_dim": inner,
            "max_position_embeddings": tokens,
            "init_std": 0.2,
            **padded,
        },
        "qwen3": {**grouped, "head_dim": head_dim},
        "gemma": {**grouped, **padded, "head_dim": head_dim},
        "gemma2": {**grouped, **padded, "head_dim": head_dim, "sliding_window": 16},
        "phi3": {**grouped, **padded, **ends},
        "bloom": {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "n_layer": layers,
            "n_head": heads,
            "initializer_range": 0.2,
            **padded,
            **ends,
        },
        "gptj": {**gpt, "n_inner": inner, "rotary_dim": 2},
        "gpt_neo": {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_layers": layers,
            "num_heads": heads,
            "intermediate_size": inner,
            "attention_types": [[["global", "local"], layers // 2], [["global"], layers % 2]],
            "window_size": 16,
            "max_position_embeddings": tokens,
            "initializer_range": 0.2,
            **ends,
        },
        "gpt_neox": {**sizes, **ends, "rotary_pct": 0.5, "initializer_range": 0.2},
        "t5": t5,
        "mt5": {**t5, "feed_forward_proj": "gated-gelu"},
    }
    return {kind: {"model_type": kind, **fields} for kind, fields in configs.items()}
