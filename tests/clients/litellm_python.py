"""LiteLLM against the gateway, by each of the dialects that it speaks: chats, plain completions, messages, responses, embeddings."""

import os
import sys
from importlib.metadata import version

# Its table of models' prices is for others' models: the one that comes with it will do.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

import record  # noqa: F401
from server import KEY, Server

litellm.suppress_debug_info = True
TURNS = [{"role": "user", "content": "Hello! Who are you?"}]
TEMPLATE = os.path.abspath(os.path.join(os.path.dirname(__file__), "../templates/hermes.jinja"))
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}

with Server(chat_template=TEMPLATE) as server:
    at = {"api_base": f"{server.gateway}/v1", "api_key": KEY, "num_retries": 0}
    greedy = {"temperature": 0, "max_tokens": 40}

    whole = litellm.completion(model="openai/wren", messages=TURNS, **greedy, **at).choices[0]
    assert whole.message.content and whole.finish_reason == "stop", whole
    stream = litellm.completion(model="openai/wren", messages=TURNS, stream=True, **greedy, **at)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) > 2 and "".join(pieces) == whole.message.content, pieces

    choice = {"type": "function", "function": {"name": "weather"}}
    asked = {"messages": TURNS, "tools": [TOOL], "tool_choice": choice, "temperature": 0, "max_tokens": 200}
    called = litellm.completion(model="openai/wren", **asked, **at).choices[0].message.tool_calls[0].function
    assert called.name == "weather" and '"city"' in called.arguments, called

    messages = {**at, "api_base": server.gateway}
    same = litellm.completion(model="anthropic/wren", messages=TURNS, **greedy, **messages).choices[0]
    assert same.message.content == whole.message.content, same
    called = litellm.completion(model="anthropic/wren", **asked, **messages).choices[0].message.tool_calls[0].function
    assert called.name == "weather", called

    plain = litellm.text_completion(model="text-completion-openai/wren", prompt="Once upon a time", **greedy, **at)
    assert plain.choices[0].text, plain
    response = litellm.responses(model="openai/wren", input=TURNS[0]["content"], temperature=0, max_output_tokens=40, **at)
    assert response.output[0].content[0].text == whole.message.content, response
    vectors = litellm.embedding(model="openai/wren", input=["a fox", "a bear"], **at).data
    assert len(vectors) == 2 and len(vectors[0]["embedding"]) == len(vectors[1]["embedding"]) > 0

    for wrong, kind in [({"api_key": "wrong-key"}, litellm.AuthenticationError), ({"model": "openai/x"}, litellm.NotFoundError)]:
        try:
            litellm.completion(**{"model": "openai/wren", "messages": TURNS, **at, **wrong})
        except kind:
            pass
        else:
            raise AssertionError(f"{wrong} was taken")
print(f"litellm {version('litellm')}: passed on Python {sys.version.split()[0]}")
