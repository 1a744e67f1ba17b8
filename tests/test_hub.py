"""Publishing a model and loading it again, on a small stand-in for the Hugging Face hub."""

import base64
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import tiny
from jupyter_client.manager import start_new_kernel

from diffusion_utils import ROOT, Diffusion

TOKEN = "hf_" + "secret" * 5


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as publishing and loading a model need."""

    files, commit = {}, "a" * 40

    def respond(self, status, body=b"", headers=()):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for name, value in {
            "Content-Length": len(body),
            "Content-Type": "application/json",
            **dict(headers),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.respond(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.respond(200, {"url": f"http://{self.headers['Host']}/me/faces", "name": "me/faces"})
        elif "/preupload/" in self.path:
            wanted = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.respond(200, json.dumps({"files": wanted}).encode())
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.respond(200, {"commitUrl": f"http://{self.headers['Host']}/me/faces/commit/{self.commit}",
                              "commitOid": self.commit, "hookOutput": ""})  # fmt: skip
        else:
            self.respond(200, {})

    def do_GET(self):
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        if "/resolve/" in self.path and name in self.files:
            content = self.files[name]
            self.respond(
                200, content, {"ETag": hashlib.sha256(content).hexdigest(), "X-Repo-Commit": self.commit}
            )
        elif "/nobody/" in self.path:
            self.respond(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif "/resolve/" in self.path:
            self.respond(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit})
        else:
            self.respond(200, {"id": "me/faces", "sha": self.commit, "siblings": []})

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(server):
    Hub.files = {}
    return server


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(scope="module")
def kernels(homes):
    """A kernel for each address of the hub, as that is read when a process starts."""
    started = {}

    def kernel(endpoint, **variables):
        if endpoint not in started:
            environment = {
                name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
            }
            environment |= {
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(homes / str(len(started))),
                "PYTHONPATH": str(ROOT),
            }
            started[endpoint] = start_new_kernel(kernel_name="python3", env={**environment, **variables})
        return started[endpoint][1]

    yield kernel
    for manager, client in started.values():
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def run(kernels, tmp_path):
    """Run a program as a user would, in the test's folder. Returns what it printed, and where it failed."""

    def run(program, endpoint, token="", **variables):
        messages = []
        setting = f"import os; os.chdir({str(tmp_path)!r}); os.environ['HF_TOKEN'] = {token!r}\n"
        kernels(endpoint, **variables).execute_interactive(
            setting + program, output_hook=messages.append, timeout=120
        )
        messages = [
            message for message in messages if message["msg_type"] != "execute_input"
        ]  # the program itself
        assert TOKEN not in str([message["content"] for message in messages])
        printed = "".join(m["content"]["text"] for m in messages if m["content"].get("name") == "stdout")
        return printed, "".join(m["content"]["evalue"] for m in messages if m["msg_type"] == "error")

    return run


PUBLISH = """
from diffusion_utils import Diffusion
from diffusion_course.images import publish
diffusion = Diffusion.from_pretrained("local")
try:
    publish(diffusion, "me/faces")
    print("published")
except Exception as error:
    print(type(error).__name__, error)
"""

LOAD = """
import torch
from diffusion_utils import Diffusion
one, two = Diffusion.from_pretrained("local"), Diffusion.from_pretrained("me/faces")
assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
print("equal")
"""


@pytest.fixture
def folder(tmp_path):
    tiny().save_pretrained(tmp_path / "local")
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder, "local").iterdir()}


def test_publish_and_load(hub, run, folder, homes):
    before = contents(folder)
    assert run(PUBLISH, hub, TOKEN) == ("published\n", "")
    assert {"config.json", "model.safetensors"} <= set(Hub.files) and Hub.files[
        "model.safetensors"
    ] == before["model.safetensors"]
    assert contents(folder) == before
    assert not any(TOKEN.encode() in content for content in Hub.files.values())
    kept = [path for where in (folder, homes) for path in where.rglob("*") if path.is_file()]
    assert not any(TOKEN in path.read_text(errors="ignore") for path in kept)
    assert run(LOAD, hub) == ("equal\n", "")


def test_a_token_as_argument(hub, run, folder):
    assert run(PUBLISH.replace('"me/faces"', f'"me/faces", token="{TOKEN}"'), hub) == ("published\n", "")


@pytest.mark.parametrize("endpoint, token, error", [
    ("hub", "", "PermissionError token: there is none; call huggingface_hub.login() or set HF_TOKEN first"),
    ("hub", "hf_wrong", ""),
    ("http://127.0.0.1:9", TOKEN, ""),
])  # fmt: skip
def test_what_goes_wrong_changes_nothing(hub, run, folder, endpoint, token, error):
    before = contents(folder)
    printed, _ = run(PUBLISH, hub if endpoint == "hub" else endpoint, token)
    assert "Error " in printed and printed.startswith(error)
    assert contents(folder) == before and not Hub.files


def test_not_loaded_as_garbage(hub, run, folder):
    """Under another name: what the test above has loaded may be in the cache."""
    publish, load = (program.replace("me/faces", "me/half") for program in (PUBLISH, LOAD))
    assert run(publish, hub, TOKEN) == ("published\n", "")
    del Hub.files["model.safetensors"]
    printed, error = run(load, hub)
    assert not printed and "model.safetensors" in error
    assert Diffusion.from_pretrained(folder / "local")
