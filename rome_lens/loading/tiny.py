"""A model of a few thousand random weights, for checking an installation: it knows nothing, and runs everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rome_lens.loading.convert import to_transformer_lens
from rome_lens.loading.hugging_face import Pretrained
from rome_lens.loading.progress import quiet

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer  # pyright: ignore[reportAttributeAccessIssue]
    from transformer_lens.model_bridge import TransformerBridge

TINY_PROMPT, TINY_SUBJECT = "the tower is in the city of", "the tower"


def tiny_model(backend: str) -> HookedTransformer | TransformerBridge:
    """A GPT-2 of two layers and random weights, the same at every call, whose tokenizer knows the tiny prompt.

    Args:
        backend: `hooked-transformer`, `transformer-bridge` or `auto`.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ["<|end|>", *sorted(set(TINY_PROMPT.split()))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    end = "<|end|>"
    # Without this flag TransformerLens would read the tokenizer again, from a folder or a hub that does not have it.
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end, name_or_path="tiny", add_bos_token=True
    )
    config = GPT2Config(
        vocab_size=len(words), n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ln_" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        # The end token is no answer: it is never the likeliest.
        model.transformer.wte.weight[0] = 0
    with quiet("converting a tiny model", progress=None):
        return to_transformer_lens(Pretrained(name="tiny", model=model, tokenizer=fast), backend=backend)
