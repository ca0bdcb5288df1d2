"""Collections that are shared out: among forked processes, an executor's workers, and shards that are joined."""

import os
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from architectures import BRIDGE, architecture
from refused import refused

from rome_lens.backends import as_backend
from rome_lens.editing.second_moment import checkpoint as checkpoints
from rome_lens.editing.second_moment import collect as collecting
from rome_lens.editing.second_moment import elsewhere
from rome_lens.editing.second_moment.elsewhere import PortionMaker, PortionWork
from rome_lens.editing.second_moment.files import KIND
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.editing.second_moment.sums import Sums
from rome_lens.errors import ArtefactError, RunError, SettingError
from rome_lens.loading.source import ModelSource
from rome_lens.runs import can_fork, may_fork, side_by_side
from rome_lens.storage import load_tensors, save_tensors

TEXTS = [
    "The tower is in the city of Paris.",
    "",
    "Water",
    "In the year of 1889 the tower was finished, and the city had a lamp that was seen from everywhere." * 2,
    "Nobody knew who had built it",
]
SOURCES = pytest.mark.parametrize("texts", [TEXTS, "self"], ids=["texts", "self"])


def model():
    return architecture("llama", BRIDGE)


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    """Portions of a few pieces: 230 tokens are four of them."""
    monkeypatch.setattr(collecting, "_PORTION", 50)


@pytest.fixture
def two_processes(monkeypatch):
    """Two threads, and nothing too small for two processes."""
    if not can_fork():
        pytest.skip("no processes are forked here")
    end = time.monotonic() + 10
    while not may_fork() and time.monotonic() < end:  # for a thread of a pool that an earlier test was done with
        time.sleep(0.05)
    monkeypatch.setattr(side_by_side, "_LEAST_FLOP", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(side_by_side, "n_cores", lambda: 2)


def collect(texts=TEXTS, host=None, **settings):
    work = {"layers": [2, 0], "max_tokens": 230, "text_length": 30} | settings
    return SecondMoment.collect(model() if host is None else host, texts=texts, **work)


def same(found, expected):
    """The same numbers, from the same text, up to the order in which they are added."""
    assert list(found) == list(expected)
    for layer, moment in found.items():
        torch.testing.assert_close(moment.matrix, expected[layer].matrix, rtol=1e-12, atol=1e-13)
        assert torch.equal(moment.matrix, moment.matrix.T)
        for name in ("n_tokens", "n_pieces", "source", "seed", "text_length", "shard", "n_portions", "layer"):
            assert getattr(moment, name) == getattr(expected[layer], name), name
        assert moment.fingerprint == expected[layer].fingerprint


@SOURCES
@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_make_the_whole(texts, count, tmp_path):
    whole = collect(texts)
    shards = [collect(texts, shard=f"{number}/{count}") for number in range(1, count + 1)]
    assert sum(shard[2].n_tokens for shard in shards) == 230
    assert {(shard[2].n_portions, shard[0].shard) for shard in shards} == {
        (4, f"{i}/{count}") for i in range(1, 1 + count)
    }
    joined = {layer: SecondMoment.merge(reversed([shard[layer] for shard in shards])) for layer in (2, 0)}
    same(joined, whole)
    if texts != "self":
        assert joined[2].digest == whole[2].digest
    # Through files, which hold shards to the last bit.
    for number, shard in enumerate(shards):
        shard[2].save(tmp_path / f"{number}")
    read = SecondMoment.merge(SecondMoment.load(tmp_path / f"{number}", layer=2) for number in range(count))
    assert torch.equal(read.matrix, joined[2].matrix)
    read.save(tmp_path / "whole")
    assert SecondMoment.load(tmp_path / "whole").matrix.dtype == torch.float32
    assert SecondMoment.load(tmp_path / "whole").warnings == joined[2].warnings


def test_a_shard_writes_its_own_part_of_the_text_alone(monkeypatch):
    from rome_lens.editing.second_moment import text_pieces

    monkeypatch.setattr(text_pieces, "_MOST_ROWS", 2)
    written, sample = [], text_pieces.sample

    def counted(backend, prompts, **settings):
        written.append(len(prompts))
        return sample(backend, prompts, **settings)

    monkeypatch.setattr(text_pieces, "sample", counted)
    collect("self", shard="2/2")
    assert sum(written) == 4


def test_a_shard_is_no_statistic_to_edit_with():
    (warning,) = collect(shard="2/3")[2].warnings
    assert warning == "this is shard 2/3 of a text; join it with the others (SecondMoment.merge)"


def test_more_shards_than_portions():
    said = refused(SettingError, collect, shard="6/7")
    assert said == ("shard 6/7 has nothing to do: the text has portions of 50 tokens for 4 of the 7 shards; join those")
    shards = [collect(shard=f"{number}/7")[2] for number in range(1, 5)]
    same({2: SecondMoment.merge(shards)}, {2: collect()[2]})


def _refused_shards():
    first, second = (collect(shard=f"{number}/2")[2] for number in (1, 2))
    whole = collect()
    return {
        "none": ([], "there are no second moments to join; expected those of all shards of one collection"),
        "a path": (["c"], "moments is ['c']; expected second moments"),
        "whole": ([whole[2]], "a second moment of layer 2 is of no shard; expected shards alone"),
        "missing": ([first], "the shards do not make a whole: 2/2 is missing; expected each of 2 once"),
        "twice": (
            [first, second, first],
            "the shards do not make a whole: 1/2 is there twice; expected each of 2 once",
        ),
        "count": ([first, collect(shard="2/3")[2]], "the shards are not of one collection: shards 1/2 and 2/3"),
        "layer": ([first, collect(shard="2/2")[0]], "the shards are not of one collection: layer 2 and 0"),
        "seed": (
            [collect("self", shard="1/2")[2], collect("self", shard="2/2", seed=1)[2]],
            "the shards are not of one collection: seed 0 and 1",
        ),
        "text": (
            [first, collect([text.upper() for text in TEXTS], shard="2/2")[2]],
            "the shards are not of one collection: two texts, texts and texts",
        ),
        "length": (
            [first, collect(shard="2/2", text_length=29)[2]],
            "the shards are not of one collection: text_length 30 and 29",
        ),
        "model": (
            [first, collect(host=architecture("neox", BRIDGE), shard="2/2")[2]],
            "the shards are not of one collection: two models, other weights in layer 2",
        ),
    }


def test_shards_that_do_not_belong_together():
    for name, (shards, said) in _refused_shards().items():
        assert refused(SettingError, SecondMoment.merge, shards) == said, name


def test_files_of_shards_that_are_damaged(tmp_path):
    path = tmp_path / "c"
    collect(shard="1/2")[2].save(path)
    tensors, settings = load_tensors(path, kind=KIND)
    for change, said in (
        ({"shard": "3/2"}, "shard '3/2'"),
        ({"n_portions": None}, "it is a shard without n_portions"),
        ({"fingerprint": None}, "it is a shard without fingerprint"),
        ({"shard": None}, "a triangle of torch.float64"),
    ):
        save_tensors(path, kind=KIND, tensors=tensors, settings={**settings, **change})
        assert said.replace("'3/2'", "3/2") in refused(ArtefactError, SecondMoment.load, path).replace("'3/2'", "3/2")


@SOURCES
def test_forked_processes(two_processes, monkeypatch, texts):
    with monkeypatch.context() as patch:
        patch.setattr(side_by_side, "_LEAST_FLOP", 10**12)
        here = collect(texts)
    monkeypatch.setattr(Sums, "__init__", _counted(Sums.__init__, made := []))
    same(found := collect(texts), here)
    assert made == [os.getpid()]  # the others are made elsewhere
    assert found[2].digest == here[2].digest
    monkeypatch.setattr(elsewhere, "_MOST_AWAY", 2)
    again = collect(texts)
    assert all(torch.equal(again[layer].matrix, found[layer].matrix) for layer in found)


def _counted(init, made):
    def counted(*given):
        made.append(os.getpid())
        init(*given)

    return counted


@SOURCES
@pytest.mark.parametrize("after", [40, 150])
def test_forked_processes_are_taken_up_to_the_last_bit(two_processes, monkeypatch, tmp_path, texts, after):
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0)
    whole = collect(texts)

    def interrupt(done, total, what):
        if what == "collecting keys" and done > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(texts, checkpoint=tmp_path / "work", progress=interrupt)
    resumed = collect(texts, checkpoint=tmp_path / "work")
    assert all(torch.equal(resumed[layer].matrix, whole[layer].matrix) for layer in whole)
    assert resumed[2].digest == whole[2].digest
    assert not (tmp_path / "work").exists()


@SOURCES
def test_checkpoints_with_portions_of_another_size(monkeypatch, tmp_path, texts):
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)
    whole = collect(texts)

    def interrupt(done, total, what):
        if what == "collecting keys" and done > 100:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collecting, "_PORTION", 25)
        with pytest.raises(KeyboardInterrupt):
            collect(texts, checkpoint=tmp_path / "work", progress=interrupt)
    same(resumed := collect(texts, checkpoint=tmp_path / "work"), whole)
    assert resumed[2].digest == whole[2].digest


def test_a_shard_is_taken_up(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)
    whole = collect(shard="2/2")

    def interrupt(done, total, what):
        assert done <= total == 150 or what != "collecting keys"
        if what == "collecting keys" and done > 60:  # the first of its two portions has 60
            raise KeyboardInterrupt

    work = {"shard": "2/2", "checkpoint": tmp_path / "work"}
    with pytest.raises(KeyboardInterrupt):
        collect(**work, progress=interrupt)
    said = refused(ArtefactError, collect, shard="1/2", checkpoint=tmp_path / "work")
    assert "belongs to other work (shard '2/2' against '1/2')" in said
    assert "belongs to other work" in refused(ArtefactError, collect, checkpoint=tmp_path / "work")
    resumed = collect(**work)
    assert torch.equal(resumed[2].matrix, whole[2].matrix)
    assert resumed[2].digest == whole[2].digest


def test_a_process_that_is_lost(two_processes, monkeypatch):
    own, add = os.getpid(), Sums.add

    def lost(*given):
        if os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        return add(*given)

    monkeypatch.setattr(Sums, "add", lost)
    said = refused(RunError, collect)
    assert said.startswith("a worker was lost (killed, or out of memory); with a checkpoint (in a shell: --resume)")


@SOURCES
def test_workers_of_an_executor(texts):
    whole = collect(texts)
    with ThreadPoolExecutor(2) as executor:
        found = collect(texts, host=model, executor=executor)
        same(
            {2: SecondMoment.merge([collect(texts, model, executor=executor, shard=f"{i}/2")[2] for i in (1, 2)])},
            {2: whole[2]},
        )
    same(found, whole)
    assert found[2].digest == whole[2].digest


def test_what_other_machines_are_sent(monkeypatch):
    """The work is pickled with no weights in it, and a worker that has another model is refused."""
    works = []
    compute = elsewhere.compute
    monkeypatch.setattr(elsewhere, "compute", lambda work, task: works.append(work) or compute(work, task))
    with ThreadPoolExecutor(1) as executor:
        collect("self", host=model, executor=executor)
        work = pickle.loads(pickle.dumps(works[0]))
        assert isinstance(work, PortionWork)
        assert isinstance(work.open(lambda *_: None), PortionMaker)
        assert len(pickle.dumps(work)) < 2000
        hosts = iter([model(), architecture("neox", BRIDGE)])
        said = refused(RunError, collect, host=lambda: next(hosts), executor=executor)
    assert said.startswith("a worker has another model than this process: ")
    assert said.endswith("load the same one everywhere")


def test_executors_that_cannot_have_the_model():
    from rome_lens.runs import process_pool

    with process_pool(1) as executor:
        said = refused(SettingError, collect, executor=executor)
    assert said.startswith("the model is an object, and other processes cannot share it; give its name")


def test_a_name_is_loaded(monkeypatch):
    made = ModelSource.open
    monkeypatch.setattr(ModelSource, "open", lambda *given: model() if given[0].name == "any" else made(*given))
    same(collect(host="any"), collect())
    assert as_backend(model()).model_name == collect(host="any")[2].model_name
