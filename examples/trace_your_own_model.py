"""Trace a Hugging Face model that you already hold, for instance one that you have just fine-tuned."""

import argparse
from collections.abc import Sequence
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

import rome_lens as rl


def trace_hugging_face_model(
    hf_model: Any, tokenizer: Any, prompt: str, subject: str, *, noise: float | str | None = None
) -> rl.CausalTrace:
    """Wrap the model in a TransformerBridge, which changes the Python object but not its weights, and trace it."""
    name = hf_model.name_or_path or "my model"
    bridge = TransformerBridge.boot_transformers(
        name, hf_model=hf_model, tokenizer=tokenizer, device=str(hf_model.device), dtype=hf_model.dtype
    ).eval()
    return rl.causal_trace(bridge, prompt, subject=subject, noise=noise)


def main(arguments: Sequence[str] | None = None) -> None:
    """Load a model from a folder or from the hub with transformers alone, trace it, and print the best cells."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description="Trace a model that was loaded with transformers.")
    parser.add_argument("folder", help="a folder in the Hugging Face layout, or a name on the hub")
    parser.add_argument("prompt", help="a text that the model continues with the answer")
    parser.add_argument("subject", help="the part of the prompt to corrupt")
    options = parser.parse_args(arguments)

    hf_model = AutoModelForCausalLM.from_pretrained(options.folder, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    trace = trace_hugging_face_model(hf_model, tokenizer, options.prompt, options.subject)
    print(f"{trace.prompt} → {trace.answer.strip()}: high {trace.high:.3f}, low {trace.low:.3f}")
    print(trace.to_dataframe().nlargest(5, "score").to_string(index=False))


if __name__ == "__main__":
    main()
