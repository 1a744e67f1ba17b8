"""Serve the web site, or another folder, on this machine: every file with the type that browsers want.

    python tools/serve.py [folder] [port]

Without a folder it is site/, without a port 8000. (Python's own server asks the system for the types, and some systems
say that programs in JavaScript are plain text.)
"""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lessons import ROOT

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}


class Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES


def server(folder, port=8000):
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(folder)))


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "site"
    if not (folder / "index.html").is_file():
        raise SystemExit(f"There is no page in {folder}; run make site first.")
    port = sys.argv[2] if sys.argv[2:] else "8000"
    try:
        bound = server(folder, int(port))
    except (OSError, ValueError, OverflowError) as error:
        sentence = f"There is no serving at port {port} ({error}); name another one after the folder."
        raise SystemExit(sentence) from None
    with bound as running:
        print(f"http://127.0.0.1:{running.server_port}/  (Ctrl-C ends it)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            pass
