"""The package as users install it: types, style, wheel, source distribution, and the README."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.gateway import Gateway

from user_http_client.cli.command import main

PROJECT = Path(__file__).parents[1]


def run(*command: object, folder: Path = PROJECT) -> str:
    ended = subprocess.run(
        [str(word) for word in command], cwd=folder, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert ended.returncode == 0, ended.stdout.decode()
    return ended.stdout.decode()


@pytest.mark.tools
def test_types_are_complete(tmp_path: Path) -> None:
    run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path)


@pytest.mark.tools
def test_style() -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", "src", "tests")
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "src", "tests")


@pytest.mark.tools
def test_wheel_and_source_distribution_can_be_installed(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, PROJECT)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    files = {path.relative_to(PROJECT / "src").as_posix() for path in (PROJECT / "src").rglob("*.py")}
    assert {"user_http_client/py.typed", *files} <= set(zipfile.ZipFile(wheel).namelist())
    names = tarfile.open(source).getnames()
    assert any(name.endswith("/tests/test_package.py") for name in names)
    assert not any("__pycache__" in name for name in names)
    for number, package in enumerate((wheel, source)):
        folder = tmp_path / f"venv{number}"
        venv.create(folder)
        python = folder / "bin/python"
        # In place of a download: what this Python has, httpx and hatchling among it.
        packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        Path(packages, "others.pth").write_text(sysconfig.get_path("purelib"))
        pip = (sys.executable, "-m", "pip", "--python", python)
        run(*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", package)
        found = run(python, "-c", "import user_http_client; print(user_http_client.__file__)", folder=tmp_path)
        assert found.startswith(str(folder))
        assert "0.1.0" in run(folder / "bin/user-http-client", "--version", folder=tmp_path)


def test_the_examples_of_the_readme_work(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(examples) >= 3
    assert len([line for line in examples[0].splitlines() if line.strip()]) == 5
    posted = 0
    for example in examples:
        gateway.leave_blend("job-1", "scene.blend", b"a scene")
        exec(compile(example.replace("http://127.0.0.1:10000", gateway.url), "README.md", "exec"), {})
        posted += len(gateway.received())
        gateway.api("DELETE", "/admin/buffer/job-1")
    assert posted >= len(examples) - 1
    capsys.readouterr()


def test_the_readme_names_the_options_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    known = ""
    for command in ("worker", "fetch", "post", "spool"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known += capsys.readouterr().out
    for flag in re.findall(r"--[a-z][a-z-]+", readme):
        assert flag in known or flag in ("--help",), flag
