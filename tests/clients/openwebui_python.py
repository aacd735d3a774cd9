"""Open WebUI against the gateway: a server of its own over ours, asked by the API that its page uses.

It is installed without what it runs models of its own with, and is told to fetch nothing. A turn goes the way of a browser's: models,
a stream, then the small requests for a title, tags and what might be asked next.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import version

from server import KEY, Server

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TURNS = [{"role": "user", "content": "Hello! Who are you?"}]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class WebUi:
    """Its server, with a folder of its own."""

    def __init__(self, **settings):
        self.settings = settings

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.log = open(pathlib.Path(self.folder.name) / "log", "w+")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": self.folder.name,
            "DATA_DIR": self.folder.name,
            "WEBUI_SECRET_KEY": "only for this test",
            "WEBUI_AUTH": "False",
            # Nothing is to be fetched: vectors and transcriptions are other servers' affair.
            "OFFLINE_MODE": "True",
            "RAG_EMBEDDING_ENGINE": "openai",
            "AUDIO_STT_ENGINE": "openai",
            "ANONYMIZED_TELEMETRY": "false",
            **self.settings,
        }
        command = [os.path.join(os.path.dirname(sys.executable), "open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)]
        self.process = subprocess.Popen(
            command, env=environment, cwd=self.folder.name, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )
        for _ in range(1200):
            try:
                self.get("/health")
                break
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, self.said()
                time.sleep(0.1)
        else:
            raise AssertionError(f"it did not come up: {self.said()}")
        self.token = self.post("/api/v1/auths/signin", {"email": "", "password": ""})["token"]
        return self

    def __exit__(self, *failure):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if failure[0] is not None:
            print(self.said())
        self.log.close()
        self.folder.cleanup()

    def said(self):
        self.log.seek(0)
        return self.log.read()[-4000:]

    token = None

    def open(self, path, body=None):
        request = urllib.request.Request(self.url + path, data=None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        return urllib.request.urlopen(request, timeout=120)

    def get(self, path):
        with self.open(path) as answer:
            return json.load(answer)

    def post(self, path, body):
        with self.open(path, body) as answer:
            return json.load(answer)


def documented(server):
    """The variables that docs/clients.md has for it, with our address and key in them."""
    text = re.search(r"## Open WebUI\n.*?```sh\n(.*?)```", (ROOT / "docs/clients.md").read_text(), re.S)[1]
    found = dict(re.findall(r"-e ([A-Z_]+)=(\S+)", text))
    assert found["OPENAI_API_KEY"] == '"$KEY"' and found["OPENAI_API_BASE_URL"].endswith(":8081/v1"), found
    return {**found, "OPENAI_API_KEY": KEY, "OPENAI_API_BASE_URL": f"{server.gateway}/v1"}


with Server() as server, WebUi(**documented(server)) as ui:
    models = ui.get("/api/models")["data"]
    assert [model["id"] for model in models if model.get("owned_by") != "arena"] == ["wren"], models

    asked = {"model": "wren", "messages": TURNS, "temperature": 0, "max_tokens": 40}
    whole = ui.post("/api/chat/completions", {**asked, "stream": False})
    text = whole["choices"][0]["message"]["content"]
    assert text and whole["choices"][0]["finish_reason"] == "stop", whole
    pieces, usage = [], None
    with ui.open("/api/chat/completions", {**asked, "stream": True, "stream_options": {"include_usage": True}}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream"), stream.headers
        for line in stream:
            data = line.decode().removeprefix("data:").strip()
            if line.startswith(b"data:") and data != "[DONE]":
                chunk = json.loads(data)
                usage = chunk.get("usage") or usage
                pieces += [c["delta"].get("content") or "" for c in chunk["choices"]]
    assert "".join(pieces) == text and len(pieces) > 3, pieces
    assert usage["completion_tokens"] > 0, usage

    for task in ("title", "tags", "follow_up"):
        turns = [*TURNS, {"role": "assistant", "content": text}]
        made = ui.post(f"/api/v1/tasks/{task}/completions", {"model": "wren", "messages": turns, "chat_id": "a-chat"})
        assert made["choices"][0]["message"]["content"], made

    try:
        ui.post("/api/chat/completions", {**asked, "stream": False, "logit_bias": {"99999999": 1}})
    except urllib.error.HTTPError as error:
        assert error.code == 400 and "logit_bias" in error.read().decode()
    else:
        raise AssertionError("a token that is none was taken")
    assert server.metric("tokens_out_total") > 0
print(f"open-webui {version('open-webui')}: passed on Python {sys.version.split()[0]}")
