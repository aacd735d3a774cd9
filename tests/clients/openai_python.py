"""openai-python against the gateway: chats, streams, refusals, retries, time-outs. Every test is a function."""

import asyncio
import contextlib
import os
import sys
from typing import Literal

import openai
import pydantic

import record  # noqa: F401
from server import KEY, Server

MESSAGES = [{"role": "user", "content": "Hello! Who are you?"}]
LONG = {"model": "wren", "messages": MESSAGES, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}


TESTS = []


def test(function):
    TESTS.append(function)
    return function


def client_of(server, **options):
    """A client that holds every body and every chunk against its own types, and raises where they differ."""
    options = {"max_retries": 0, "_strict_response_validation": True, **options}
    return openai.OpenAI(base_url=f"{server.gateway}/v1", api_key=KEY, **options)


@contextlib.contextmanager
def refused(kind, code, param=None):
    try:
        yield
    except kind as error:
        assert (error.code, error.param) == (code, param), (error.code, error.param, error.message)
    else:
        raise AssertionError(f"no {kind.__name__}")


@test
def a_chat_is_answered_whole_and_in_a_stream(server):
    client = client_of(server)
    whole = client.chat.completions.create(model="wren", messages=MESSAGES, temperature=0, max_tokens=40)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason == "stop" and whole.usage.total_tokens > whole.usage.prompt_tokens
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="wren", messages=MESSAGES, temperature=0, max_tokens=40, stream=True, stream_options=options
    )
    *chunks, last = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert {c.system_fingerprint for c in chunks} == {whole.system_fingerprint}


@test
def texts_become_vectors_in_both_encodings(server):
    client = client_of(server)
    texts = ["A fox.", "Once upon a time"]
    # Without encoding_format the library asks for base64 and decodes it, after it has compared types: that cannot be strict.
    decoded = client_of(server, _strict_response_validation=False).embeddings.create(model="wren", input=texts)
    floats = client.embeddings.create(model="wren", input=texts, encoding_format="float")
    assert [d.index for d in decoded.data] == [0, 1] and decoded.model == "wren"
    for a, b in zip(decoded.data, floats.data):
        assert len(a.embedding) == len(b.embedding) > 0
        assert max(abs(x - y) for x, y in zip(a.embedding, b.embedding)) < 1e-6
        assert abs(sum(x * x for x in b.embedding) - 1) < 1e-5
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > 0
    short = client.embeddings.create(model="wren", input=[[5, 9, 17]], dimensions=8, encoding_format="float")
    assert len(short.data[0].embedding) == 8


@test
def the_stream_helper_gathers_the_same_answer(server):
    client = client_of(server)
    asked = {"model": "wren", "messages": MESSAGES, "temperature": 0, "max_tokens": 40}
    with client.chat.completions.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content
    assert final.choices[0].message.content == client.chat.completions.create(**asked).choices[0].message.content


@test
def logprobs_and_several_answers_have_their_types(server):
    answer = client_of(server).chat.completions.create(
        model="wren", messages=MESSAGES, n=2, seed=3, max_tokens=5, logprobs=True, top_logprobs=2
    )
    for choice in answer.choices:
        assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2] * len(choice.logprobs.content)
    assert [c.index for c in answer.choices] == [0, 1]


@test
def queue_facts_are_in_the_headers(server):
    raw = client_of(server).chat.completions.with_raw_response.create(model="wren", messages=MESSAGES, max_tokens=5)
    assert raw.headers["x-queue-position"] == "0" and int(raw.headers["x-predicted-start-ms"]) >= 0
    assert raw.parse()._request_id == raw.headers["x-request-id"]


@test
def plain_completions_and_models_work(server):
    client = client_of(server)
    text = client.completions.create(model="wren", prompt="Once upon a time", max_tokens=8, temperature=0, echo=True)
    assert text.choices[0].text.startswith("Once upon a time") and text.usage.completion_tokens == 8
    # OpenAI's own answers have null for the first token, too, which its types do not allow.
    lenient = client_of(server, _strict_response_validation=False)
    scored = lenient.completions.create(model="wren", prompt="Once upon a time", max_tokens=0, echo=True, logprobs=2)
    told = scored.choices[0].logprobs
    assert scored.choices[0].text == "Once upon a time" and scored.usage.completion_tokens == 0
    assert told.token_logprobs[0] is None and all(x < 0 for x in told.token_logprobs[1:]) and len(told.tokens) > 2, told
    assert [m.id for m in client.models.list()] == ["wren"]
    assert client.models.retrieve("wren").owned_by == "orchestratord"


@test
def what_is_not_supported_is_refused_by_name(server):
    client = client_of(server)

    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with refused(openai.BadRequestError, "invalid_value", "tools"):
        client.chat.completions.create(model="wren", messages=MESSAGES, tools=[tool])
    with refused(openai.BadRequestError, "context_length_exceeded", "messages"):
        client.chat.completions.create(model="wren", messages=[{"role": "user", "content": "word " * 3000}])
    with refused(openai.NotFoundError, "model_not_found", "model"):
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    with refused(openai.AuthenticationError, "invalid_api_key"):
        client.with_options(api_key="sk-wrong").models.list()


class Animal(pydantic.BaseModel):
    name: Literal["Pip", "Hazel"]
    age: int = pydantic.Field(ge=1, le=9)
    shy: bool


@test
def parse_gives_what_the_models_schema_says(server):
    client = client_of(server)
    asked = {"model": "wren", "max_tokens": 300, "temperature": 1.5, "seed": 5}
    whole = client.chat.completions.parse(messages=MESSAGES, response_format=Animal, **asked)
    animal = whole.choices[0].message.parsed
    assert isinstance(animal, Animal) and whole.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(messages=MESSAGES, response_format=Animal, **asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == animal
    response = client.responses.parse(model="wren", input="An animal, please.", text_format=Animal)
    assert isinstance(response.output_parsed, Animal)
    free = {"type": "json_object"}
    text = client.chat.completions.create(
        model="wren", messages=MESSAGES, response_format=free, temperature=0, max_tokens=5
    )
    assert text.choices[0].message.content.startswith("{")


class Weather(pydantic.BaseModel):
    city: Literal["Paris", "Oslo"]
    days: int = pydantic.Field(ge=1, le=7)


@test
def tools_are_called_as_their_schema_says(_):
    template = os.path.join(os.path.dirname(__file__), "../templates/hermes.jinja")
    with Server(chat_template=os.path.abspath(template)) as server:
        client = client_of(server)
        asked = {
            "model": "wren",
            "messages": MESSAGES,
            "tools": [openai.pydantic_function_tool(Weather, name="weather")],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "temperature": 0,
            "max_tokens": 300,
        }
        whole = client.chat.completions.parse(**asked)
        call = whole.choices[0].message.tool_calls[0]
        assert whole.choices[0].finish_reason == "tool_calls" and isinstance(call.function.parsed_arguments, Weather)
        with client.chat.completions.stream(**asked) as stream:
            done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
            final = stream.get_final_completion()
        assert [e.name for e in done] == ["weather"] and done[0].parsed_arguments == call.function.parsed_arguments
        assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
        turns = [*MESSAGES, whole.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        assert client.chat.completions.create(model="wren", messages=turns, max_tokens=10).choices[0].message.content
        made = client.responses.parse(
            model="wren",
            input="Weather?",
            tools=[openai.pydantic_function_tool(Weather, name="weather")["function"] | {"type": "function"}],
            tool_choice="required",
        )
        assert made.output[0].type == "function_call" and made.output[0].name == "weather"


@test
def a_schema_that_cannot_be_followed_is_refused(server):
    schema = {"name": "odd", "strict": True, "schema": {"type": "nonsense"}}
    with refused(openai.BadRequestError, "invalid_value", "response_format"):
        client_of(server).chat.completions.create(
            model="wren", messages=MESSAGES, response_format={"type": "json_schema", "json_schema": schema}
        )


@test
def many_at_once_each_get_their_own_answer(server):
    async def all_of_them():
        client = openai.AsyncOpenAI(base_url=f"{server.gateway}/v1", api_key=KEY, max_retries=0, _strict_response_validation=True)

        async def one(seed):
            stream = await client.chat.completions.create(
                model="wren", messages=MESSAGES, seed=seed, temperature=1.5, max_tokens=20, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        first = await asyncio.gather(*(one(seed) for seed in range(12)))
        again = await asyncio.gather(*(one(seed) for seed in reversed(range(12))))
        assert first == again[::-1], "the same seeds in another crowd"
        assert len(set(first)) > 6

    asyncio.run(all_of_them())


@test
def a_client_that_gives_up_frees_the_slot(server):
    client = client_of(server)
    running = lambda: server.metric("sequences_running")
    stream = client.chat.completions.create(**LONG, stream=True)
    next(iter(stream))
    stream.close()
    server.wait_until("the slot to be free", lambda: running() == 0)
    try:
        client.with_options(timeout=0.3).chat.completions.create(**LONG)
    except openai.APITimeoutError:
        server.wait_until("the slot to be free", lambda: running() == 0)
    else:
        raise AssertionError("1900 tokens in 0.3 s")


@test
def the_sdks_own_retries_get_through_a_full_queue(_):
    with Server(slots_max=1, queue_capacity=1) as server:
        client = client_of(server)
        streams = [client.chat.completions.create(**LONG, stream=True) for _ in range(2)]
        server.wait_until("a full queue", lambda: server.metric("queue_depth") == 1)
        try:
            client.chat.completions.create(model="wren", messages=MESSAGES, max_tokens=5)
        except openai.RateLimitError as error:
            assert error.code == "queue_full" and int(error.response.headers["retry-after-ms"]) >= 1
            assert error.response.headers["x-should-retry"] == "true"
        else:
            raise AssertionError("the queue was full")
        before = server.metric("tasks_rejected_total")

        async def patient():
            patient = openai.AsyncOpenAI(base_url=f"{server.gateway}/v1", api_key=KEY, max_retries=50)
            asked = asyncio.create_task(
                patient.chat.completions.create(model="wren", messages=MESSAGES, max_tokens=5)
            )
            while server.metric("tasks_rejected_total") == before:
                await asyncio.sleep(0.05)
            streams[0].close()
            return await asked

        assert asyncio.run(patient()).usage.completion_tokens > 0
        streams[1].close()


@test
def a_hopeless_deadline_is_not_tried_again(server):
    before = server.metric("tasks_rejected_total", reason="DEADLINE_UNMET")
    with refused(openai.RateLimitError, "deadline_unmet"):
        client_of(server, max_retries=5).chat.completions.create(**LONG, extra_headers={"x-deadline-ms": "1"})
    assert server.metric("tasks_rejected_total", reason="DEADLINE_UNMET") == before + 1


@test
def a_stream_that_waits_in_the_queue_is_read_as_any_other(_):
    with Server(slots_max=1, heartbeat_ms=50) as server:
        client = client_of(server)
        occupied = client.chat.completions.create(**LONG, stream=True)
        next(iter(occupied))
        waiting = client.chat.completions.create(model="wren", messages=MESSAGES, max_tokens=5, stream=True)
        assert waiting.response.headers["x-queue-position"] == "0"
        occupied.close()
        assert list(waiting)[-1].choices[0].finish_reason in ("stop", "length")


@test
def responses_stream_and_go_on(server):
    client = client_of(server)
    asked = {"model": "wren", "input": "Hello! Who are you?", "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.status == "completed" and whole.output_text
    with client.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(deltas) == whole.output_text
    after = client.responses.create(model="wren", input="Thank you!", previous_response_id=whole.id)
    assert after.output_text and after.usage.input_tokens > whole.usage.input_tokens
    with client.responses.create(**asked, background=True, stream=True) as stream:
        begun = [event for event, _ in zip(stream, range(6))]
    rest = list(client.responses.retrieve(begun[0].response.id, stream=True, starting_after=begun[-1].sequence_number))
    pieces = [e.delta for e in begun + rest if e.type == "response.output_text.delta"]
    assert "".join(pieces) == whole.output_text and rest[-1].type == "response.completed"
    background = client.responses.create(**asked, background=True)
    server.wait_until("the response", lambda: client.responses.retrieve(background.id).status == "completed")


with Server() as shared:
    for one in TESTS:
        print("openai-python:", one.__name__.replace("_", " "), flush=True)
        one(shared)
print(f"openai-python {openai.__version__}: {len(TESTS)} passed on Python {sys.version.split()[0]}")
