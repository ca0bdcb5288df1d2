"""A Llama of two layers in a GGUF file like the default model's: quantised, with a tokenizer of bytes and merges."""

import hashlib
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers import pre_tokenizers

from rome_lens.loading.default_model import PinnedFile

_WIDTH, _HIDDEN, _LAYERS, _HEADS, _KEY_HEADS = 64, 96, 2, 2, 1
_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)


def write_tiny_gguf(path: Path) -> PinnedFile:
    """Write the file, the same bytes every time, and return what it would be pinned by."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["t h", "th e", "Ġ the", "i n", "Ġ i", "o w"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(m.replace(" ", "") for m in merges)]
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(_LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KEY_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(False)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(special) + [1] * (len(tokens) - len(special)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(_CHAT)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        numbers = (random.standard_normal(shape) * 0.3).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, numbers + 1)
        else:
            kind = GGMLQuantizationType.Q8_0 if "embd" in name else GGMLQuantizationType.Q4_1
            writer.add_tensor(name, quants.quantize(numbers, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), _WIDTH)
    for layer in range(_LAYERS):
        add(f"blk.{layer}.attn_norm.weight", _WIDTH)
        add(f"blk.{layer}.ffn_down.weight", _WIDTH, _HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", _HIDDEN, _WIDTH)
        add(f"blk.{layer}.ffn_up.weight", _HIDDEN, _WIDTH)
        add(f"blk.{layer}.ffn_norm.weight", _WIDTH)
        add(f"blk.{layer}.attn_k.weight", _KEY_HEADS * (_WIDTH // _HEADS), _WIDTH)
        add(f"blk.{layer}.attn_output.weight", _WIDTH, _WIDTH)
        add(f"blk.{layer}.attn_q.weight", _WIDTH, _WIDTH)
        add(f"blk.{layer}.attn_v.weight", _KEY_HEADS * (_WIDTH // _HEADS), _WIDTH)
    add("output_norm.weight", _WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = path.read_bytes()
    return PinnedFile(
        requirement="tiny==1.0",
        wheel_bytes=1,
        member=f"tiny/{path.name}",
        member_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
