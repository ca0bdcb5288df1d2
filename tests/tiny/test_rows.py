"""The texts of an edit as one batch: which rows there are, where they are read, and how much each counts."""

import pytest
import torch
from architectures import BACKENDS, architecture
from refused import refused

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing import batches
from rome_lens.editing.prompts import check_templates, make_batch, split_requests, tokenise_request
from rome_lens.errors import AnswerError, PromptError

# The subject's letters stand in the prefix, and twice in the prompt: only the place of the {} counts.
REQUEST = rl.EditRequest("cd {} cd", subject="cd", target_new="xyz")
SHORT = rl.EditRequest("{}", subject="q", target_new="x")
TEMPLATES = ("{}", "cd. {}")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


@pytest.fixture(scope="module")
def host():
    return as_backend(architecture("gpt2", BACKENDS[0]))


def tokenised(host, request=REQUEST, *, templates=TEMPLATES, prepend_bos=False, essence_at="last"):
    return tokenise_request(host, request, templates=templates, prepend_bos=prepend_bos, essence_at=essence_at)


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_a_request_under_its_templates(host, prepend_bos):
    bos, found = int(prepend_bos), tokenised(host, prepend_bos=prepend_bos)
    texts = [host.tokenizer.decode(row.ids[bos:]) for row in found.rows]
    assert texts == ["cd cd cd xyz", "cd. cd cd cd xyz", "cd is a"]
    assert [row.subject_span for row in found.rows] == [(3 + bos, 5 + bos), (7 + bos, 9 + bos), (bos, 2 + bos)]
    assert [len(row.answer_ids) for row in found.rows] == [4, 4, 0]
    assert all(len(row.bos) == bos for row in found.rows)


def test_an_essence_that_is_read_at_the_subject(host):
    essence = tokenised(host, prepend_bos=True, essence_at="subject").essence
    assert host.tokenizer.decode(essence.ids) == "<s>cd"
    assert (essence.subject_span, essence.answer_ids, essence.n_prompt) == ((1, 3), (), 3)


@pytest.mark.parametrize("bare_weight", [None, 0.5, 1])
def test_rows_of_several_requests(host, bare_weight):
    requests = [tokenised(host), tokenised(host, SHORT)]
    batch = make_batch(requests, bare_weight=bare_weight, device=torch.device("cpu"))
    assert len(batch.bare_row) == 2
    assert batch.request.tolist() == [0, 0, 0, 1, 1, 1]
    assert (batch.bare_row.tolist(), batch.essence_row.tolist()) == ([0, 3], [2, 5])
    assert batch.subject_last.tolist() == [4, 8, 1, 0, 4, 0]
    bare, other = (0.5, 0.5) if bare_weight is None else (bare_weight, 1 - bare_weight)
    assert batch.row_weight.tolist() == [bare, other, 0, bare, other, 0]
    # Whole rows but for the target's last token; the longest is "cd. cd cd cd xy".
    assert batch.tokens.shape == (6, 15)
    assert host.tokenizer.decode(batch.tokens[0]) == "cd cd cd xyyyyy"
    assert batch.n_suffix == 7
    targets = batch.targets
    assert torch.equal(targets.request, batch.request[targets.row])
    for row, column, target in zip(targets.row, targets.column, targets.token, strict=True):
        assert requests[batch.request[row]].rows[row % 3].ids[column + 1] == target
    assert torch.bincount(targets.row).tolist() == [4, 4, 0, 2, 2]
    assert batch.essence_column.tolist() == [6, 5]
    rows, columns = batch.read_at
    assert (rows.tolist(), columns.tolist()) == ([*targets.row, 2, 5], [*targets.column, 6, 5])
    shares = torch.zeros(2, dtype=torch.float64).index_add(0, targets.request, targets.weight)
    torch.testing.assert_close(shares, torch.ones(2, dtype=torch.float64))


def test_a_suffix_begins_at_each_rows_subject(host):
    batch = make_batch([tokenised(host), tokenised(host, SHORT)], bare_weight=None, device=torch.device("cpu"))
    positions = torch.arange(15.0).expand(6, -1)[..., None]
    suffix = batch.suffix(positions)[..., 0]
    assert suffix.shape == (6, 7)
    for row, first in enumerate(batch.subject_last.tolist()):
        assert suffix[row].tolist() == [min(first + i, 14) for i in range(7)]


def test_a_request_alone_has_its_share_whatever_the_weight(host):
    batch = make_batch([tokenised(host, templates=("{}",))], bare_weight=0.25, device=torch.device("cpu"))
    assert batch.row_weight.tolist() == [1, 0]


@pytest.mark.parametrize(("given", "found"), [([], ("{}",)), ("a. {}", ("{}", "a. {}")), (["a. {}", "{}"], None)])
def test_the_bare_template_comes_first(given, found):
    assert check_templates(given) == (found or ("{}", "a. {}"))


@pytest.mark.parametrize(
    ("size", "lengths"), [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (5, [5]), (9, [5]), (None, [4, 1])]
)
def test_requests_are_split_into_batches(host, size, lengths):
    requests = [tokenised(host)] * 5
    parts = list(split_requests(host, requests, layer=1, batch_size=size))
    assert [len(part) for part in parts] == lengths
    assert not list(split_requests(host, [], layer=1, batch_size=size))


@pytest.mark.parametrize(("free", "lengths"), [(0, [1] * 70), (10**15, [4] * 17 + [2])])
def test_batches_are_as_large_as_memory_allows(host, free, lengths, monkeypatch):
    monkeypatch.setattr(batches, "free_bytes", lambda device: free)
    requests = [tokenised(host)] * 70
    assert [len(part) for part in split_requests(host, requests, layer=1, batch_size=None)] == lengths


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (
            rl.EditRequest("{} is", "ab", "x" * 60),
            PromptError,
            "the prompt 'ab is' with its longest context template and target takes 69 positions, and gpt2 has 64; "
            "shorten it, or give shorter context templates",
        ),
        (
            rl.EditRequest("{} is", "a\udcff", "x"),
            PromptError,
            "'a\\udcff is x' holds '\\udcff', which is half a character; write the text in UTF-8",
        ),
        (
            rl.EditRequest("{} is", "ab", "<s>"),
            AnswerError,
            "the answer '<s>' becomes '<s>', which is no word to this model; name another answer",
        ),
    ],
    ids=["long", "half a character", "special"],
)
def test_requests_that_do_not_fit_the_model(host, request_, error, message):
    assert refused(error, tokenised, host, request_) == message
