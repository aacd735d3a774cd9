"""Holds what the clients sent, and the server took, against tests/openapi/gateway.yaml with every object closed."""

import json
import os
import sys

import jsonschema
import yaml

DOCUMENT = os.path.join(os.path.dirname(__file__), "../openapi/gateway.yaml")


def close(value):
    """What `allOf` makes is closed as a whole, anything else by itself."""
    if isinstance(value, list):
        for item in value:
            close(item)
    if isinstance(value, dict):
        for item in value.values():
            close(item)
        if value.get("type") == "object" and isinstance(value.get("properties"), dict):
            value.setdefault("additionalProperties", False)
        for part in value.get("allOf", []):
            part.pop("additionalProperties", None)
            value["unevaluatedProperties"] = False


def parts_of(value):
    """Every schema that is a part of a larger one, by its name."""
    if isinstance(value, dict):
        yield from (part["$ref"].split("/")[-1] for part in value.get("allOf", []) if "$ref" in part)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from parts_of(item)


with open(DOCUMENT) as file:
    document = yaml.safe_load(file)
close(document)
for name in parts_of(document):
    document["components"]["schemas"][name].pop("additionalProperties", None)

seen = {}
with open(sys.argv[1]) as file:
    for line in file:
        sent = json.loads(line)
        path, body = sent["path"], sent["body"]
        if path not in document["paths"]:
            assert path.endswith("/cancel"), f"{path} is not in the document"
            continue
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        judge = jsonschema.Draft202012Validator({"allOf": [schema], "components": document["components"]})
        # A field that is null was not sent.
        told = {name: value for name, value in body.items() if value is not None}
        for error in judge.iter_errors(told):
            sys.exit(f"POST {path} was taken and is not in the document: {error.message[:500]}")
        seen[path] = seen.get(path, 0) + 1
for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"):
    assert seen.get(path), f"no client asked {path}"
print(f"requests: {sum(seen.values())} of the clients are as the document has them")
