"""A model of a few thousand random weights, for checking an installation: it knows nothing, and runs everywhere."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rome_lens.loading.convert import to_transformer_lens
from rome_lens.loading.hugging_face import Pretrained
from rome_lens.loading.progress import quiet

# Standard deviation of the weights.
_SCALE = 0.3

TINY_PROMPT, TINY_SUBJECT = "the tower is in the city of", "the tower"


def tiny_model(backend: str) -> Any:
    """A GPT-2 of two layers and random weights, the same at every call, whose tokenizer knows the tiny prompt.

    Args:
        backend: `hooked-transformer`, `transformer-bridge` or `auto`.
    """
    # A prompt of words that it does not have is taken for one all the same: any text will do to try a command.
    words = sorted(set(TINY_PROMPT.split()))
    made = word_model("tiny", words, names_unknown=False, n_positions=16, n_layer=2)
    with quiet("converting a tiny model"):
        return to_transformer_lens(made, backend=backend)


def word_model(name: str, words: Sequence[str], *, names_unknown: bool = True, **sizes: Any) -> Pretrained:
    """A GPT-2 of random weights, the same at every call, whose tokens are whole words.

    Args:
        name: what it is called.
        words: its vocabulary, behind the end token, which stands for all other words, too.
        names_unknown: the tokenizer says that the end token stands for unknown words, so that subjects of such words
            are refused.
        sizes: of transformers' configuration.
    """
    end = "<|end|>"
    vocabulary = {word: i for i, word in enumerate([end, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=end))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # Without `add_bos_token` TransformerLens would read the tokenizer again, from a folder or a hub without it.
    special: dict[str, str] = dict.fromkeys(("bos_token", "eos_token", "pad_token"), end)
    if names_unknown:
        special["unk_token"] = end
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, name_or_path=name, add_bos_token=True, **special)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(vocabulary), n_embd=16, n_head=2, **ids, **sizes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if ".ln_" not in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * _SCALE)
        # The end token is no answer: it is never the likeliest.
        model.lm_head.weight[0] = 0
    return Pretrained(name=name, model=model, tokenizer=fast)
