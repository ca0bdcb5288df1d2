"""Edit a model that runs in bfloat16, on a GPU: the edit is found in float32, and put on the model in bfloat16."""

import argparse
import gc
from collections.abc import Sequence
from typing import Any

import torch

import rome_lens as rl


def edit_in_bfloat16(
    name: str, request: rl.EditRequest, *, device: str | None = None, second_moment: rl.SecondMoment | None = None
) -> rl.Edit:
    """Find an edit in float32, and print what the model gives to its target, without the edit and with it, in both.

    Args:
        name: a folder, or a name on the hub.
        request: what to change.
        device: the GPU where there is one, else the CPU.
        second_moment: of the edited layer; that which comes with the default model needs no mention.
    """
    exact = rl.load_model(name, device=device)
    layer = None if second_moment is None else second_moment.layer
    edit = rl.ROME(exact, layer=layer, second_moment=second_moment).edit(request)
    report("float32", exact, edit)
    # Both models need not fit on the device at once; a TransformerBridge holds itself in a circle.
    del exact
    gc.collect()
    report("bfloat16", rl.load_model(name, device=device, dtype="bfloat16"), edit)
    return edit


def report(dtype: str, model: Any, edit: rl.Edit) -> None:
    """Print what the model gives to the target's first token, without the edit and with it in the weights."""
    before = first_token(model, edit.request)
    with edit.applied(model):
        after = first_token(model, edit.request)
    print(f"{dtype:8}  p of the first token of {edit.request.target_new!r}: {before:.3f} → {after:.3f}")


@torch.no_grad()
def first_token(model: Any, request: rl.EditRequest) -> float:
    """The probability of the target's first token after the prompt, from logits in float32."""
    target = model.to_tokens(f" {request.target_new}", prepend_bos=False)[0, 0]
    return model(model.to_tokens(request.text, prepend_bos=False))[0, -1].float().softmax(-1)[target].item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and edit."""
    parser = argparse.ArgumentParser(description="Find an edit in float32, and put it on the model in bfloat16.")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder, or a name on the hub")
    parser.add_argument("--second-moment", help="a file of 'rome-lens stats'; needed by any other model")
    parser.add_argument("--device", help="cuda, cuda:1, cpu; the GPU by default where there is one")
    parser.add_argument("--prompt", default="{} is located in the city of", help="with {} where the subject stands")
    parser.add_argument("--subject", default="The Eiffel Tower", help="whom or what it is about")
    parser.add_argument("--target", default="Rome", help="what the model shall say")
    parser.add_argument("--save", help="write the edit to this file")
    options = parser.parse_args(arguments)

    moment = None if options.second_moment is None else rl.SecondMoment.load(options.second_moment)
    request = rl.EditRequest(options.prompt, options.subject, target_new=options.target)
    edit = edit_in_bfloat16(options.model, request, device=options.device, second_moment=moment)
    if options.save:
        edit.save(options.save)


if __name__ == "__main__":
    main()
