"""How a command gets its workers: of a scheduler, or started here; the recipes for clusters."""

import importlib
import importlib.util
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
import yaml
from distributed import LocalCluster

import streamtrain
from streamtrain import InputError, Model, cli
from streamtrain.cluster import connect
from streamtrain.cluster.connect import connected
from tests import atlas
from tests.cluster import workers

RECIPES = Path(__file__).resolve().parents[1] / "conf" / "cluster"
BIN = Path(sys.executable).parent
MINI = {"use_SGD": True, "mini_batch": True, "batch_size": 100, "batch_number": 4, "epochs": 2}
TRAIN = ("--use-sgd", "--mini-batch", "--batch-size", 100, "--batch-number", 4, "--epochs", 2)


@pytest.fixture
def soon(monkeypatch):
    """What does not come does not come within a moment."""
    monkeypatch.setattr(connect, "_ANSWER", 0.5)
    monkeypatch.setattr(connect, "_FIRST", 0.5)
    monkeypatch.setattr(connect, "_MORE", 0.3)


@pytest.fixture
def scheduler():
    """One without workers, in this process."""
    with LocalCluster(
        n_workers=0, threads_per_worker=1, processes=False, protocol="tcp://",
        dashboard_address=":0", silence_logs="CRITICAL",
    ) as cluster:  # fmt: skip
        yield cluster


@pytest.fixture(scope="module")
def cluster():
    with workers(2) as client:
        yield client


def test_connected__to_nothing():
    with connected(None, None) as client:
        assert client is None


WRONG = {
    "both": (("tcp://a:1", 2), "--scheduler takes the workers .*leave one of them out"),
    "no workers": ((None, 0), "--workers must be a number of processes, 1 at least; got 0"),
    "no port": (("tcp://host", None), "must be an address, such as tcp://host:8786.*'tcp://host'"),
    "a web page": (("http://host:8787", None), "must be an address.*'http://host:8787'"),
    "a folder": (("/data/scheduler", None), "the file that dask scheduler --scheduler-file"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG.keys())
def test_connected__refuses(given, message):
    with pytest.raises(InputError, match=message), connected(*given):
        pass


def test_connected__without_dask(monkeypatch):
    monkeypatch.setattr(connect, "find_spec", lambda _: None)
    with (
        pytest.raises(InputError, match=r"pip install 'streamtrain\[cluster\]'"),
        connected(None, 2),
    ):
        pass


def no_scheduler_at(address, reason):
    message = f"no scheduler answers at {re.escape(address)}: start one .*{reason}"
    with pytest.raises(InputError, match=message), connected(address, None):
        pass


def test_scheduler__none_there(soon):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    no_scheduler_at(f"tcp://127.0.0.1:{port}", "Timed out")
    no_scheduler_at(f"tls://127.0.0.1:{port}", "ssl_context")


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_scheduler__something_else_there(soon, words):
    """Such as the dashboard, which dask's own client waits for without an end."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with server.accept()[0] as peer:
                peer.sendall(words)
                time.sleep(3)

        threading.Thread(target=serve, daemon=True).start()
        no_scheduler_at(f"127.0.0.1:{server.getsockname()[1]}", r"\(\w+")


def test_scheduler__a_worker_there(cluster):
    no_scheduler_at(sorted(cluster.nthreads())[0], "a Worker answers")


def test_scheduler__workers_are_there(cluster):
    with connected(cluster.scheduler.address, None) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert len(client.nthreads()) == 2
    assert client.status == "closed"
    assert len(cluster.nthreads()) == 2, "they stay"


def test_scheduler__without_workers(scheduler, soon, caplog):
    address = scheduler.scheduler_address
    message = f"{address} has no worker after .* such as dask worker {address}"
    with pytest.raises(InputError, match=message), connected(address, None):
        pass
    assert caplog.messages[-1].startswith("Waiting for a worker to join")


def test_scheduler__workers_come(scheduler, monkeypatch):
    """One after the other: all of them are waited for."""
    monkeypatch.setattr(connect, "_MORE", 1.0)
    later = [threading.Timer(1 + 0.6 * i, scheduler.scale, [i + 1]) for i in range(3)]
    for timer in later:
        timer.start()
    with connected(scheduler.scheduler_address, None) as client:
        assert len(client.nthreads()) == 3


def test_scheduler__file(cluster, tmp_path):
    """Which is not there yet, and then half-written."""
    path = tmp_path / "scheduler.json"
    cluster.write_scheduler_file(str(tmp_path / "whole.json"))
    whole = (tmp_path / "whole.json").read_text()
    for seconds, text in ((0.5, ""), (0.8, whole[:20]), (1.1, whole)):
        threading.Timer(seconds, path.write_text, [text]).start()
    with connected(str(path), None) as client:
        assert client.scheduler.address == cluster.scheduler.address


@pytest.mark.parametrize("text", [None, "", "{}", "[1]"])
def test_scheduler__no_file_of_one(soon, tmp_path, text):
    path = tmp_path / "s.json"
    if text is not None:
        path.write_text(text)
    with (
        pytest.raises(InputError, match=r"s.json' is no scheduler's file"),
        connected(str(path), None),
    ):
        pass


def test_scheduler__other_versions(cluster, monkeypatch):
    here = os.getpid()

    def other(name):
        return "1.0" if os.getpid() == here else "2.0"

    def missing(name):
        if os.getpid() != here:
            raise PackageNotFoundError(name)
        return "1.0"

    for function, there in ((other, "streamtrain 2.0"), (missing, "no streamtrain")):
        monkeypatch.setattr(connect, "version", function)
        message = rf"the worker at tcp://\S+ has {there}, and this process 1.0: install the same"
        with pytest.raises(InputError, match=message), connected(cluster.scheduler.address, None):
            pass


@pytest.mark.parametrize("given", [{}, {"n_jobs": 3, "memory": "1GB"}])
def test_started(given, capfd, caplog):
    def limits(dask_worker):
        names = ("pause", "spill", "target")
        thresholds = [dask.config.get(f"distributed.worker.memory.{name}") for name in names]
        return dask_worker.memory_manager.memory_limit, thresholds

    caplog.set_level(logging.INFO)
    with connected(None, 2, **given) as client:
        pids = client.run(os.getpid).values()
        threads = given.get("n_jobs", max(1, len(os.sched_getaffinity(0)) // 2))
        assert list(client.nthreads().values()) == [threads] * 2
        for limit, thresholds in client.run(limits).values():
            assert (limit is None) == ("memory" in given)
            assert thresholds == [False] * 3
        assert "Started 2 workers" in caplog.text
    assert not any(map(psutil.pid_exists, pids))
    assert {record.name for record in caplog.records} == {"streamtrain.cluster.connect"}
    assert "distributed" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_started__signals_wait(number):
    class CameError(Exception):
        pass

    def came(*_):
        raise CameError

    passed = []

    def start():
        with connect._signals_later():
            os.kill(os.getpid(), number)
            time.sleep(0.05)
            passed.append(True)

    before = signal.signal(number, came)
    try:
        with pytest.raises(CameError):
            start()
        assert signal.getsignal(number) is came
    finally:
        signal.signal(number, before)
    assert passed == [True]


COMMANDS = {
    "train": ("streamtrain.train", "train", ["a.zarr", "--labels", "t", "--out", "m.zarr"]),
    "cross-validate": (
        "streamtrain.cross_validate", "cross_validate",
        ["a.zarr", "--labels", "t", "--out", "r.csv", "--no-refit"],
    ),
    "predict": ("streamtrain.predict", "predict", ["m.zarr", "a.zarr", "--out", "p.csv"]),
    "convert": ("streamtrain.convert", "convert", ["a.h5ad", "--out", "a.zarr"]),
}  # fmt: skip


def stubbed(monkeypatch, command):
    """The command with a cluster and a function that only note what they are given."""
    given = {}
    client = object()

    @contextmanager
    def connected(scheduler, workers, **rest):
        given["cluster"] = (scheduler, workers, rest)
        yield client

    def function(*_, **keywords):
        assert keywords["client"] is client
        given["function"] = keywords
        raise ConnectionError("the scheduler is lost")

    module, name, _ = COMMANDS[command]
    importlib.import_module(module)
    monkeypatch.setattr(sys.modules[module], name, function)
    monkeypatch.setattr(connect, "connected", connected)
    return given


@pytest.mark.parametrize("command", COMMANDS)
def test_cli__passes_the_client(command, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    given = stubbed(monkeypatch, command)
    options = ["--scheduler", "tcp://a:1", "--workers", "3", "--memory", "1GB", "--n-jobs", "2"]
    with pytest.raises(SystemExit) as stop:
        cli.main([command, *COMMANDS[command][2], *options])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "streamtrain: the scheduler is lost\n"
    assert given["cluster"] == ("tcp://a:1", 3, {"memory": "1GB", "n_jobs": 2})
    assert (given["function"]["memory"], given["function"]["n_jobs"]) == ("1GB", 2)


def test_cli__takes_memory_from_the_recipe(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text('memory = "3GB"\nn_jobs = 4\n')
    given = stubbed(monkeypatch, "train")
    with pytest.raises(SystemExit):
        cli.main(["train", *COMMANDS["train"][2], "--recipe", "own.toml", "--n-jobs", "1"])
    assert given["cluster"] == (None, None, {"memory": "3GB", "n_jobs": 1})


def test_cli__mistakes_end_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, message in (
        (["--workers", "0"], "--workers must be"),
        (["--workers", "2", "--scheduler", "tcp://a:1"], "leave one of them out"),
        (["--scheduler", "here"], "--scheduler must be"),
        (["--resume"], "pass checkpoint=FOLDER (--checkpoint), too"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", *COMMANDS["train"][2], *options])
        assert stop.value.code == 2
        line, *_ = capsys.readouterr().err.splitlines()
        assert message in line
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An atlas, and the model of one process."""
    folder = tmp_path_factory.mktemp("jobs")
    atlas.make(6000).write_h5ad(folder / "atlas.h5ad")
    streamtrain.train(folder / "atlas.h5ad", "cell_type", **MINI, progress=False).save(
        folder / "one.zarr"
    )
    return folder


def assert_as_one(path):
    one = Model.load(path.parent / "one.zarr")
    np.testing.assert_array_equal(Model.load(path).coef_, one.coef_)


def run(words, cwd, **environment):
    done = subprocess.run(  # noqa: S603 - our own command
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False,
        timeout=240, env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_cli__workers(folder):
    """Started by spawn, they import the command's own script."""
    done = run(
        ["streamtrain", "train", "atlas.h5ad", "--labels", "cell_type", "--workers", 2, *TRAIN,
         "--out", "w.zarr"],
        folder,
    )  # fmt: skip
    assert "Started 2 workers" in done.stderr
    assert "training by 2 workers" in done.stderr
    assert "Traceback" not in done.stderr
    assert "distributed" not in done.stderr
    assert_as_one(folder / "w.zarr")


def waited(is_so, seconds=120):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGTERM, "starting"),
        (signal.SIGINT, "starting"),
        (signal.SIGTERM, "training"),
        (signal.SIGINT, "training"),
        (signal.SIGKILL, "training"),
    ],
)
def test_cli__stopped_with_its_workers(folder, tmp_path, number, when):
    """Ctrl-C, as of a terminal, reaches the workers as well."""
    log, before = tmp_path / "log", set(folder.iterdir())
    words = [BIN / "streamtrain", "train", "atlas.h5ad", "--labels", "cell_type", "--workers", 2]
    words += [*TRAIN[:-1], 20_000, "--out", "stopped.zarr"]
    with log.open("w") as err, subprocess.Popen(  # noqa: S603 - our own command
        [*map(str, words)], cwd=folder, stderr=err, start_new_session=True,
        # Under nohup, as CI may run, the signal would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        try:
            command = psutil.Process(process.pid)
            if when == "starting":
                waited(lambda: len(command.children()) == 3)  # multiprocessing's tracker is one
            else:
                waited(lambda: "training by" in log.read_text())
                time.sleep(1)
            children = command.children(recursive=True)
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            code = process.wait(60)
        finally:
            process.kill()
    gone, orphans = psutil.wait_procs(children, timeout=20)
    for orphan in orphans:
        orphan.kill()
    assert not orphans
    assert len(gone) >= 3
    last = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}.get(number)
    assert code == (-number if last is None else 128 + number)
    if last is not None:
        assert f"streamtrain: {last}\n" in log.read_text()
        assert "Traceback" not in log.read_text()
    assert set(folder.iterdir()) == before


def test_recipes__of_dask(tmp_path):
    """Every setting is one of dask's, and is taken from there."""
    recipe = yaml.safe_load((RECIPES / "dask.yaml").read_text())
    (home,) = importlib.util.find_spec("distributed").submodule_search_locations
    known = yaml.safe_load((Path(home) / "distributed.yaml").read_text())

    def check(given, default):
        for name, value in given.items():
            assert name in default
            if isinstance(value, dict):
                check(value, default[name])

    check(recipe, known)
    code = "import dask, distributed; print(dask.config.get('distributed.worker.memory.pause'))"
    for path, pause in ((RECIPES / "dask.yaml", "False"), (tmp_path, "0.8")):
        assert run([sys.executable, "-c", code], tmp_path, DASK_CONFIG=str(path)).stdout == (
            f"{pause}\n"
        )


STANDINS = {
    "srun": """
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do "$@" & done
wait
""",
    # As SLURM does, of a copy: the script itself may be gone.
    "sbatch": """
cp "$1" "$JOBS/$$.sh"
setsid bash "$JOBS/$$.sh" > "$JOBS/$$.log" 2>&1 < /dev/null &
echo $! > "$JOBS/$$.pid"
echo "Submitted batch job $$"
""",
    "scancel": """
for job; do kill -- "-$(cat "$JOBS/$job.pid")"; done
""",
}


@pytest.fixture
def slurm(folder, tmp_path, monkeypatch):
    """Stand-ins for the commands of SLURM, by which its nodes are all this one."""
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{BIN}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(tmp_path))
    monkeypatch.chdir(folder)
    Path("conf").mkdir(exist_ok=True)
    Path("conf/cluster").unlink(missing_ok=True)
    Path("conf/cluster").symlink_to(RECIPES)
    return tmp_path


@pytest.mark.slow
def test_recipes__slurm_in_one_job(slurm, folder, monkeypatch):
    for name, value in (("SUBMIT_DIR", folder), ("JOB_ID", 7), ("NTASKS", 2), ("CPUS_PER_TASK", 1)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    copy = shutil.copy(RECIPES / "slurm.sh", slurm / "slurm_script")
    words = ["atlas.h5ad", "--labels", "cell_type", *TRAIN, "--out", "job.zarr"]
    done = run(["bash", copy, *words], folder)
    assert "saved as job.zarr" in done.stdout
    assert "training by 2 workers" in done.stderr
    assert_as_one(folder / "job.zarr")
    log = Path("dask-7.log").read_text()
    assert log.count("End worker") == 2
    assert "End scheduler" in log
    assert not Path("scheduler-7.json").exists()


def slurm_recipe():
    spec = importlib.util.spec_from_file_location("slurm_recipe", RECIPES / "slurm.py")
    recipe = importlib.util.module_from_spec(spec)
    before = signal.getsignal(signal.SIGINT)
    spec.loader.exec_module(recipe)
    signal.signal(signal.SIGINT, before)  # dask_jobqueue takes it when it is imported
    return recipe


def test_recipes__script_of_a_job(tmp_path):
    with slurm_recipe().cluster() as jobs:
        script = jobs.job_script()
    (tmp_path / "job.sh").write_text(script)
    run(["bash", "-n", "job.sh"], tmp_path)
    assert re.findall("#SBATCH (.*)", script) == [
        "-J dask-worker", "-n 1", "--cpus-per-task=16", "--mem=60G", "-t 04:00:00",
    ]  # fmt: skip
    (config,) = re.findall("export DASK_CONFIG=(.*)", script)
    assert Path(*shlex.split(config)).samefile(RECIPES / "dask.yaml")
    assert "--nthreads 16 --memory-limit 59.60GiB --nanny" in script


@pytest.mark.slow
def test_recipes__slurm_by_jobs(slurm, folder):
    code = (
        "import sys, runpy; recipe = runpy.run_path(sys.argv[1]); "
        "recipe['main'].__globals__['JOBS'] = 2; recipe['main'](*sys.argv[2:])"
    )
    atlas = folder / "atlas.h5ad"
    run([sys.executable, "-c", code, RECIPES / "slurm.py", atlas, "cell_type", "jobs.zarr"], folder)
    one = streamtrain.train(atlas, "cell_type", recipe="atlas", progress=False)
    np.testing.assert_array_equal(Model.load("jobs.zarr").coef_, one.coef_)
    pids = [int(path.read_text()) for path in slurm.glob("*.pid")]
    assert len(pids) == 2
    waited(lambda: not any(map(psutil.pid_exists, pids)), 30)


def pods(cluster, job):
    return {
        "scheduler": cluster["spec"]["scheduler"]["spec"],
        "worker": cluster["spec"]["worker"]["spec"],
        "train": job["spec"]["template"]["spec"],
    }


def test_recipes__kubernetes():
    """What the operator's resource requires, and that its parts name one another."""
    cluster, job = yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("kubernetes.dask.org/v1", "DaskCluster")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    name = cluster["metadata"]["name"]
    service = cluster["spec"]["scheduler"]["service"]
    assert service["selector"] == {
        "dask.org/cluster-name": name, "dask.org/component": "scheduler",
    }  # fmt: skip
    assert {port["name"]: port["port"] for port in service["ports"]} == {
        "tcp-comm": 8786, "http-dashboard": 8787,
    }  # fmt: skip
    found = pods(cluster, job)
    (scheduler,) = found["scheduler"]["containers"]
    assert {port["name"] for port in scheduler["ports"]} == {
        port["targetPort"] for port in service["ports"]
    }
    images = set()
    for pod in found.values():
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        images |= {c["image"] for c in pod["containers"] + pod.get("initContainers", [])}
    assert len(images) == 1
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_recipes__commands_of_kubernetes():
    """As the programs themselves read them."""
    from distributed.cli import dask_scheduler, dask_worker

    cluster, job = yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text())
    found = pods(cluster, job)
    for pod, program in (("scheduler", dask_scheduler), ("worker", dask_worker)):
        (container,) = found[pod]["containers"]
        assert container["command"][:2] == ["dask", pod]
        program.main.make_context(pod, container["command"][2:])
    (container,) = found["train"]["containers"]
    _, bound, _ = cli.app.parse_args(container["command"][1:])
    address = f"tcp://{cluster['metadata']['name']}-scheduler:8786"
    assert bound.arguments["cluster"].scheduler == address
    (wait,) = found["train"]["initContainers"]
    assert wait["command"][:2] == ["python", "-c"]
    compile(wait["command"][2], "wait", "exec")
    assert f'Client("{address}"' in wait["command"][2]
    assert f"wait_for_workers({cluster['spec']['worker']['replicas']}," in wait["command"][2]
