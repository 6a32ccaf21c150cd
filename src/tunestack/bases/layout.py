"""Where things are in a model: the names that adapters attach to. A new architecture is one row."""

from __future__ import annotations

from dataclasses import dataclass, replace

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING


@dataclass(frozen=True)
class Layout:
    """Module names, as suffixes of the full name; None where the architecture has no such module of its own.

    query, key, value: the projections (one fused name may stand for all three).
    attention_output, ffn_in, ffn_out: the other linears of a block.
    head: what a classification model adds to the plain one, trained in full by every method.
    position_offset: how many places of its table of positions a base leaves unused; None without a table.
    mixing: the last module of a block in which tokens meet, where the classification head reads the first
    token alone; None elsewhere.
    encoder: the module that hands embeddings from block to block, where blocks ask for nothing but them and a
    mask of padding, so that they can do without padding; None elsewhere.
    norms: of a block that is BERT's: the two layer normalisations, behind attention and behind the FFN, by
    their names in the block; None elsewhere.
    attention_in: the projection that gets attention's input and nothing else; None where query does.
    """

    query: str
    key: str
    value: str
    attention_output: str
    ffn_in: str
    ffn_out: str
    head: tuple[str, ...] = ("score",)
    position_offset: int | None = None
    attention_in: str | None = None
    mixing: str | None = None
    encoder: str | None = None
    norms: tuple[str, str] | None = None

    @property
    def attention_targets(self) -> list[str]:
        """Query and value, the usual place of LoRA (Hu et al., 2021, section 7.1)."""
        return sorted({self.query, self.value})


_BERT = Layout(
    "query",
    "key",
    "value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    ("classifier",),
    0,
    mixing="attention",
    encoder="encoder",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)
_ROBERTA = replace(_BERT, position_offset=2)
_LLAMA = Layout("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
_T5 = Layout("q", "k", "v", "o", "DenseReluDense.wi", "DenseReluDense.wo", ("classification_head",))

LAYOUTS: dict[str, Layout] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": Layout("q", "k", "v", "attn.o", "intermediate.dense", "output.dense", ("classifier",), 2),
    "electra": _BERT,
    "distilbert": Layout(
        "q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2", ("pre_classifier", "classifier"), 0
    ),
    "deberta-v2": Layout(
        "query_proj",
        "key_proj",
        "value_proj",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
        ("pooler", "classifier"),
        0,
        "value_proj",
    ),
    "modernbert": Layout("Wqkv", "Wqkv", "Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo", ("head", "classifier")),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "phi3": Layout("qkv_proj", "qkv_proj", "qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "gpt2": Layout("c_attn", "c_attn", "c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", position_offset=0),
    "gpt_neo": Layout("q_proj", "k_proj", "v_proj", "out_proj", "mlp.c_fc", "mlp.c_proj", position_offset=0),
    "gptj": Layout("q_proj", "k_proj", "v_proj", "out_proj", "mlp.fc_in", "mlp.fc_out"),
    "gpt_neox": Layout(
        "query_key_value",
        "query_key_value",
        "query_key_value",
        "attention.dense",
        "dense_h_to_4h",
        "dense_4h_to_h",
    ),
    "bloom": Layout(
        "query_key_value",
        "query_key_value",
        "query_key_value",
        "self_attention.dense",
        "dense_h_to_4h",
        "dense_4h_to_h",
    ),
    "t5": _T5,
    "mt5": replace(_T5, ffn_in="DenseReluDense.wi_0"),
    "opt": Layout("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", position_offset=0),
}


def default_targets(model_type: str) -> list[str] | None:
    """LoRA's usual target modules for this architecture, or None where neither we nor PEFT know it."""
    if model_type in LAYOUTS:
        return LAYOUTS[model_type].attention_targets
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    return list(known) if isinstance(known, (list, tuple)) else None
