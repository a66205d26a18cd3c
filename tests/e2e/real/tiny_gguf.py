"""The tiny model as GGUF, for llama.cpp, with the gguf package alone. Runs in the server's environment.

Usage: python tiny_gguf.py DIRECTORY FILE, DIRECTORY as tiny_model.py made it
"""

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

PLAIN = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
source, out = Path(sys.argv[1]), sys.argv[2]
config = json.loads((source / "config.json").read_text())
tokenizer = json.loads((source / "tokenizer.json").read_text())
heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

writer = gguf.GGUFWriter(out, "llama")
writer.add_name("tiny")
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_block_count(config["num_hidden_layers"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(heads)
writer.add_head_count_kv(kv_heads)
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_dimension_count(config["head_dim"])
writer.add_vocab_size(config["vocab_size"])
writer.add_file_type(0)

words = {number: word for word, number in tokenizer["model"]["vocab"].items()}
special = {token["id"] for token in tokenizer["added_tokens"]}
numbers = range(config["vocab_size"])
merges = tokenizer["model"]["merges"]
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list([words.get(number, f"<unused{number}>") for number in numbers])
writer.add_token_types([3 if number in special else 1 if number in words else 5 for number in numbers])
writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in merges])
writer.add_bos_token_id(0)
writer.add_eos_token_id(1)
writer.add_pad_token_id(2)
writer.add_chat_template((source / "chat_template.jinja").read_text())

data = (source / "model.safetensors").read_bytes()
(size,) = struct.unpack("<Q", data[:8])
for name, spec in json.loads(data[8 : 8 + size]).items():
    if name == "__metadata__":
        continue
    start, stop = spec["data_offsets"]
    tensor = np.frombuffer(data[8 + size + start : 8 + size + stop], np.float32).reshape(spec["shape"])
    plain = name.removesuffix(".weight")
    if plain not in PLAIN:
        _, _, layer, rest = plain.split(".", 3)
    title = PLAIN.get(plain) or f"blk.{layer}.{LAYER[rest]}"
    if title.endswith(("attn_q", "attn_k")):  # llama.cpp rotates pairs of neighbours, the original halves
        count = heads if title.endswith("attn_q") else kv_heads
        pairs = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
        tensor = pairs.swapaxes(1, 2).reshape(tensor.shape)
    writer.add_tensor(f"{title}.weight", np.ascontiguousarray(tensor))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
