"""The Python of README, how-tos and API reference runs as it is printed, on a small run, export, dataset and server; so
do the commands of the page about HTTP."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import helpers.serving
import pytest
from helpers.documented import Block, blocks
from helpers.exports import make_export
from helpers.media import write_sound, write_video
from helpers.runs import TINY
from PIL import Image

import fedstill

pytestmark = pytest.mark.slow

BLOCKS = [block for block in blocks() if block.language == "python"]
QUICK = TINY.replace(
    "[run]", "[run]\narms = ['all_distill', 'fedstill']\nscenarios = ['latency_insensitive']"
)
HTTP_PAGE = "docs/how-to/query-over-http.md"
HTTP = [block for block in blocks() if block.page == HTTP_PAGE and "curl " in block.text]
DOCUMENTED_GRPC, DOCUMENTED_REST = "127.0.0.1:8001", "127.0.0.1:8000"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, under the names that they use."""
    folder = tmp_path_factory.mktemp("documented")
    (folder / "my.toml").write_text(QUICK)
    fedstill.run_experiment(folder / "my.toml", folder / "runs" / "mine", engine="inprocess")
    shutil.copytree(make_export(folder / "made").folder, folder / "student")
    write_video(folder / "clip.mp4")
    write_sound(folder / "clips" / "one.wav")
    Image.new("RGB", (24, 24)).save(folder / "clips" / "one.png")
    Image.new("RGB", (40, 40), "brown").save(folder / "rex.jpg")
    header = "clip_id,split,speaker,label,audio,frames"
    (folder / "clips" / "manifest.csv").write_text(f"{header}\none,public,anna,happy,one.wav,one.png\n")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[helpers.serving.MadeServer]:
    """It knows the task of the pages, and one more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers.serving, "TASKS", {"pets": 2, "cats": 3})
        with helpers.serving.serving(tmp_path_factory.mktemp("serving")) as made:
            yield made


def here(text: str, server: helpers.serving.MadeServer) -> str:
    """The text with the server's addresses, and deadlines that leave room for a busy machine."""
    text = text.replace(DOCUMENTED_GRPC, server.target)
    text = text.replace(DOCUMENTED_REST, server.rest.removeprefix("http://"))
    return re.sub(r'(latency_ms"?[:=] ?)\d+', r"\g<1>60000", text)


def test_there_is_python_on_the_pages() -> None:
    assert {"README.md", "docs/how-to/serve.md", "docs/reference/api.md"} <= {block.page for block in BLOCKS}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda one: one.page)
def test_it_runs_as_printed(
    block: Block,
    prepared: Path,
    server: helpers.serving.MadeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only addresses and deadlines are others, and a run needs no Flower processes."""
    runs = "run_experiment(" in block.text
    shutil.copytree(prepared, tmp_path / "here", ignore=shutil.ignore_patterns("runs" if runs else ""))
    monkeypatch.chdir(tmp_path / "here")
    text = here(block.text, server)
    text = re.sub(r"(run_experiment\([^)]*)\)", r'\1, engine="inprocess")', text)
    if "tritonclient" in text:  # brings the protocol's messages, as we do, and one process takes them once
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, block.page, "exec"), {"__name__": "__main__"})
    assert printed.getvalue().strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_of_the_page_about_http_works_as_printed(
    prepared: Path, server: helpers.serving.MadeServer
) -> None:
    said = []
    for block in HTTP:
        text = here(block.text, server).replace("curl ", "curl --silent --fail-with-body ")
        done = subprocess.run(
            ["bash", "-e", "-c", text], cwd=prepared, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    assert len(said) == 3
    assert all('"model_name": "pets"' in text for text in said[:2])
    assert said[2].endswith("{}{}")
