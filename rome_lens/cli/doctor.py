"""`rome-lens doctor`: is everything here that a trace needs, does it work, and is this machine large enough?"""

import importlib.util
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import typer

from rome_lens.checks import whole_number
from rome_lens.cli.options import JSON, Panel, takes_options
from rome_lens.cli.output import print_json, progress_bar, stdout
from rome_lens.errors import SettingError, one_line
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


@dataclass(frozen=True)
class NeedFinding(Finding):
    """A line about memory and time, with its numbers for machines."""

    bytes: int = 0
    seconds: float | None = None


_MODEL = Panel("What a model takes")
_N_FACTS = 1000


@dataclass(frozen=True)
class _NeedsOptions:
    """The model that is asked about, and the work."""

    model: str | None = _MODEL(
        "Say what this model takes here, by its configuration alone, and look at nothing else: smollm2-135m, a folder "
        "in Hugging Face's layout, or a hub name.",
        "-m",
        metavar="NAME",
        shown=False,
    )
    device: str | None = _MODEL("cpu, cuda, cuda:1, …", metavar="DEVICE", shown="the GPU where there is one")
    dtype: str | None = _MODEL("float32, float64, bfloat16 or float16.", metavar="DTYPE", shown="float32")
    facts: int | None = _MODEL("Facts of a set.", metavar="N", shown=str(_N_FACTS))

    def findings(self) -> "list[Finding] | None":
        """What the model takes; None where none is named.

        Raises:
            SettingError: an option is out of its range, or stands without the model.
            ModelError: the model's configuration cannot be read.
        """
        if self.model is None:
            for name, value in vars(self).items():
                if value is not None:
                    raise SettingError(f"--{name} is about the work on a model; name the model with --model")
            return None
        n_facts = _N_FACTS if self.facts is None else whole_number("facts", self.facts, least=1)
        return list(_needed(self.model, self.device, self.dtype, n_facts))


@takes_options
def doctor(of_model: _NeedsOptions, as_json: bool = JSON) -> None:
    """Say what is installed and cached, and check that a tiny model can be traced and is left as it was.

    With --model it says what that model, a trace, an edit, statistics and a set of facts
    take in memory and, roughly, in time on this machine as it is now; no weight is read.

    Exits with 1 if a check fails, or if something does not fit into the free memory.
    """
    with progress_bar("looking"):
        findings = of_model.findings() or [*_installed(), *_cached(), *_working()]
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


def _needed(name: str, device: str | None, dtype: str | None, n_facts: int) -> Iterator[Finding]:
    """What a model takes here, against what is free."""
    from rome_lens.cli.needs import Place, needs_of
    from rome_lens.loading.options import as_device, as_dtype
    from rome_lens.loading.shape import Shape
    from rome_lens.memory import size_in_words

    where, precision = as_device(device), as_dtype(dtype)
    shape = Shape.of(name)
    place = Place.measured(shape, where, precision)
    left = place.free
    yield Finding("free", f"{size_in_words(left)} on {where}")
    for need in needs_of(shape, place, n_facts):
        took = "" if need.seconds is None else f", about {_time(need.seconds)}"
        fits = need.n_bytes <= left
        short = "" if fits else f" ({size_in_words(max(left, 0))} are free beside the model)"
        yield NeedFinding(
            need.what,
            f"{size_in_words(need.n_bytes)}{took}: {need.of}{short}",
            fits,
            bytes=need.n_bytes,
            seconds=need.seconds,
        )
        if need.seconds is None:
            left -= need.n_bytes


def _time(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{max(1, round(seconds))} s"


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
