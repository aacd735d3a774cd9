"""What Zed sends to a server that speaks OpenAI's chats, and what it needs of the answers.

Zed is a program with windows, so it is not run here. Its provider for compatible servers always streams, asks for usage, and
reads line by line: every `data:` must be a chunk with `choices` or an object `error`; calls of functions are put together by
their index; only `stop` and `tool_calls` are ends that it knows as such. This does the same, and is stricter about types.
"""

import json
import os
import sys
import uuid

import httpx

import record  # noqa: F401
from server import KEY, Server

TEMPLATE = os.path.abspath(os.path.join(os.path.dirname(__file__), "../templates/hermes.jinja"))
# A description of one of its tools, in the subset of JSON schemas that it uses for such servers.
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read_file",
            "description": "Reads a file of the project.",
            "parameters": {
                "type": "object",
                "required": ["path"],
                "properties": {
                    "path": {"type": "string", "enum": ["src/main.rs", "README.md"], "description": "Where it lies."},
                    "start_line": {"type": "integer", "nullable": True, "description": "The first line that is wanted."},
                },
                "additionalProperties": False,
            },
        },
    }
]


class Answer:
    """A stream as Zed's parser takes it in."""

    def __init__(self):
        self.text, self.calls, self.usage, self.ends = "", {}, None, []

    def take(self, chunk):
        usage = chunk.get("usage")
        if usage is not None:
            assert all(isinstance(usage[name], int) for name in ("prompt_tokens", "completion_tokens", "total_tokens")), usage
            self.usage = usage
        assert isinstance(chunk["choices"], list), chunk
        for choice in chunk["choices"][:1]:
            assert isinstance(choice["index"], int), choice
            self.take_delta(choice["delta"] or {})
            if choice["finish_reason"] is not None:
                self.ends.append(choice["finish_reason"])

    def take_delta(self, delta):
        assert delta.get("role") in (None, "assistant"), delta
        assert isinstance(delta.get("content"), (str, type(None))), delta
        self.text += delta.get("content") or ""
        for piece in delta.get("tool_calls") or []:
            call = self.calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
            function = piece.get("function") or {}
            call["id"] = piece.get("id") or call["id"]
            call["name"] = function.get("name") or call["name"]
            call["arguments"] += function.get("arguments") or ""
            # It shows a call as it grows, and can do so only when it knows whose it is.
            assert call["id"] and call["name"], piece


def request(messages, **more):
    return {
        "model": "wren",
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 1.0,
        "prompt_cache_key": str(uuid.uuid4()),
        **more,
    }


def ask(server, body, key=KEY, **headers):
    """The answer, or the status and headers of a refusal."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", **headers}
    with httpx.stream("POST", f"{server.gateway}/v1/chat/completions", json=body, headers=headers, timeout=60) as response:
        if response.status_code != 200:
            response.read()
            return response
        answer, done = Answer(), False
        for line in response.iter_lines():
            data = line[5:].removeprefix(" ") if line.startswith("data:") else None
            if data == "[DONE]":
                done = True
            elif data is not None:
                assert not done, "something came after the end"
                answer.take(json.loads(data))
        assert done
        return answer


def turns_are_answered(server):
    system = {"role": "system", "content": "Be brief."}
    # Two pieces of one turn are parts; one is a plain text.
    asked = {"role": "user", "content": [{"type": "text", "text": "Hello!"}, {"type": "text", "text": " Who are you?"}]}
    answer = ask(server, request([system, asked], max_completion_tokens=200))
    assert answer.text and answer.ends == ["stop"], (answer.text, answer.ends)
    assert answer.usage["prompt_tokens"] > 0 and answer.usage["completion_tokens"] > 0
    said = {"role": "assistant", "content": answer.text}
    again = ask(server, request([system, asked, said, {"role": "user", "content": "And then?"}], max_completion_tokens=20))
    assert again.text and len(again.ends) == 1


def functions_are_called_and_their_results_read(server):
    asked = {"role": "user", "content": "What is in README.md?"}
    tools = {"tools": TOOLS, "parallel_tool_calls": False}
    answer = ask(server, request([asked], **tools, tool_choice="required", max_completion_tokens=200))
    assert answer.ends == ["tool_calls"] and len(answer.calls) == 1, (answer.ends, answer.calls)
    call = answer.calls[0]
    assert call["name"] == "read_file" and json.loads(call["arguments"])["path"] in ("src/main.rs", "README.md"), call
    function = {"name": call["name"], "arguments": call["arguments"]}
    turns = [
        asked,
        # A turn that only calls has no text.
        {"role": "assistant", "content": None, "tool_calls": [{"id": call["id"], "type": "function", "function": function}]},
        {"role": "tool", "content": "# A project", "tool_call_id": call["id"]},
    ]
    after = ask(server, request(turns, **tools, tool_choice="auto", max_completion_tokens=60))
    assert len(after.ends) == 1 and (after.text or after.calls)
    # For the title of a thread it forbids calls but still shows the functions.
    title = ask(server, request([*turns, {"role": "user", "content": "A title, please."}], **tools, tool_choice="none", max_completion_tokens=20))
    assert title.text and not title.calls


def refusals_say_what_it_can_act_on(server):
    hello = [{"role": "user", "content": "Hello!"}]
    assert ask(server, request(hello), key="wrong").status_code == 401
    assert ask(server, {**request(hello), "model": "other"}).status_code == 404
    late = ask(server, request(hello, max_completion_tokens=1900), **{"x-deadline-ms": "1"})
    assert late.status_code == 429 and late.json()["error"]["message"], late.text
    thoughts = ask(server, request(hello, reasoning_effort="high"))
    assert thoughts.status_code == 400 and thoughts.json()["error"]["param"] == "reasoning_effort", thoughts.text


with Server(chat_template=TEMPLATE) as server:
    turns_are_answered(server)
    functions_are_called_and_their_results_read(server)
    refusals_say_what_it_can_act_on(server)
print(f"what Zed sends: passed on Python {sys.version.split()[0]}")
