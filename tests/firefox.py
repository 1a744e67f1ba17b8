"""Firefox without a driver: it listens for Marionette, which is JSON with its length before it.

with Firefox() as firefox:
    firefox.open("http://127.0.0.1:8000/")
    firefox.wait("document.title !== ''")
    title = firefox.evaluate("return document.title")
"""

import json
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAM = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
SETTINGS = """
user_pref("marionette.port", 0);
user_pref("app.update.auto", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("toolkit.telemetry.reportingpolicy.firstRun", false);
"""


class Firefox:
    """A Firefox without a window, with a new profile."""

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        folder = Path(self.profile.name)
        (folder / "user.js").write_text(SETTINGS)
        options = ["--marionette", "--headless", "--no-remote", "--profile", str(folder)]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([PROGRAM, *options], **silent)
        port, end = folder / "MarionetteActivePort", time.monotonic() + 120
        while not (port.exists() and port.read_text()):
            assert self.process.poll() is None and time.monotonic() < end, "Firefox does not start"
            time.sleep(0.1)
        self.socket = socket.create_connection(("127.0.0.1", int(port.read_text())), timeout=300)
        self.number = 0
        self.receive()  # it introduces itself
        self.send("WebDriver:NewSession", timeouts={"script": 300_000})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()
        self.process.terminate()
        self.process.wait(60)
        self.profile.cleanup()

    def receive(self):
        length = b""
        while not length.endswith(b":"):
            length += self.socket.recv(1)
        data, count = b"", int(length[:-1])
        while len(data) < count:
            data += self.socket.recv(count - len(data))
        return json.loads(data)

    def send(self, command, **arguments):
        self.number += 1
        message = json.dumps([0, self.number, command, arguments]).encode()
        self.socket.sendall(b"%d:%s" % (len(message), message))
        _, _, error, result = self.receive()
        assert error is None, error
        return result

    def open(self, address):
        self.send("WebDriver:Navigate", url=address)

    def evaluate(self, script, *arguments):
        """What `script`, the body of an async function, returns; its arguments are arguments[0] and so on."""
        body = "const [args, done] = [Array.from(arguments).slice(0, -1), arguments[arguments.length - 1]];"
        body += f"(async function () {{ {script} }}).apply(null, args).then(done, (error) => done({{ error: `${{error}}` }}));"
        result = self.send("WebDriver:ExecuteAsyncScript", script=body, args=arguments, sandbox=None)["value"]
        assert not (isinstance(result, dict) and result.get("error")), result
        return result

    def wait(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not self.evaluate(f"return Boolean({condition})"):
            assert time.monotonic() < end, condition
            time.sleep(0.2)
