"""Claude Code, Codex, continue and aider against the gateway: two turns each, with tools to choose from where they have any, as
their programs send them.

wren's context is too short for what agents say before a turn. Here it is told that it has a longer one: what it then says is
noise, but it is asked, answers, and is understood.
"""

import json
import os
import pathlib
import re
import struct
import subprocess
import tempfile

from server import KEY, Server

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ASKED = "Hello! Who are you?"
CONTEXT_KEY = b"llama.context_length"
# Of a value in GGUF's metadata: 32 bits without a sign.
U32 = 4


def with_context(length, path):
    """wren, with another length of context in its metadata."""
    model = bytearray((ROOT / "engine/models/wren.gguf").read_bytes())
    at = model.index(CONTEXT_KEY) + len(CONTEXT_KEY)
    assert struct.unpack_from("<I", model, at) == (U32,)
    struct.pack_into("<I", model, at + 4, length)
    path.write_bytes(model)


def run(command, home, **variables):
    """What a program prints, with a home of its own and nothing of ours in its environment."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **variables}
    done = subprocess.run(command, env=environment, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def documented(fence, begins, server, model):
    """What docs/clients.md has for a client, with our address, key and model in it."""
    text = re.search(rf"```{fence}\n({begins}.*?)```", (ROOT / "docs/clients.md").read_text(), re.S)[1]
    assert "http://127.0.0.1:8081" in text
    text = text.replace("http://127.0.0.1:8081", server.gateway).replace("apiKey: KEY", f"apiKey: {KEY}")
    return text.replace("NAME", model).replace("wren", model)


def claude_code_is_answered(server, model, home):
    version = run(["claude", "--version"], home).split()[0]
    variables = {
        "ANTHROPIC_BASE_URL": server.gateway,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "60",
        # An answer that ends where it must is asked for again otherwise.
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }
    command = ["claude", "-p", ASKED, "--output-format", "stream-json", "--verbose", "--tools", "Read", "--system-prompt", "Be brief."]
    for more in ([], ["--continue"]):
        events = [json.loads(line) for line in run(command + more, home, **variables).splitlines()]
        answers = [e["message"] for e in events if e["type"] == "assistant" and e["message"]["model"] == model]
        assert any(block.get("text") for answer in answers for block in answer["content"]), events
    print(f"claude-code {version}: passed")


def codex_is_answered(server, model, home):
    version = run(["codex", "--version"], home).split()[-1]
    config = home / ".codex"
    config.mkdir()
    (home / "brief.md").write_text("Be brief.")
    text = documented("toml", "model = ", server, model)
    (config / "config.toml").write_text(f'model_instructions_file = "{home}/brief.md"\n{text}')
    for more in ([], ["resume", "--last"]):
        said = run(["codex", "exec", *more, "--skip-git-repo-check", "--json", ASKED], home, ORCHESTRATORD_KEY=KEY)
        events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        assert any(e["item"]["text"] for e in events if e.get("item", {}).get("type") == "agent_message"), events
        assert events[-1]["type"] == "turn.completed" and events[-1]["usage"]["output_tokens"] > 0, events
    print(f"codex {version}: passed")


def continue_is_answered(server, model, home):
    version = run(["cn", "--version"], home).strip()
    (home / "config.yaml").write_text(documented("yaml", "name: orchestratord", server, model))
    for more in ([], ["--resume"]):
        command = ["cn", "-p", ASKED, "--config", "config.yaml", *more]
        assert run(command, home, CONTINUE_TELEMETRY_ENABLED="0").strip()
    print(f"continue {version}: passed")


def aider_is_answered(server, model, home):
    version = run(["aider", "--version"], home).split()[-1]
    lines = documented("sh", "export OPENAI_API_BASE", server, model)
    variables = dict(pair.split("=", 1) for pair in lines.splitlines()[0].removeprefix("export ").split())
    command = lines.splitlines()[1].split()
    # What it asks a person otherwise, and where it would look for news.
    command += ["--no-git", "--yes-always", "--no-check-update", "--analytics-disable", "--chat-mode", "ask", "--message", ASKED]
    for more in ([], ["--no-stream"]):
        said = run(command + more, home, **{**variables, "OPENAI_API_KEY": KEY})
        received = re.search(r"([\d.k]+) received", said)
        assert received and received[1] != "0", said[-2000:]
    print(f"aider {version}: passed")


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    with_context(65536, folder / "long.gguf")
    settings = {
        "model": folder / "long.gguf",
        "chat_template": ROOT / "tests/templates/hermes.jinja",
        "kv_blocks_max": 65536 // 16,
        # Codex takes an answer that is cut off for a failure; this model ends a story within some hundred tokens.
        "gateway_max_tokens": 4000,
    }
    with Server(**settings) as server:
        for test in (claude_code_is_answered, codex_is_answered, continue_is_answered, aider_is_answered):
            home = folder / test.__name__
            home.mkdir()
            test(server, "long", home)
        assert server.metric("tokens_out_total") > 0
