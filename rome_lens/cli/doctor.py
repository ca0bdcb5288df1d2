"""`rome-lens doctor`: is everything here that a trace needs, and does it work?"""

import importlib.util
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import typer

from rome_lens.cli.options import JSON, takes_options
from rome_lens.cli.output import print_json, progress_bar, stdout
from rome_lens.errors import one_line
from rome_lens.version import __version__

_NEEDED = ("torch", "transformer-lens", "transformers", "gguf", "safetensors", "plotly", "pandas")
# With what is said where it is not installed, which is no failure.
_OPTIONAL = {"kaleido": "; only --png needs it: pip install 'rome-lens[images]'"}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `ok` is None where it is a statement and no check."""

    what: str
    found: str
    ok: bool | None = None


@takes_options
def doctor(as_json: bool = JSON) -> None:
    """Say what is installed and cached, and check that a tiny model can be traced and is left as it was.

    Exits with 1 if a check fails.
    """
    with progress_bar("looking"):
        findings = [*_installed(), *_cached(), *_working()]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        console = stdout()
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            mark = {True: "ok    ", False: "FAILED", None: "      "}[finding.ok]
            console.print(f"{mark} {finding.what:{width}}  {finding.found}", soft_wrap=True)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


def _installed() -> Iterator[Finding]:
    yield Finding("rome-lens", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package, missing in (dict.fromkeys(_NEEDED, "") | _OPTIONAL).items():
        try:
            yield Finding(package, version(package))
        except PackageNotFoundError:
            yield Finding(package, f"not installed{missing}", ok=None if missing else False)
    if importlib.util.find_spec("torch") is not None:
        import torch

        yield Finding("threads", str(torch.get_num_threads()))
        yield Finding("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")


def _cached() -> Iterator[Finding]:
    from rome_lens.loading import cached_conversion, cached_default_model

    fetched, converted = cached_default_model(), cached_conversion()
    if not fetched.present and not converted.intact:
        yield Finding("default model", f"not fetched yet; the first trace fetches it to {fetched.path}")
    elif fetched.intact:
        yield Finding("default model", f"{fetched.size / 1e6:.0f} MB at {fetched.path}", ok=True)
    elif converted.intact:
        state = f"damaged at {fetched.path}" if fetched.present else "not at hand"
        yield Finding("default model", f"{state}, and not needed: the converted copy is all that is read", ok=True)
    else:
        yield Finding("default model", f"damaged at {fetched.path}; the next trace fetches it anew", ok=False)
    if not converted.present:
        yield Finding("converted copy", f"not made yet; the first trace makes it in {converted.path}")
    elif converted.intact:
        yield Finding("converted copy", f"{converted.size / 1e6:.0f} MB in {converted.path}", ok=True)
    else:
        wrong = f"damaged or outdated in {converted.path}; the next trace makes it anew"
        yield Finding("converted copy", wrong, ok=False)


def _working() -> Iterator[Finding]:
    from rome_lens.loading.options import HOOKED_TRANSFORMER, TRANSFORMER_BRIDGE, has_hooked_transformer

    for backend in (HOOKED_TRANSFORMER, TRANSFORMER_BRIDGE):
        if backend == HOOKED_TRANSFORMER and not has_hooked_transformer():
            yield Finding(backend, "not in this TransformerLens (4.0 removed it)")
            continue
        try:
            yield _trace_tiny(backend)
        except Exception as error:  # a broken installation fails in its own way, and to say so is the doctor's work
            yield Finding(backend, f"{type(error).__name__}: {one_line(error)}", ok=False)


def _trace_tiny(backend: str) -> Finding:
    """Trace a tiny model the fast and the plain way, and look whether its weights are what they were."""
    import torch

    from rome_lens.loading.tiny import TINY_PROMPT, TINY_SUBJECT, tiny_model
    from rome_lens.tracing import causal_trace

    model = tiny_model(backend)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast, plain = (
        causal_trace(model, TINY_PROMPT, subject=TINY_SUBJECT, noise=1.0, engine=engine) for engine in ("auto", "plain")
    )
    apart = max((fast.scores[s] - plain.scores[s]).abs().max().item() for s in fast.scores)
    untouched = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ok = apart < 1e-5 and untouched and fast.engine == "blocks"
    found = f"a tiny model traces (fast and plain {apart:.0e} apart)"
    found += " and is left as it was" if untouched else " but its weights changed"
    return Finding(backend, found, ok=ok)
