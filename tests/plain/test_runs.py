"""Long runs: what is kept, what is gone on with, what is refused, and who computes it."""

import concurrent.futures
import gc
import io
import json
import re
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refused import refused
from toy_run import ToyMaker, ToyWork, contents, noted, record_files, toy_key, toy_summary, toy_tasks

from rome_lens.cli.output import progress_bar
from rome_lens.errors import ArtefactError, ModelError, RunError, SettingError
from rome_lens.runs import Folder, RecordMaker, RunFolder, Shard, Task, Work, merge, process_pool, run

SETTINGS = {"data": "numbers", "limit": 12}


@pytest.fixture(params=["here", "thread"])
def executor(request):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool if request.param == "thread" else None


def _run(path, work=None, n_tasks=4, settings=None, **how):
    with RunFolder.open(path, settings or SETTINGS) as folder:
        run(work or ToyWork(), toy_tasks(n_tasks), folder, **how)
        folder.write_summary(toy_summary(folder))


def test_a_run_leaves_its_settings_its_records_and_a_summary(tmp_path):
    _run(tmp_path / "a" / "run", n_tasks=1)
    found = {path.relative_to(tmp_path / "a" / "run").as_posix() for path in (tmp_path / "a").rglob("*.json")}
    records = {f"records/toy/00000{number}.json" for number in range(3)}
    assert found == {"settings.json", "prepared.json", "plan.json", "summary.json", *records}
    record = (tmp_path / "a" / "run" / "records" / "toy" / "000002.json").read_text()
    assert record == '{\n "number": 2,\n "of the task": 3,\n "square": 4,\n "word": "\\u00e9\\ud800"\n}\n'


def test_a_record_is_on_disk_as_soon_as_it_is_made_and_counted_then(tmp_path):
    heard = []

    def progress(done, total, what):
        heard.append((done, total, what, len(record_files(tmp_path / "run"))))

    _run(tmp_path / "run", n_tasks=1, progress=progress)
    records = [call for call in heard if call[2] == "records"]
    assert records == [(0, 3, "records", 0), (0, 3, "records", 0), *((n, 3, "records", n) for n in (1, 2, 3))]
    assert (heard[1][2], heard[5][2]) == ("loading", "records · squaring 1/3")


def test_what_is_finished_is_not_made_again_and_a_task_cut_half_way_is_made_again_in_whole(tmp_path, diary):
    whole = tmp_path / "whole"
    _run(whole)
    _run(tmp_path / "run", n_tasks=3)
    lost = tmp_path / "run" / "records" / f"{toy_key(4)}.json"
    lost.unlink()
    before = record_files(tmp_path / "run")
    heard = []
    _run(tmp_path / "run", ToyWork(diary=diary), progress=lambda *call: heard.append(call))
    assert noted(diary, "ran") == ["ran numbers from 3", "ran numbers from 9"]
    assert before.items() <= record_files(tmp_path / "run").items()
    assert heard[0] == (8, 12, "records")
    assert contents(tmp_path / "run") == contents(whole)


def test_a_run_that_is_finished_opens_no_maker_and_writes_no_file(tmp_path, diary):
    _run(tmp_path / "run")
    before = _written(tmp_path / "run")
    _run(tmp_path / "run", ToyWork(diary=diary))
    assert not list(diary.iterdir())
    assert _written(tmp_path / "run") == before


def _written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}


@pytest.mark.parametrize("damage", [b"", b'{"number": 4', b"[]", b"\xff", b"[" * 100_000])
def test_a_record_whose_file_is_damaged_is_made_again(tmp_path, damage):
    _run(tmp_path / "run")
    good = contents(tmp_path / "run")
    damaged = tmp_path / "run" / "records" / f"{toy_key(4)}.json"
    damaged.write_bytes(damage)
    assert toy_key(4) not in RunFolder.existing(tmp_path / "run").finished()
    with pytest.raises(ArtefactError, match=re.escape(repr(str(damaged)))):
        RunFolder.existing(tmp_path / "run").read(toy_key(4))
    _run(tmp_path / "run")
    assert contents(tmp_path / "run") == good


OTHER_SETTINGS = [
    ({"limit": 5}, {"limit": 6}, "limit=5", "limit=6"),
    ({"z": 1, "a": 1}, {"z": 2, "a": 2}, "a=1", "a=2"),
    ({"limit": 1}, {"limit": 1.0}, "limit=1", "limit=1.0"),
    ({"limit": 1}, {"limit": True}, "limit=1", "limit=true"),
    ({"a": {"b": {"c": "é"}}}, {"a": {"b": {"c": None}}}, 'a.b.c="é"', "a.b.c=null"),
    ({"a": {"b": 1}}, {"a": {}}, "a.b=1", "no a.b"),
    ({}, {"a": None}, "no a", "a=null"),
    ({"a": 1, "c": 1}, {"b": 1, "c": 1}, "a=1", "no a"),
    ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "a[1].b=2", "a[1].b=3"),
    ({"a": [1]}, {"a": [1, 2]}, "a=[1]", "a=[1, 2]"),
    ({"a": "x" * 200}, {"a": ""}, 'a="' + "x" * 78 + "…", 'a=""'),
]


@pytest.mark.parametrize(("first", "second", "said_first", "said_second"), OTHER_SETTINGS)
def test_other_settings_in_the_same_folder_are_refused(tmp_path, first, second, said_first, said_second):
    path = tmp_path / "run"
    with RunFolder.open(path, first) as folder:
        folder.note_prepared({})
    assert refused(SettingError, RunFolder.open, path, second) == (
        f"{str(path)!r} holds a run with {said_first}, and this one has {said_second}; give another folder, or the "
        "settings of the run that is there"
    )
    with RunFolder.open(path, first) as folder:
        assert folder.settings == first


def test_a_run_that_never_began_stands_in_nobody_s_way(tmp_path):
    RunFolder.open(tmp_path / "run", {"editor": "wrong"}).close()
    with RunFolder.open(tmp_path / "run", {"editor": "right"}) as folder:
        assert folder.settings == {"editor": "right"}
    assert RunFolder.existing(tmp_path / "run").settings == {"editor": "right"}


def test_settings_agree_when_json_holds_the_same(tmp_path):
    RunFolder.open(tmp_path / "run", {"a": (1, 2), "b": 1}).close()
    RunFolder.open(tmp_path / "run", {"b": 1, "a": [1, 2]}).close()


def test_a_folder_of_other_files_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.txt").touch()
    assert refused(SettingError, RunFolder.open, tmp_path, SETTINGS) == (
        f"the folder {str(tmp_path)!r} holds no run but other files ('thesis.txt'); give a new or empty folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_of_settings_that_are_no_run_is_refused(tmp_path):
    (tmp_path / "settings.json").write_text('{"editor": "vi"}')
    path = str(tmp_path / "settings.json")
    said = refused(ArtefactError, RunFolder.open, tmp_path, SETTINGS)
    assert said == f"cannot use {path!r}: expected the settings of a run of rome_lens"


def test_a_run_that_was_killed_before_it_had_settings_can_begin_again(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".rome-lens-0123456789abcdef.tmp").write_text("{")
    RunFolder.open(tmp_path, SETTINGS).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "settings.json"]


def test_what_a_killed_process_had_not_written_whole_is_removed(tmp_path):
    _run(tmp_path / "run")
    good = contents(tmp_path / "run")
    stale = tmp_path / "run" / "records" / "toy" / ".rome-lens-0123456789abcdef.tmp"
    stale.touch()
    _run(tmp_path / "run")
    assert not stale.exists()
    assert contents(tmp_path / "run") == good


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (path := tmp_path / "run").touch()
    said = refused(ArtefactError, RunFolder.open, path, SETTINGS)
    assert said == f"cannot make the folder '{path}': there is a file of that name"


def test_a_folder_that_is_open_is_refused_to_a_second_and_can_be_read_meanwhile(tmp_path):
    path = tmp_path / "run"
    _run(path)
    file = str(path / "records" / "toy" / "x.json")
    with RunFolder.open(path, SETTINGS):
        assert refused(RunError, RunFolder.open, path, SETTINGS) == (
            f"another process is running in {str(path)!r}; wait until it has ended, or give another folder"
        )
        reader = RunFolder.existing(path)
        assert len(reader.finished()) == 12
        said = refused(ArtefactError, reader.write, "toy/x", {})
    assert said == f"cannot write {file!r}: the run folder was opened to be read only, or is closed"


def test_a_folder_that_holds_no_run_cannot_be_read(tmp_path):
    path = tmp_path / "run"
    said = refused(ArtefactError, RunFolder.existing, path)
    assert said == f"there is no folder '{path}'; expected one that a run made"
    said = refused(ArtefactError, RunFolder.existing, tmp_path)
    assert said == f"the folder {str(tmp_path)!r} holds no run; expected one that a run made"


@pytest.mark.parametrize("folder", ["memory", "disk"])
def test_a_record_that_json_cannot_hold_is_refused(tmp_path, folder):
    folder = Folder() if folder == "memory" else RunFolder.open(tmp_path / "run", SETTINGS)
    said = refused(RunError, folder.write, "toy/1", {"score": float("nan")})
    assert said.startswith("JSON cannot hold the record 'toy/1': Out of range float values")
    assert folder.finished() == set()


def test_a_run_that_would_go_on_with_another_model_is_refused(tmp_path, executor):
    path = tmp_path / "run"
    _run(path, n_tasks=2)
    before = record_files(path)
    assert refused(RunError, _run, path, ToyWork(fingerprint="two"), executor=executor) == (
        f'{str(path)!r} was begun with fingerprint="one" and would go on with fingerprint="two"; what is behind '
        "the same settings has changed, so give another folder"
    )
    assert record_files(path) == before


def test_memory_holds_what_a_folder_would_hold(tmp_path):
    memory = Folder()
    run(ToyWork(), toy_tasks(4), memory, shard=Shard(1, 2))
    _run(tmp_path / "run", shard=Shard(1, 2))
    disk = RunFolder.existing(tmp_path / "run")
    assert list(memory.read_all()) == list(disk.read_all())
    assert [key for key, _ in disk.read_all("toy/00000")] == [toy_key(number) for number in (0, 1, 2, 6, 7, 8)]
    assert memory.missing() == disk.missing() == [toy_key(number) for number in (3, 4, 5, 9, 10, 11)]
    assert memory.prepared() == disk.prepared() == {"fingerprint": "one"}
    memory.write("toy/9", {"pair": (1, 2)})
    assert memory.read("toy/9") == {"pair": [1, 2]}
    memory.write_summary({"pair": (1, 2)})
    assert json.loads(memory.files["summary.json"]) == {"pair": [1, 2]}


def test_threads_share_one_maker_which_is_let_go_at_the_end(diary):
    work = ToyWork(pause=0.01, diary=diary)
    plain, shared = Folder(), Folder()
    run(ToyWork(), toy_tasks(6), plain)
    gc.collect()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        run(work, toy_tasks(6), shared, executor=pool)
    assert list(shared.read_all()) == list(plain.read_all())
    assert noted(diary, "opened") == ["opened"]
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, ToyMaker) and thing.work is work]


def test_every_run_opens_a_maker_of_its_own(diary):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for fingerprint in ("one", "two"):
            folder = Folder()
            run(ToyWork(diary=diary, fingerprint=fingerprint), toy_tasks(2), folder, executor=pool)
            assert folder.prepared() == {"fingerprint": fingerprint}
    assert noted(diary, "opened") == ["opened", "opened"]


class _ThreadsMaker(ToyMaker):
    """Records how many threads torch takes in the process that runs it."""

    def run(self, task, progress):
        import torch

        time.sleep(0.2)
        yield from ((key, {"threads": torch.get_num_threads()}) for key in task.keys)


def test_processes_share_the_cores_and_each_opens_one_maker(diary, monkeypatch):
    monkeypatch.setattr("rome_lens.runs.pool.n_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder, next_folder = Folder(), Folder()
    with process_pool(2) as pool:
        run(ToyWork(diary=diary, maker=_ThreadsMaker), toy_tasks(8), folder, executor=pool)
        run(ToyWork(fingerprint="two"), toy_tasks(2), next_folder, executor=pool)
    assert {record["threads"] for _, record in folder.read_all()} == {3}
    assert len(folder.finished()) == 24
    assert next_folder.prepared() == {"fingerprint": "two"}
    opened = [path.name.split(" ")[1] for path in diary.iterdir()]
    assert 1 <= len(opened) == len(set(opened)) <= 2


def test_the_environment_says_how_many_threads_a_worker_has(diary, monkeypatch):
    monkeypatch.setattr("rome_lens.runs.pool.n_cores", lambda: 7)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)  # dask leaves one behind in the process that starts a cluster
    folder = Folder()
    with process_pool(1) as pool:
        run(ToyWork(diary=diary, maker=_ThreadsMaker), toy_tasks(2), folder, executor=pool)
    assert {record["threads"] for _, record in folder.read_all()} == {2}


@pytest.mark.parametrize("n_workers", [0, -1])
def test_no_workers_are_refused(n_workers):
    said = refused(SettingError, process_pool(n_workers).__enter__)
    assert said == f"workers is {n_workers}; expected a whole number of processes, 1 or more"


def test_a_task_that_fails_stops_the_run_and_what_was_finished_is_kept(tmp_path, diary, executor):
    work = ToyWork(fails_at=4, diary=diary, pause=0.01)
    said = refused(ModelError, _run, tmp_path / "run", work, n_tasks=100, executor=executor)
    assert said == "the number 4 has no square here"
    finished = RunFolder.existing(tmp_path / "run").finished()
    assert {toy_key(number) for number in range(3)} <= finished
    assert (toy_key(3) in finished) == (executor is None)
    assert len(noted(diary, "ran")) < 100
    _run(tmp_path / "run", n_tasks=100)
    assert len(record_files(tmp_path / "run")) == 300


def test_what_others_had_finished_when_a_task_failed_is_kept(tmp_path):
    executor = _Backwards()
    with pytest.raises(ModelError):
        _run(tmp_path / "run", ToyWork(fails_at=4), executor=executor)
    kept = RunFolder.existing(tmp_path / "run").finished()
    assert kept == {toy_key(number) for number in (0, 1, 2, 6, 7, 8, 9, 10, 11)}


class _Backwards(concurrent.futures.Executor):
    """Everything has been computed, in this thread, by the time that the first result is asked for."""

    def submit(self, fn, /, *args, **kwargs):
        future = concurrent.futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def test_a_worker_that_is_killed_ends_the_run_with_one_line_and_the_next_start_goes_on(tmp_path, diary):
    path = tmp_path / "run"
    work = ToyWork(dies_at=7, diary=diary)
    with process_pool(1) as pool:
        said = refused(RunError, _run, path, work, executor=pool)
    n_kept = len(record_files(path))
    assert said == (
        f"a worker was lost (killed, or out of memory): {n_kept} of 12 records are finished; they are kept in "
        f"{str(path)!r}, and the same command goes on from there"
    )
    before = record_files(path)
    assert len(before) == 6
    _run(path, work)
    assert before.items() <= record_files(path).items()
    assert len(record_files(path)) == 12


def test_a_lost_worker_loses_the_records_of_a_run_without_a_folder():
    class Broken(concurrent.futures.Executor):
        def submit(self, fn, /, *args, **kwargs):
            raise concurrent.futures.BrokenExecutor("gone")

    assert refused(RunError, run, ToyWork(), toy_tasks(4), Folder(), executor=Broken()) == (
        "a worker was lost (killed, or out of memory): 0 of 12 records are finished; they are lost, since this run has "
        "no folder; give it one to keep them"
    )


def interrupt(done, total, what):
    if done == 3:
        raise KeyboardInterrupt


def test_an_interrupt_passes_through_and_no_further_task_is_begun(tmp_path, diary, executor):
    work = ToyWork(pause=0.01, diary=diary)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "run", work, n_tasks=40, executor=executor, progress=interrupt)
    assert len(noted(diary, "ran")) < 10
    assert len(record_files(tmp_path / "run")) >= 3


def test_processes_are_ended_at_once_when_the_run_is_left_by_an_error(diary):
    tasks = [*toy_tasks(1), Task("slow", ("slow",), ["slow"])]  # the second would take minutes
    with pytest.raises(KeyboardInterrupt), process_pool(1) as pool:
        run(ToyWork(diary=diary, maker=_SlowMaker), tasks, Folder(), executor=pool, progress=interrupt)
    assert not pool._processes


class _SlowMaker(ToyMaker):
    def run(self, task, progress):
        if task.name == "slow":
            time.sleep(300)
        yield from super().run(task, progress)


def test_work_that_cannot_be_sent_to_another_process_is_refused_before_one_is_started():
    with process_pool(1) as pool:
        said = refused(RunError, run, ToyWork(anything=lambda: None), toy_tasks(1), Folder(), executor=pool)
    assert said.startswith("the work cannot be sent to another process (")
    assert said.endswith("); name the model instead of giving the object")
    assert not pool._processes


def test_a_maker_that_leaves_a_record_out_is_found_out():
    task = Task("two", ("a", "b"), [1])

    class Lazy(ToyMaker):
        def run(self, task, progress):
            yield "a", {}

    said = refused(RunError, run, ToyWork(maker=Lazy), [task], Folder())
    assert said == "the task 'two' ended without making the record 'b'"


def test_a_record_that_two_tasks_make_is_refused():
    said = refused(RunError, run, ToyWork(), [Task("one", ("a", "b")), Task("two", ("b",))], Folder())
    assert said == "two tasks make the record 'b'; expected every record once"


@pytest.mark.parametrize("key", ["", "a/b/c", "../a", "/a", "a/", ".hidden", "a b", "a\\b", "é", "a\n", "a" * 200])
def test_a_record_name_that_is_no_file_name_is_refused(key):
    assert refused(SettingError, Task, "one", (key,)) == (
        f"the record name {key!r} cannot be a file name; expected letters, digits and any of _+=@.,- (none of .,- "
        "first), with one / at most"
    )


@pytest.mark.parametrize("key", ["a", "r-rome/000017", "FT+L/1", "smollm2-135m_4.5,x=1"])
def test_a_record_name_that_is_a_file_name_is_taken(key):
    assert Task("one", (key,)).keys == (key,)


@given(st.integers(0, 60), st.integers(1, 70))
def test_every_task_is_in_exactly_one_shard_and_the_shards_are_of_one_size(n_tasks, count):
    tasks = [Task(str(number), (), number) for number in range(n_tasks)]
    dealt = [Shard(number, count).mine(tasks) for number in range(1, count + 1)]
    shards = [[task.payload for task in shard] for shard in dealt]
    assert sorted(task for shard in shards for task in shard) == list(range(n_tasks))
    assert all(shard == sorted(shard) for shard in shards)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_shard_is_read_as_it_is_written(number, more):
    shard = Shard(number, number + more)
    assert Shard.parse(str(shard)) == shard
    assert Shard.parse(f" {number} / {number + more} ") == shard


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, repr(text)) for text in ("", "2", "2/", "/4", "a/4", "-1/4", "1.5/4", "2/4/8", "²/4", "٢/4")),
        ("0/4", "0/4"),
        ("5/4", "5/4"),
        ("0/0", "0/0"),
    ],
)
def test_a_shard_that_is_none_is_refused(text, said):
    assert refused(SettingError, Shard.parse, text) == (
        f"shard {said}; expected i/n with i from 1 to n, such as 2/4 for the second of four"
    )


def _shards(tmp_path, count=3, n_tasks=4, **more):
    paths = [tmp_path / f"shard{number}" for number in range(1, count + 1)]
    for number, path in enumerate(paths, 1):
        shard = Shard(number, count)
        _run(path, n_tasks=n_tasks, settings={**SETTINGS, "shard": str(shard), **more}, shard=shard)
    return paths


def test_merged_shards_are_the_run_in_one_and_merging_again_changes_nothing(tmp_path):
    _run(tmp_path / "whole")
    for _ in range(2):
        with merge(_shards(tmp_path), tmp_path / "merged") as merged:
            assert merged.missing() == []
            merged.write_summary(toy_summary(merged))
        files = record_files(tmp_path / "merged")
        assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    with merge(_shards(tmp_path), tmp_path / "merged"):
        assert record_files(tmp_path / "merged") == files


def test_what_no_shard_has_is_named_and_can_be_merged_later(tmp_path):
    first, second, third = _shards(tmp_path)
    with merge([first, third], tmp_path / "merged") as merged:
        assert merged.missing() == [toy_key(number) for number in (3, 4, 5)]
    with merge([second], tmp_path / "merged") as merged:
        assert merged.missing() == []


def test_runs_of_other_editors_merge_into_one_of_all_of_them(tmp_path):
    for name in ("rome", "ft"):
        with RunFolder.open(tmp_path / name, {**SETTINGS, "editors": [name]}) as folder:
            folder.note_prepared({"model": "m", "editors": {name: {"layer": 5}}})
            folder.note_plan([f"{name}/1"])
            folder.write(f"{name}/1", {"of": name})

    def all_of(settings):
        return {**SETTINGS, "editors": [name for one in settings for name in one["editors"]]}

    folders = [tmp_path / "rome", tmp_path / "ft"]
    with merge(folders, tmp_path / "out", settings=all_of, differing=("editors",)) as merged:
        assert merged.settings == {**SETTINGS, "editors": ["rome", "ft"]}
        assert merged.finished() == {"rome/1", "ft/1"}
        assert merged.prepared() == {"model": "m", "editors": {"rome": {"layer": 5}, "ft": {"layer": 5}}}
    with merge(folders, tmp_path / "mapping", settings=lambda _: {"a": 1}, differing=("editors",)) as merged:
        assert merged.settings == {"a": 1}


def test_runs_whose_settings_differ_elsewhere_are_not_merged(tmp_path):
    _run(tmp_path / "one", settings={"limit": 1, "shard": "1/2"})
    _run(tmp_path / "two", settings={"limit": 2, "shard": "2/2"})
    assert refused(SettingError, merge, [tmp_path / "one", tmp_path / "two"], tmp_path / "out") == (
        f"{str(tmp_path / 'one')!r} holds a run with limit=1, and {str(tmp_path / 'two')!r} one with limit=2; only "
        "runs with the same settings can be merged"
    )
    assert not (tmp_path / "out").exists()


def test_a_record_with_two_contents_is_not_merged(tmp_path):
    one, two, _ = _shards(tmp_path)
    with RunFolder.open(two, {**SETTINGS, "shard": "2/3"}) as folder:
        folder.write(toy_key(0), {"number": 0, "square": 1})
    assert refused(RunError, merge, [one, two], tmp_path / "out") == (
        f"the record 'toy/000000' is not the same in {str(one)!r} and {str(two)!r}; they were computed differently, so "
        "remove one of the two"
    )
    assert not record_files(tmp_path / "out")
    RunFolder.open(tmp_path / "out", SETTINGS).close()


def test_runs_of_different_models_are_not_merged(tmp_path):
    for number in (1, 2):
        settings = {**SETTINGS, "shard": f"{number}/2"}
        work = ToyWork(fingerprint=f"f{number}")
        _run(tmp_path / str(number), work, settings=settings, shard=Shard(number, 2))
    assert refused(RunError, merge, [tmp_path / "1", tmp_path / "2"], tmp_path / "out") == (
        f'{str(tmp_path / "2")!r} was run with fingerprint="f2", and another folder with fingerprint="f1"; only '
        "runs that agree can be merged"
    )


def test_a_folder_is_not_merged_into_itself_and_nothing_is_not_merged(tmp_path):
    _run(tmp_path / "run")
    path = str(tmp_path / "x" / ".." / "run")
    said = refused(SettingError, merge, [tmp_path / "run"], tmp_path / "x" / ".." / "run")
    assert said == f"{path!r} is to be merged and written at once; give another folder to write"
    said = refused(SettingError, merge, [], tmp_path / "out")
    assert said == "no folder to merge; expected the run folders of at least one run"


def test_the_time_left_counts_what_is_done_now_and_not_what_was_done_before(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar() as progress:
        progress(9_000, 10_000, "records")
        time.sleep(0.2)
        progress(9_001, 10_000, "records · editing 1/3")
        drawn = sys.stderr.getvalue()
    # At five a second at most the other 999 take minutes; at 9001 in that time they would take none.
    assert re.search(r"\[00:0\d<(\d+:)?[0-9]?[1-9]:\d\d, .*, editing 1/3\]", drawn), drawn


def test_the_classes_to_fill_in_ask_for_what_they_need():
    with pytest.raises(TypeError, match="prepare"):
        RecordMaker()
    with pytest.raises(TypeError, match="open"):
        Work()
    assert json.loads(json.dumps(ToyMaker(ToyWork()).prepare())) == {"fingerprint": "one"}
