"""Publishing a model and loading it again, on a small stand-in for the Hugging Face hub."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import contents, finished, run, tiny

TOKEN = "hf_" + "secret" * 5


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as publishing and loading a model need; me/half has no weights."""

    files, commits, commit = {}, 0, "a" * 40

    def respond(self, status, body=b"", headers=()):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        kind = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        for name, value in (kind | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/me/faces"
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.respond(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.respond(200, {"url": address, "name": "me/faces"})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.respond(200, {"files": [file | {"shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            entries = [json.loads(line) for line in body.splitlines()]
            values = [entry["value"] for entry in entries if entry["key"] == "file"]
            Hub.files |= {value["path"]: base64.b64decode(value["content"]) for value in values}
            Hub.commits += 1
            result = {
                "commitUrl": f"{address}/commit/{self.commit}",
                "commitOid": self.commit,
                "hookOutput": "",
            }
            self.respond(200, result)
        else:
            self.respond(200, {})

    def do_GET(self):
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        content = None if self.path.startswith("/me/half/") and "model" in name else self.files.get(name)
        if "/resolve/" not in self.path:
            self.respond(200, {"id": "me/faces", "sha": self.commit, "siblings": []})
        elif content is None:
            self.respond(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit})
        else:
            tag = hashlib.sha256(content).hexdigest()
            self.respond(200, content, {"ETag": tag, "X-Repo-Commit": self.commit})

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


USER = """
import os
import torch
from diffusion_course.images import publish
from diffusion_utils import Diffusion

def attempt(work, token="", **options):
    os.environ["HF_TOKEN"] = token
    try:
        print(">", work(**options))
    except Exception as error:
        print(">", type(error).__name__, str(error).replace(chr(10), " "))

def send(**options):
    publish(local, "me/faces", **options)
    return "published"

def load(name):
    return all(map(torch.equal, local.state_dict().values(), Diffusion.from_pretrained(name).state_dict().values()))

token = os.environ.pop("SECRET")
local = Diffusion.from_pretrained(os.environ["LOCAL"])
"""
ALL = 'attempt(send)\nattempt(send, "hf_wrong")\nattempt(send, token)\nattempt(send, token=token)\n'


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What somebody sees who publishes without a token, with a wrong one, twice with a right one, and loads."""
    folder, server = tmp_path_factory.mktemp("hub"), ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tiny().save_pretrained(folder / "local")
    before = contents(folder / "local")
    folders = dict(HF_HOME=str(folder / "home"), LOCAL=str(folder / "local"))
    variables = dict(HF_HUB_OFFLINE="0", SECRET=TOKEN, **folders)
    here = f"{USER}{ALL}attempt(load, name='me/faces')\nattempt(load, name='me/half')"
    here = run(here, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", **variables)
    away = run(f"{USER}attempt(send, token)", HF_ENDPOINT="http://127.0.0.1:9", **variables)
    outputs = [finished(process) for process in (here, away)]
    server.shutdown()
    server.server_close()
    assert contents(folder / "local") == before
    assert not any(TOKEN in output for output in outputs)
    assert not any(TOKEN.encode() in content for content in [*contents(folder).values(), *Hub.files.values()])
    assert Hub.files["model.safetensors"] == before[folder / "local" / "model.safetensors"]
    return [re.findall("^> (.*)", output, re.M) for output in outputs]


def test_publish_and_load(printed):
    """With the token of the environment, or as an argument; it is written nowhere."""
    assert printed[0][2:5] == ["published", "published", "True"] and Hub.commits == 2
    assert {"config.json", "model.safetensors"} <= set(Hub.files)


def test_what_goes_wrong_is_said(printed):
    """And nothing is sent. What has no weights is not loaded as garbage."""
    without, wrong = printed[0][:2]
    assert without.startswith("PermissionError token: there is none; call huggingface_hub.login()")
    assert "Error " in wrong and "Error " in printed[1][0]
    assert "Error " in printed[0][5] and "model.safetensors" in printed[0][5]
