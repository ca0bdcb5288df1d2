"""`rome-lens models`: what --model takes, and what is there already."""

from typing import Any

from rome_lens.cli.options import Json
from rome_lens.cli.terminal import print_json, stdout


def models(as_json: Json = False) -> None:
    """List what --model takes, and whether the default model has been fetched."""
    from rome_lens.loading import DEFAULT_MODEL, cached_default_model

    state = cached_default_model()
    size = f"{state.size / 1e6:.0f} MB"
    status = "not fetched yet" if not state.present else f"fetched, {size}" if state.intact else "damaged: fetched anew"
    if as_json:
        cached: dict[str, Any] = {"path": str(state.path), "present": state.present, "intact": state.intact}
        print_json({"default": DEFAULT_MODEL, "cached": cached | {"size": state.size}})
        return
    console = stdout()
    console.print(f"{DEFAULT_MODEL}  the default: SmolLM2-135M-Instruct, 30 layers, Apache-2.0")
    console.print(f"              {status}; kept at {state.path}", soft_wrap=True)
    console.print("a folder      in Hugging Face's layout: config.json, weights, tokenizer")
    console.print("a hub name    such as gpt2 or EleutherAI/pythia-160m: a decoder that")
    console.print("              TransformerLens hosts; HF_HOME and HF_HUB_OFFLINE hold")
