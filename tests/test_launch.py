"""The command line, the torchx components and the Makefile."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from torchx.components.component_test_base import ComponentTestCase
from torchx.runner import get_runner
from torchx.specs.builders import materialize_appdef

from learn_torchrec.apps import main
from learn_torchrec.apps.common import program
from learn_torchrec.apps.stages import STAGES, Stage
from learn_torchrec.errors import UserError
from learn_torchrec.torchx_components import learn

ROOT = Path(__file__).parents[1]
NAMED = [s.app for s in STAGES.values() if s.distributed and hasattr(learn, s.app)]
COMPONENTS = [*NAMED, "stage"]


def run(
    command: Sequence[str], path: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = path
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


# --- learn-torchrec ---------------------------------------------------------------


def test_overview_lists_every_command_without_importing_torch() -> None:
    code = (
        "import sys; from learn_torchrec.apps import main; main.main([]); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )

    lines = run([sys.executable, "-c", code]).stdout.splitlines()

    assert lines[-1] == "[]"
    listed = {line.split()[0]: line.split()[1:] for line in lines if line[:2] == "  "}
    assert set(listed) == set(STAGES)
    assert all(listed.values())  # each with its description


def test_help_is_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    main.main([])
    overview = capsys.readouterr().out
    main.main(["--help"])

    assert capsys.readouterr().out == overview
    assert overview.startswith("usage: learn-torchrec <command>")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["--version"])

    assert capsys.readouterr().out.startswith("learn-torchrec ")


def test_unknown_command_ends_with_one_line_and_code_2() -> None:
    result = run(
        [sys.executable, "-m", "learn_torchrec.apps.main", "train-tower", "--out", "x"]
    )

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: unknown command 'train-tower'; did you mean train-towers?\n"
    )


def app_of(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Make `learn-torchrec try-it` run a module with this body."""
    (folder / "try_it.py").write_text(body)
    from learn_torchrec import apps

    monkeypatch.setattr(apps, "__path__", [*apps.__path__, str(folder)])
    monkeypatch.setitem(STAGES, "try-it", Stage(command="try-it", does="a test"))
    monkeypatch.delitem(sys.modules, "learn_torchrec.apps.try_it", raising=False)


@pytest.mark.parametrize("command", ["try-it", "try_it"])
def test_options_reach_the_app(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app_of(tmp_path, monkeypatch, "def main(argv): print(argv)")

    main.main([command, "--out", "runs/x"])

    assert capsys.readouterr().out == "['--out', 'runs/x']\n"


def test_package_that_cannot_load_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app_of(tmp_path, monkeypatch, "import no_such_wheel")

    with pytest.raises(SystemExit) as ended:
        main.main(["try-it"])

    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: try-it cannot start: No module named 'no_such_wheel'; "
        "learn-torchrec doctor names the fix\n"
    )


def test_broken_import_of_our_own_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_of(tmp_path, monkeypatch, "from learn_torchrec.schema import NO_SUCH_NAME")

    with pytest.raises(ImportError, match="NO_SUCH_NAME"):
        main.main(["try-it"])


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: Sequence[str] | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        program.run(interrupted)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; run it again to resume\n"


def test_every_rank_prints_a_users_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistaken(argv: Sequence[str] | None) -> None:
        raise UserError(f"{argv}: no such file")

    for rank in ("1", "0"):  # a file may be missing on one node only
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            program.run(mistaken, ["x"])
        assert ended.value.code == 2
        assert capsys.readouterr().err == "error: ['x']: no such file\n"


@pytest.mark.parametrize(("rank", "expected"), [("0", ["ours"]), ("1", [])])
def test_only_our_own_progress_is_logged_and_by_the_first_rank(
    rank: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import logging; from learn_torchrec.apps.common import program\n"
        "def main(argv):\n"
        "    logging.getLogger('learn_torchrec.towers').info('ours')\n"
        "    logging.info('somebody else')\n"
        "program.run(main, [])\n"
    )
    monkeypatch.setenv("RANK", rank)

    lines = run([sys.executable, "-c", code]).stderr.splitlines()

    assert [line.split(": ")[1] for line in lines] == expected


# --- torchx -----------------------------------------------------------------------


class TestComponents(ComponentTestCase):
    """What `torchx run torchx_components/learn.py:NAME` needs of each component."""

    def test_torchx_accepts_every_component(self) -> None:
        for name in COMPONENTS:
            self.validate(learn, name)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("option", ["-j", "--j"])
def test_component_runs_its_app_on_the_ranks_asked_for(name: str, option: str) -> None:
    settings = ["--env", "A=1,LOGLEVEL=ERROR", "--max_restarts", "3"]
    script_args = ["--set=a.b=1", "--set=a.c=x y"]

    job = materialize_appdef(
        getattr(learn, name), [option, "2x4", *settings, "--", *script_args]
    )

    (role,) = job.roles
    assert job.name == name
    assert role.num_replicas == 2
    assert role.entrypoint == "bash"
    command = role.args[1]
    assert command.startswith("torchrun ")
    assert "--nnodes 2 --nproc_per_node 4 " in command
    assert command.endswith(
        f"-m learn_torchrec.apps.{name} --set=a.b=1 '--set=a.c=x y'"
    )
    expected = {
        "A": "1",
        "LOGLEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
        "PET_MAX_RESTARTS": "3",
        "PYTHONUNBUFFERED": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    assert expected.items() <= role.env.items()


def test_stage_component_runs_any_stage() -> None:
    named = learn.train_ranker("--out", "x y", j="1x3", env={"A": "1"})
    any_stage = learn.stage("train-ranker", "--out", "x y", j="1x3", env={"A": "1"})

    assert any_stage == named
    with pytest.raises(ValueError, match="name a stage after --"):
        learn.stage()


def test_component_help_explains_every_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        materialize_appdef(learn.train_ranker, ["--help"])

    text = capsys.readouterr().out
    assert "Train the ranker." in text
    assert "processors per node" in text
    assert "how often torchrun restarts the ranks" in text


def test_environments_of_two_jobs_are_apart() -> None:
    given = {"A": "1"}

    first, second = learn.predict(env=given), learn.predict()

    assert given == {"A": "1"}
    assert first.roles[0].env["A"] == "1"
    assert "A" not in second.roles[0].env


def test_slurm_job() -> None:
    component = f"{ROOT / 'torchx_components' / 'learn.py'}:train_towers"
    arguments = ["-j", "2x4", "--cpu", "8", "--memMB", "16000", "--", "--out", "runs/t"]
    with get_runner() as runner:
        job = runner.dryrun_component(
            component, arguments, "slurm", {"partition": "short"}
        )

    script = str(job)
    assert script.count("--partition=short") == 2  # one per node
    assert script.count("--cpus-per-task=8 --mem=16000") == 2
    assert script.count("-m learn_torchrec.apps.train_towers --out runs/t") == 2
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in script


def test_kubernetes_job() -> None:
    pytest.importorskip("kubernetes", reason="needs torchx[kubernetes]")
    mount = ["type=volume", "src=market", "dst=/market"]
    with get_runner() as runner:
        job = runner.dryrun(
            learn.train_ranker("--out", "/market/r", j="1x2", gpu=2, mounts=mount),
            "kubernetes",
            {"queue": "q"},
        )

    body = " ".join(str(job).split())  # YAML folds long lines
    assert "-m learn_torchrec.apps.train_ranker --out /market/r" in body
    assert "nvidia.com/gpu: '2'" in body
    assert "claimName: market" in body
    assert "mountPath: /dev/shm" in body  # more than the 64 MiB of a container


def test_installed_entry_points_keep_torchx_builtins(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    installed = tmp_path / "learn_torchrec-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: learn-torchrec\nVersion: 0.1.0\n")
    (installed / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n"
            + "".join(f"{name} = {target}\n" for name, target in it.items())
            for group, it in groups.items()
        )
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    command = [sys.executable, "-c", "from torchx.cli.main import main; main()"]

    listing = run([*command, "builtins"], path).stdout
    help_of_ddp = run([*command, "run", "dist.ddp", "--help"], path)
    options = ["--dryrun", "--workspace=", "-s", "local_cwd"]
    component = ["learn.train_towers", "-j", "1x2", "--", "--out", "runs/t"]
    job = run([*command, "run", *options, *component], path)

    names = {line.split()[-1] for line in listing.splitlines() if ". " in line}
    ours = {name for name in names if name.startswith("learn.")}
    assert ours == {f"learn.{name}" for name in COMPONENTS}  # and no helper
    assert {"dist.ddp", "utils.sh"} <= names
    assert help_of_ddp.returncode == 0, help_of_ddp.stderr
    assert "--rdzv_backend" in help_of_ddp.stdout
    assert job.returncode == 0, job.stderr
    assert "learn_torchrec.apps.train_towers" in job.stdout


# --- make -------------------------------------------------------------------------


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = text[text.index(".PHONY:") :].replace("\\\n", " ").splitlines()[0]
    targets = phony.removeprefix(".PHONY:").split()

    help_text = run(["make"]).stdout

    listed = [line.split()[0] for line in help_text.splitlines() if line[:2] == "  "]
    assert listed[: len(targets)] == targets
    assert {"ACCELERATOR", "TORCH_INDEX", "PYTHON", "ARGS"} <= set(listed)


def test_make_refuses_an_unknown_accelerator() -> None:
    result = run(["make", "env", "ACCELERATOR=tpu"])

    assert result.returncode != 0
    assert "ACCELERATOR=tpu: choose cpu or cuda" in result.stderr


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    for name in ("pyproject.toml", "setup.py"):
        (tmp_path / name).touch()
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    old = tmp_path / "old-python"
    pretend = "import sys; sys.version_info = (3, 10, 14); exec(sys.argv[1])"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{pretend}' \"$2\"\n")
    old.chmod(0o755)

    result = subprocess.run(
        ["make", "-C", str(tmp_path), "env", f"PYTHON={old}"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode != 0
    assert "older than Python 3.11" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_requirements_are_pinned_once() -> None:
    folder = ROOT / "requirements"
    pins = [
        line.partition("==")[0]
        for line in (folder / "pins.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert len(pins) == len(set(pins))
    for path in folder.glob("*.txt"):
        if path.name == "pins.txt":
            continue
        for line in path.read_text().splitlines():
            if line and line[0] not in "#-":
                assert line in pins, f"{path.name}: {line} has no pin"
