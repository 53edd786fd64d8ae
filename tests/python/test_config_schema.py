"""The shipped schema and the program agree: what it prints is valid, what the schema refuses it refuses too."""

import json
import pathlib

import jsonschema
import pytest
from command_line import weightcast

SCHEMA = json.loads((pathlib.Path(__file__).parents[2] / "schedule/config.schema.json").read_text())


def leaves(schema, path=()):
    for name, entry in schema["properties"].items():
        if "properties" in entry:
            yield from leaves(entry, (*path, name))
        else:
            yield (*path, name), entry


def nested(path, value):
    for name in reversed(path):
        value = {name: value}
    return value


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_printed_defaults_are_valid_and_are_the_schemas():
    printed = json.loads(weightcast("config", "--print").stdout)
    jsonschema.validate(printed, SCHEMA)
    for path, entry in leaves(SCHEMA):
        value = printed
        for name in path:
            value = value[name]
        assert value == entry["default"], path


def test_the_program_prints_the_shipped_schema():
    assert json.loads(weightcast("config", "--schema").stdout) == SCHEMA


@pytest.mark.parametrize("path", [path for path, _ in leaves(SCHEMA)], ids="/".join)
def test_what_the_schema_refuses_the_program_refuses(path, tmp_path):
    entry = dict(leaves(SCHEMA))[path]
    bad = [None, {}]
    if entry["type"] == "integer":
        bad += [entry["minimum"] - 1, entry["maximum"] + 1, "1", 1.5]
    elif entry["type"] == "boolean":
        bad += [0, "true"]
    elif entry["type"] == "string":
        bad += [1] + (["no such value"] if "enum" in entry else []) + ([""] if "pattern" in entry else [])
    elif entry["type"] == "array":
        bad += ["text", [1]] + ([[""]] if "pattern" in entry["items"] else [])
    file = tmp_path / "config.json"
    for value in bad:
        document = nested(path, value)
        assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(document), document
        file.write_text(json.dumps(document))
        result = weightcast("config", "--check", file, check=False)
        assert result.returncode == 2, document
        assert f"{file}: /{'/'.join(path)}: " in result.stderr
