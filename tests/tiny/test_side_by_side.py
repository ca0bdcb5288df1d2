"""What forked processes work on side by side: the same edits and grids, and errors as if there were one process."""

import os
import signal
import sys
from contextlib import contextmanager

import pytest
import torch
from refused import refused
from tiny_rome import REQUEST, rome

import rome_lens as rl
from rome_lens.backends import ReplayError
from rome_lens.editing import solved
from rome_lens.errors import EditError, RunError
from rome_lens.runs import forked_map
from rome_lens.runs.side_by_side import side_by_side
from rome_lens.tracing.calls import BlockCalls

pytestmark = pytest.mark.usefixtures("no_child_left")

REQUESTS = [
    REQUEST,
    rl.EditRequest("ab {} fgh", subject="cde", target_new="b"),
    rl.EditRequest("{} fg", subject="hhh ij", target_new="z"),
    rl.EditRequest("a {}", subject="cd", target_new="xw"),
    rl.EditRequest("a b a b {} is", subject="cd", target_new="y"),
]
CPU = torch.device("cpu")
HERE = os.getpid()


@pytest.fixture
def forks(monkeypatch):
    """Lets this process fork for the smallest model, whatever runs the tests; the number of threads alone decides."""
    if sys.platform != "linux":
        pytest.skip("processes are forked on Linux alone")
    monkeypatch.setattr("rome_lens.runs.side_by_side.may_fork", lambda: True)
    monkeypatch.setattr("rome_lens.runs.side_by_side.n_cores", lambda: 16)
    monkeypatch.setattr("rome_lens.runs.side_by_side._LEAST_BYTES", 0)
    monkeypatch.setattr("rome_lens.runs.side_by_side._LEAST_FLOP", 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@contextmanager
def _threads(number):
    """As if PyTorch had so many: two real ones for models so small would take seconds where the cores are busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: number)
        yield


def _solve(editor, n_threads, **how):
    """What is solved, and what is said of how."""
    heard = []
    with _threads(n_threads):
        found = editor.solve(REQUESTS, progress=lambda *call: heard.append(call), **how)
    return found, heard


def test_threads_that_were_there_before_the_fork_are_not_waited_for():
    def gradient(number):
        x = torch.full((200, 200), float(number), requires_grad=True)
        (x @ x).sum().backward()
        return x.grad, torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        here, _ = gradient(3)
        found = forked_map(gradient, [2, 3], n_workers=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [n_threads for _, n_threads in found] == [1, 1]
    torch.testing.assert_close(found[1][0], here)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_side_by_side_gives_the_edits_of_one_process(name, request, forks):
    editor = rome(request.getfixturevalue(name))
    alone, heard_alone = _solve(editor, 1)
    together, heard = _solve(editor, 2)
    assert [what for _, _, what in heard] == ["editing in 2 processes"] * 3
    assert [done for done, _, _ in heard] == [0, 3, 5]
    assert {what for _, _, what in heard_alone} == {"editing"}
    assert [len(part) for part in together.parts] == [3, 2]
    for one, other in zip(editor.edits(alone), editor.edits(together), strict=True):
        assert one.request == other.request
        assert (one.update - other.update).norm() <= 1e-8 * one.update.norm()
        assert one.notes == other.notes
        assert [x.total for x in one.loss_curve] == pytest.approx([x.total for x in other.loss_curve], rel=1e-8)


def test_the_batch_size_that_is_asked_for_is_kept(gpt2, forks):
    editor = rome(gpt2)
    found, heard = _solve(editor, 2, batch_size=2)
    assert [len(part) for part in found.parts] == [2, 2, 1]
    assert [done for done, _, _ in heard] == [0, 2, 4, 5]
    found, heard = _solve(editor, 2, batch_size=5)
    assert [len(part) for part in found.parts] == [5]
    assert {what for _, _, what in heard} == {"editing"}


def test_one_thread_and_one_request_fork_nothing(gpt2, forks, monkeypatch):
    monkeypatch.setattr(os, "fork", None)
    assert len(_solve(rome(gpt2), 1)[0].requests) == 5
    with _threads(2):
        assert rome(gpt2).edit(REQUEST).request == REQUEST


def _trace(model, n_threads, **how):
    """A trace, and what is said of how."""
    heard = []
    with _threads(n_threads):
        found = rl.causal_trace(
            model, "ab cde fgh i", subject="cde", noise=1.0, samples=3, progress=lambda *call: heard.append(call), **how
        )
    return found, heard


@pytest.mark.parametrize("n_processes", [2, 3])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_side_by_side_gives_the_grids_of_one_process(name, n_processes, request, forks):
    model = request.getfixturevalue(name)
    alone, heard_alone = _trace(model, 1, severed=("mlp", "attn"))
    together, heard = _trace(model, n_processes, severed=("mlp", "attn"))
    assert {what for _, _, what in heard_alone} == {"tracing"}
    assert {what for _, _, what in heard} == {f"tracing in {n_processes} processes"}
    assert (alone.low, alone.high, alone.engine) == (together.low, together.high, together.engine)
    assert together.engine == "blocks"
    for grids, others in ((alone.scores, together.scores), (alone.severed, together.severed)):
        assert grids.keys() == others.keys()
        for stream, grid in grids.items():
            torch.testing.assert_close(others[stream], grid, rtol=1e-12, atol=0)


def test_what_goes_wrong_with_a_block_in_a_process_leads_to_whole_forwards(gpt2, forks, monkeypatch):
    alone, _ = _trace(gpt2, 1)

    def check(*_, **__):
        raise ReplayError("a block called at night gives other numbers") if os.getpid() != HERE else AssertionError

    monkeypatch.setattr(BlockCalls, "check", check)
    together, _ = _trace(gpt2, 2)
    assert together.engine == "plain"
    why = "whole forwards were run, which is slower: a block called at night gives other numbers"
    assert together.notes == (why, *alone.notes)
    torch.testing.assert_close(together.scores["mlp"], alone.scores["mlp"], rtol=1e-9, atol=0)


def test_a_small_trace_forks_nothing(gpt2, forks, monkeypatch):
    monkeypatch.setattr("rome_lens.runs.side_by_side._LEAST_FLOP", 10**9)
    monkeypatch.setattr(os, "fork", None)
    assert _trace(gpt2, 2)[0].engine == "blocks"


def _fail(monkeypatch, fail):
    """Let something happen in the process that is to find a value of certain requests."""
    find = solved.find_values

    def find_values(backend, requests, **how):
        assert os.getpid() != HERE
        for one in requests:
            fail(one.request)
        return find(backend, requests, **how)

    monkeypatch.setattr(solved, "find_values", find_values)


def test_the_first_request_that_fails_raises_its_own_error(gpt2, forks, monkeypatch):
    def fail(request):
        if request in REQUESTS[3:]:
            raise EditError(f"nothing says {request.target_new!r}")

    _fail(monkeypatch, fail)
    editor = rome(gpt2)
    first = next(index for part in _parts(editor) for index in part if index >= 3)
    said = refused(EditError, _solve, editor, 2, batch_size=1)
    assert said == f"nothing says {REQUESTS[first].target_new!r}"


def _parts(editor):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solved, "in_parts", lambda parts, *_, **__: [])
        return editor.solve(REQUESTS, batch_size=1).parts


def test_a_process_that_is_killed_is_an_error_in_words(gpt2, forks, monkeypatch):
    _fail(monkeypatch, lambda request: os.kill(os.getpid(), signal.SIGKILL))
    assert refused(RunError, _solve, rome(gpt2), 2).startswith("one of 2 processes that worked side by side was lost (")


def test_an_interrupt_ends_the_processes(gpt2, forks, monkeypatch):
    _fail(monkeypatch, lambda request: request == REQUESTS[0] and signal.pause())

    def interrupt(done, total, what):
        if done:
            raise KeyboardInterrupt

    with _threads(2), pytest.raises(KeyboardInterrupt):
        rome(gpt2).solve(sorted(REQUESTS, key=lambda one: one == REQUEST), batch_size=1, progress=interrupt)


@pytest.mark.parametrize(
    ("n_tasks", "n_threads", "found"),
    [(1, 2, 1), (2, 1, 1), (2, 2, 2), (9, 2, 2), (3, 4, 3), (2, 4, 2), (2, 8, 1), (40, 32, 16), (40, 33, 1)],
)
def test_as_many_processes_as_there_are_threads_unless_too_few_have_work(n_tasks, n_threads, found, forks, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    assert side_by_side(n_tasks, CPU) == found


def test_where_nothing_is_forked(forks, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr("rome_lens.runs.side_by_side.free_bytes", lambda device: 900)
    assert [side_by_side(4, CPU, n_bytes=n) for n in (0, 50, 100, 150, 151, 400)] == [4, 4, 3, 2, 1, 1]
    assert side_by_side(4, torch.device("meta")) == 1
    with monkeypatch.context() as patch:
        patch.setattr("rome_lens.runs.side_by_side._LEAST_BYTES", 401)
        assert [side_by_side(4, CPU, n_bytes=n) for n in (0, 100)] == [4, 1]
        patch.setattr("rome_lens.runs.side_by_side._LEAST_FLOP", 100)
        assert [side_by_side(4, CPU, n_bytes=100, n_flop=n) for n in (99, 100)] == [1, 3]
    with monkeypatch.context() as patch:
        patch.setattr(torch.accelerator, "is_available", lambda: True)
        assert side_by_side(4, CPU) == 1
    monkeypatch.setattr("rome_lens.runs.side_by_side.may_fork", lambda: False)
    assert side_by_side(4, CPU) == 1
