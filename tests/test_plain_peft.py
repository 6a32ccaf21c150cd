"""What is saved loads in plain PEFT, in a process without us, and gives the same logits there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oracle import assert_loads_in_plain_peft

# The kind of base, whether its checkpoint has a head, the method, its fields.
CASES: list[tuple[str, bool, str, dict[str, Any]]] = [
    # The base's checkpoint may lack the head, and the pooler: both travel with the adapter.
    ("bert", False, "lora", {"bias": "all"}),
    ("bert", True, "lora", {"modules_to_save": ["pooler"]}),
    ("roberta", False, "lora", {"bias": "lora_only"}),
    ("distilbert", False, "lora", {"bias": "lora_only"}),
    ("distilbert", True, "lora", {"rank_pattern": {"q_lin": 2}}),
    ("llama", False, "lora", {"target_modules": "all-linear", "use_rslora": True}),
    ("llama", False, "lora", {"use_dora": True}),
    ("gpt2", False, "lora", {"bias": "all", "target_modules": ["c_attn", "c_fc"]}),
    ("gpt2", True, "lora", {"layers_to_transform": [0], "use_dora": True}),
    ("t5", False, "lora", {}),
    ("bert", False, "ia3", {}),
    ("llama", True, "ia3", {}),
    ("gpt2", False, "ia3", {}),
    ("distilbert", True, "ia3", {}),
    ("t5", False, "ia3", {}),
    ("bert", False, "bitfit", {}),
    ("bert", True, "bitfit", {"target_modules": ["query", "intermediate.dense"]}),
    ("distilbert", False, "bitfit", {"modules_to_save": ["output_layer_norm"]}),
    ("gpt2", False, "bitfit", {}),
    ("bert", False, "layernorm", {}),
    ("modernbert", True, "layernorm", {}),
    ("llama", False, "layernorm", {}),
    ("t5", False, "layernorm", {}),
]


def test_adapters_load_in_a_fresh_process(tmp_path: Path) -> None:
    assert_loads_in_plain_peft(tmp_path, CASES)
