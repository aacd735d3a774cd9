"""anthropic's own client against the gateway's /v1/messages."""

import json
import os
import sys

import anthropic

import record  # noqa: F401
from server import KEY, Server

ASKED = {"model": "wren", "max_tokens": 40, "messages": [{"role": "user", "content": "Hello! Who are you?"}]}

with Server() as server:
    client = anthropic.Anthropic(base_url=server.gateway, api_key=KEY, max_retries=0, _strict_response_validation=True)
    greedy = {**ASKED, "system": "Be brief.", "extra_body": {"temperature": 0}}
    whole = client.messages.create(**greedy)
    assert whole.stop_reason == "end_turn" and whole.content[0].text and whole.usage.output_tokens > 0
    with client.messages.stream(**greedy) as stream:
        text = "".join(stream.text_stream)
        assert text == stream.get_final_text() == whole.content[0].text
    counted = client.messages.count_tokens(model="wren", system="Be brief.", messages=ASKED["messages"])
    assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    try:
        client.messages.create(**ASKED, tools=[{"name": "f", "input_schema": {"type": "object"}}])
    except anthropic.BadRequestError as error:
        assert "tools" in error.message
    else:
        raise AssertionError("tools were ignored")
    try:
        client.with_options(api_key="wrong").messages.create(**ASKED)
    except anthropic.AuthenticationError:
        pass
    else:
        raise AssertionError("a wrong key was taken")
    animal = {
        "type": "object",
        "properties": {"name": {"enum": ["Pip", "Hazel"]}, "age": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    formed = client.messages.create(**{**ASKED, "max_tokens": 200}, output_config={"format": {"type": "json_schema", "schema": animal}})
    assert json.loads(formed.content[0].text)["name"] in ("Pip", "Hazel"), formed
    long = {**ASKED, "max_tokens": 1900}
    try:
        client.with_options(max_retries=5).messages.create(**long, extra_headers={"x-deadline-ms": "1"})
    except anthropic.RateLimitError:
        assert server.metric("tasks_rejected_total", reason="DEADLINE_UNMET") == 1, "it was tried again"
    else:
        raise AssertionError("1900 tokens in 1 ms")
TEMPLATE = os.path.abspath(os.path.join(os.path.dirname(__file__), "../templates/hermes.jinja"))
TOOL = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
with Server(chat_template=TEMPLATE) as server:
    client = anthropic.Anthropic(base_url=server.gateway, api_key=KEY, max_retries=0, _strict_response_validation=True)
    asked = {**ASKED, "max_tokens": 200, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}
    called = client.messages.create(**asked, extra_body={"temperature": 0})
    block = called.content[-1]
    assert called.stop_reason == "tool_use" and block.type == "tool_use" and block.name == "weather"
    assert block.input["city"] in ("Paris", "Oslo"), block
    with client.messages.stream(**asked, extra_body={"temperature": 0}) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert final.content[-1].input == block.input and len(pieces) > 1
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
    turns = [*ASKED["messages"], {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(model="wren", max_tokens=20, messages=turns, tools=[TOOL])
    assert after.content
    counted = client.messages.count_tokens(model="wren", messages=turns, tools=[TOOL])
    assert counted.input_tokens == after.usage.input_tokens + after.usage.cache_read_input_tokens
print(f"anthropic-python {anthropic.__version__}: passed on Python {sys.version.split()[0]}")
