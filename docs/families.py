"""Try every decoder family of transformers, and write what came of it into docs/models.md: python docs/families.py.

A family is a model type that has a class for causal language modelling. Each is tried with a tiny random model in a
folder, as somebody who has such a folder would: loaded, held against transformers' own logits, traced, edited, the edit
taken back, and exported. The column of the installed TransformerLens is written; those of other versions stay.

python docs/families.py FAMILY... prints what comes of some families and writes nothing.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import rome_lens as rl

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from architectures import byte_tokenizer

PAGE = Path(__file__).parent / "models.md"
BLOCK = re.compile(r"(<!-- families -->\n).*?(<!-- end of families -->)", re.S)
COLUMNS = ("3.9", "4.3")

N_LAYERS, N_TOKENS = 4, 48
IDS = {"bos_token_id": 0, "eos_token_id": 0}
# What a tiny configuration sets where the family's has a setting of that name.
SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "sliding_window": 16,
    "ffn_dim": 48,
    "n_inner": 48,
    "ffn_hidden_size": 48,
    "rotary_dim": 8,
    "word_embed_proj_dim": 32,
    "global_head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 258,
    "num_kv_shared_layers": 0,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 1,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "is_decoder": True,
}
# What some families need beside that.
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": 16},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "hunyuan_v1_dense": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "head_dim": 8},
    "hunyuan_v1_moe": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "head_dim": 8},
    "falcon": {"multi_query": True, "alibi": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 16},
    "mpt": {"max_seq_len": 64},
    "xlnet": {"d_inner": 48},
}


# Those for which nobody has found settings that make a tiny model within seconds.
UNTRIED = {
    *("gemma4", "gemma4_assistant", "gemma4_text", "gemma4_unified", "gemma4_unified_assistant", "gemma4_unified_text"),
    *("blt", "cpmant", "git", "phi4_multimodal", "roc_bert", "zamba2", "zaya"),
}


class NoTinyModelError(Exception):
    """No tiny model of a family can be made this way."""


def main(asked: Sequence[str]) -> None:
    """Try all families and write the page, or try some and print."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if asked:
        for family in asked:
            print(family, "|", *tried(family), sep=" ")
        return
    found = {}
    for family in families():
        found[family], why = tried(family)
        print(f"{family}: {found[family]} {why}", file=sys.stderr, flush=True)
    PAGE.write_text(written(PAGE.read_text("utf-8"), column(), found), "utf-8")


def column() -> str:
    """The column of the installed TransformerLens."""
    return ".".join(version("transformer-lens").split(".")[:2])


def families() -> list[str]:
    """All decoder families of the installed transformers."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - UNTRIED)


def read(page: str) -> dict[str, dict[str, str]]:
    """The table of the page: column -> family -> cell."""
    block = BLOCK.search(page)
    assert block is not None, "docs/models.md has no place for the families"
    rows = [line.strip("| ").split(" | ") for line in block[0].splitlines() if line.startswith("| `")]
    return {
        name: {row[0].strip("`"): row[index + 1].strip() for row in rows if len(row) > index + 1}
        for index, name in enumerate(COLUMNS)
    }


def written(page: str, name: str, found: dict[str, str]) -> str:
    """The page with a column written anew."""
    table = read(page) | {name: found}
    names = sorted({family for cells in table.values() for family in cells})
    # A family of which no version made anything is none that somebody could have.
    names = [family for family in names if any(table[c].get(family, NO_MODEL) != NO_MODEL for c in COLUMNS)]
    head = "| family | " + " | ".join(f"TransformerLens {c}" for c in COLUMNS) + " |"
    rows = [f"| `{family}` | " + " | ".join(table[c].get(family, "") for c in COLUMNS) + " |" for family in names]
    text = "\n".join([head, "|---" * (len(COLUMNS) + 1) + "|", *rows])
    return BLOCK.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page)


NO_MODEL = "no tiny model"


def tried(family: str) -> tuple[str, str]:
    """What comes of a family, as its cell says it, and the errors in full."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(family, Path(folder) / family)
        except NoTinyModelError as error:
            return NO_MODEL, str(error)
        return held(Path(folder) / family)


def save(family: str, folder: Path) -> None:
    """A tiny random model of a family, in a folder.

    Raises:
        NoTinyModelError: there is none.
    """
    errors = []
    for config in configurations(family):
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made = config()
                kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(made)]
                # Looked at before memory is taken: a setting that has another name here leaves billions of weights.
                with torch.device("meta"):
                    size = sum(parameter.numel() for parameter in kind(made).parameters())
                if size > 3e6:
                    raise ValueError(f"{size} weights")
                model = kind._from_config(made, attn_implementation="eager").eval()
                with torch.no_grad():
                    for parameter in model.parameters():
                        # As large as lets attention look somewhere and the logits differ, whatever the width.
                        if parameter.ndim > 1:
                            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
                    model(torch.arange(2, N_TOKENS)[None], use_cache=False)
            model.save_pretrained(folder)
        except Exception as error:  # two hundred families, each with rules of its own
            errors.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:150])
            continue
        byte_tokenizer().save_pretrained(folder)
        return
    raise NoTinyModelError(errors[-1] if errors else "no configuration")


def configurations(family: str) -> Iterator[Any]:
    """Ways to make a tiny configuration, the likeliest first."""
    try:
        default = transformers.AutoConfig.for_model(family)
    except Exception as error:  # a family without defaults
        raise NoTinyModelError(str(error).splitlines()[0]) from error
    if getattr(default, "is_encoder_decoder", False):
        raise NoTinyModelError("an encoder-decoder")
    kind: Any = type(default)
    text = default.get_text_config()

    def settings(config: Any, keys: int | None) -> dict[str, Any]:
        known = config.to_dict()
        own = OWN.get(family, {})
        values = SIZES | IDS | own
        if keys is not None:
            values = values | {"num_key_value_heads": keys, "num_kv_heads": keys}
        chosen = {
            config.attribute_map.get(name, name): value
            for name, value in values.items()
            # What a family leaves open stays so, but for the number of its keys.
            if known.get(config.attribute_map.get(name, name)) is not None
            or name in own
            or ("key_value" in name and name in known)
        }
        # Lists that have an entry a layer are made anew by the class itself.
        return chosen | {"pad_token_id": None}

    for keys in (2, 4, 1, None):
        for drop in ((), ("pad_token_id",), ("head_dim", "pad_token_id"), ("num_hidden_layers",)):
            chosen = {name: value for name, value in settings(text, keys).items() if name not in drop}
            if text is default:
                yield lambda chosen=chosen: kind(**chosen)
            else:
                yield lambda chosen=chosen: type(text)(**chosen)


def held(folder: Path) -> tuple[str, str]:
    """The cell of a family whose model lies in a folder, and the errors in full."""
    try:
        model = rl.load_model(folder, device="cpu")
    except rl.RomeLensError as error:
        return f"refused: {_why_not_loaded(str(error))}", str(error)
    hosted = type(model).__name__
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = (torch.arange(N_TOKENS) * 37 % 256 + 2)[None]
    with torch.no_grad():
        wanted = expected(tokens, use_cache=False).logits
        options = {"use_cache": False} if hosted == "TransformerBridge" else {}
        apart = float((model(tokens, **options)[..., : wanted.shape[-1]] - wanted).abs().max() / wanted.abs().max())
    told = [hosted, "< 1e-5" if apart < 1e-5 else f"{apart:.0e}"]
    errors = []
    for part in (_traced, _edited):
        said, why = part(model, folder)
        told.append(said)
        errors += [why] if why else []
    return ", ".join(told), "; ".join(errors)


def _traced(model: Any, folder: Path) -> tuple[str, str]:
    ask = {"subject": "the tower", "answer": "x", "samples": 2, "noise": 0.5}
    for words in ("resid mlp attn", "resid mlp", "resid attn", "resid", "mlp attn", "mlp"):
        streams = words.split()
        try:
            trace = rl.causal_trace(model, "the tower is in", streams=streams, **ask)
        except rl.RomeLensError as error:
            why = str(error)
            continue
        less = "" if len(streams) == 3 else f" ({' and '.join(streams)})"
        reasons = [note for note in trace.notes if "whole forwards were run" in note]
        return ("blocks" if trace.engine == "blocks" else "whole forwards") + less, " ".join(reasons)
    return "not traced", why


def _edited(model: Any, folder: Path) -> tuple[str, str]:
    """An edit of the first layer that can be edited, made, put on, taken off and exported."""
    from rome_lens.backends import as_backend

    tokens = (torch.arange(12) * 37 % 256 + 2)[None]
    backend, errors = as_backend(model), []
    for layer in range(backend.n_layers):
        try:
            moment = torch.eye(backend.w_out(layer).matrix.shape[0])
            editor = rl.ROME(model, layer=layer, second_moment=moment, context_templates=["{}"], v_num_grad_steps=3)
            edit = editor.edit(rl.EditRequest("{} is in", "the tower", "Rome"))
            before = backend.logits(tokens, keep=12)
            with edit.applied(model):
                after = backend.logits(tokens, keep=12)
            assert torch.equal(backend.logits(tokens, keep=12), before), "an edit taken off leaves something behind"
            assert not torch.equal(after, before), "an edit does nothing"
            break
        except rl.RomeLensError as error:
            errors.append(str(error))
    else:
        return f"no edits: {_why_not_edited(errors[-1])}", errors[-1]
    said = f"edits from layer {layer} on" if errors else "edits"
    try:
        with tempfile.TemporaryDirectory() as out:
            edit.to_hf(folder, Path(out) / "edited")
            exported = transformers.AutoModelForCausalLM.from_pretrained(
                Path(out) / "edited", attn_implementation="eager"
            ).eval()
            with torch.no_grad():
                read = exported(tokens, use_cache=False).logits
        apart = float((read - after[..., : read.shape[-1]]).abs().max() / read.abs().max())
        assert apart < 1e-4, f"what is exported differs by {apart:.0e}"
    except rl.RomeLensError as error:
        return f"{said}, no export", str(error)
    return said, ""


def _why_not_edited(error: str) -> str:
    """An error in a few words."""
    for words, why in {
        "has no W_out of its own": "experts, or no MLP",
        "is not its key times W_out": "a norm behind W_out",
        "norms what leaves its MLPs": "a norm behind W_out",
        "does not show what enters": "W_out not shown",
        "has no hook point": "W_out not shown",
    }.items():
        if words in error:
            return why
    return error.split(";")[0].split("(")[0].strip()[:60]


def _why_not_loaded(error: str) -> str:
    """An error in a few words."""
    if "is not a language decoder" in error:
        return "no decoder"
    if "computes other logits" in error:
        return "other logits"
    if "cannot be run" in error:
        return "cannot be run"
    if "cannot host" in error:
        return "not hosted"
    return error.split(";")[0].split("(")[0].strip()[:60]


if __name__ == "__main__":
    main(sys.argv[1:])
