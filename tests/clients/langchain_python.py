"""LangChain's chat model against the gateway: answers, streams, structured output, tools."""

import os
import sys
from importlib.metadata import version
from typing import Literal

import pydantic
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

import record  # noqa: F401
from server import KEY, Server


class Animal(pydantic.BaseModel):
    name: Literal["Pip", "Hazel"]
    age: int = pydantic.Field(ge=1, le=9)


@tool
def weather(city: Literal["Paris", "Oslo"]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def model_of(server, **options):
    settings = {"temperature": 0, "max_tokens": 300, "max_retries": 0, **options}
    return ChatOpenAI(model="wren", base_url=f"{server.gateway}/v1", api_key=KEY, **settings)


TEMPLATE = os.path.abspath(os.path.join(os.path.dirname(__file__), "../templates/hermes.jinja"))
with Server(chat_template=TEMPLATE) as server:
    model = model_of(server)
    whole = model.invoke("Hello! Who are you?")
    assert whole.content and whole.response_metadata["finish_reason"] == "stop" and whole.usage_metadata["output_tokens"]
    pieces = list(model.stream("Hello! Who are you?"))
    assert len(pieces) > 2 and "".join(p.content for p in pieces) == whole.content
    assert [a.content for a in model.batch(["Hello! Who are you?"] * 3)] == [whole.content] * 3

    animal = model.with_structured_output(Animal, method="json_schema").invoke("An animal, please.")
    assert isinstance(animal, Animal), animal
    animal = model.with_structured_output(Animal, method="function_calling", strict=True).invoke("An animal, please.")
    assert isinstance(animal, Animal), animal

    caller = model.bind_tools([weather], tool_choice="weather", strict=True)
    called = caller.invoke("Weather?")
    call = called.tool_calls[0]
    assert call["name"] == "weather" and call["args"]["city"] in ("Paris", "Oslo"), called
    streamed = None
    for piece in caller.stream("Weather?"):
        streamed = piece if streamed is None else streamed + piece
    assert streamed.tool_calls[0]["args"] == call["args"], streamed
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert model.invoke([("user", "Weather?"), called, result]).content

    by_responses = model_of(server, use_responses_api=True)
    assert by_responses.invoke("Hello! Who are you?").text == whole.content
print(f"langchain-openai {version('langchain-openai')}: passed on Python {sys.version.split()[0]}")
