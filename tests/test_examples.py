"""The files that the docs quote run as they stand, on tiny models."""

import runpy
from pathlib import Path

import pytest
from architectures import byte_tokenizer, hugging_face_model

from rome_lens.loading.tiny import TINY_PROMPT, TINY_SUBJECT, tiny_model

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_trace_a_fact(capsys):
    trace_a_fact = runpy.run_path(str(EXAMPLES / "trace_a_fact.py"))["trace_a_fact"]
    trace = trace_a_fact(tiny_model("auto"), TINY_PROMPT, TINY_SUBJECT, noise=1.0)
    first, *streams = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{TINY_PROMPT} → {trace.answer.strip()}: high {trace.high:.3f}")
    assert [line.split()[0] for line in streams] == ["resid", "mlp", "attn"]


@pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")
def test_trace_your_own_model():
    trace_model = runpy.run_path(str(EXAMPLES / "trace_your_own_model.py"))["trace_hugging_face_model"]
    trace = trace_model(hugging_face_model("llama"), byte_tokenizer(), "ab cde fgh", "cde", noise=1.0)
    assert (trace.backend, trace.engine) == ("transformer-bridge", "blocks")
