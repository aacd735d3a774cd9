"""anthropic's own client against the gateway's /v1/messages."""

import sys

import anthropic

from server import KEY, Server

ASKED = {"model": "wren", "max_tokens": 40, "messages": [{"role": "user", "content": "Hello! Who are you?"}]}

with Server() as server:
    client = anthropic.Anthropic(base_url=server.gateway, api_key=KEY, max_retries=0)
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
    long = {**ASKED, "max_tokens": 1900}
    try:
        client.with_options(max_retries=5).messages.create(**long, extra_headers={"x-deadline-ms": "1"})
    except anthropic.RateLimitError:
        assert server.metric("tasks_rejected_total", reason="DEADLINE_UNMET") == 1, "it was tried again"
    else:
        raise AssertionError("1900 tokens in 1 ms")
print(f"anthropic-python {anthropic.__version__}: passed on Python {sys.version.split()[0]}")
