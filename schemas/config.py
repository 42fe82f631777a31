"""Configuration: YAML into frozen, strict models, with `--set a.b=c` overrides.

An unknown key is an error with a suggestion, never ignored; values are checked once, here, and every message carries the file and the full
key path. Price: no interpolation and no inheritance between files; each file says everything it changes from the defaults.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from schemas.errors import ConfigError

__all__ = ["StrictConfig", "build_config", "load_config", "merge_overrides", "read_yaml"]


class StrictConfig(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, field docstrings are the documentation."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), validate_default=True
    )


C = TypeVar("C", bound=StrictConfig)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file (or a `.json` one); ConfigError when it is missing, unreadable or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"config file {path} cannot be read ({error.strerror}); give an existing YAML file"
        ) from error
    try:
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise ConfigError(f"config file {path} is not valid {path.suffix[1:].upper() or 'YAML'}: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"config file {path} holds a {type(value).__name__}, expected a mapping of keys to values")
    return value


def merge_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with each `a.b=c` applied; c is read as YAML, so `--set x=null` and `--set x=[1,2]` work."""
    merged = _deep_copy(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        parts = key.split(".")
        if not separator or not all(parts):
            raise ConfigError(
                f"--set {override!r} is not of the form key=value; write for example --set output=/data/run"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error
        node = merged
        for part in parts[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {override!r}: {part!r} is a {type(child).__name__}, not a section with keys")
            node = child
        node[parts[-1]] = value
    return merged


def _deep_copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _deep_copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value


def build_config(model: type[C], values: dict[str, Any], *, source: str) -> C:
    """Validate `values`; every problem is reported at once, as `source: key.path: what is wrong`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, problem, source) for problem in error.errors())) from error


def load_config(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file, apply overrides, validate into `model`."""
    return build_config(model, merge_overrides(read_yaml(path), overrides), source=str(path))


def _explain(model: type[BaseModel], problem: Any, source: str) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(sorted(known))}"
        return f"{source}: {key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{source}: {key}: missing; this key has no default, add it to the file or use --set {key}=..."
    if problem["type"] == "model_type":
        inside = ", ".join(_known_keys(model, location))
        return f"{source}: {key}: expected a section with keys of {inside} (got {problem['input']!r})"
    message = _in_words(_field_at(model, location), problem)
    if not location:  # a check across keys, whose message names them; its input is the whole file
        return f"{source}: {message}"
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):  # likewise, of a section
        return f"{source}: {key}: {message}"
    return f"{source}: {key}: {message} (got {problem['input']!r})"


_WORDS = {
    "literal_error": "give {expected}",
    "bool_type": "give true or false",
    "bool_parsing": "give true or false",
    "int_type": "give a whole number",
    "int_parsing": "give a whole number",
    "int_from_float": "give a whole number",
    "float_type": "give a number",
    "float_parsing": "give a number",
    "finite_number": "give a finite number",
    "string_type": "give text, in quotes if it looks like a number",
    "path_type": "give a path",
    "dict_type": "give a mapping of keys to values",
    "list_type": "give a list",
    "tuple_type": "give a list",
    "too_short": "give at least {min_length} of them",
    "too_long": "give at most {max_length} of them",
    "string_too_short": "give text of {min_length} characters or more",
    "string_too_long": "give text of {max_length} characters or fewer",
}
"""What to do about each kind of problem, by the validator's name of it; other kinds keep the validator's sentence."""
_LIMITS = {"gt": "above {}", "ge": "of at least {}", "lt": "below {}", "le": "of at most {}"}
_SAME_CHARACTERS = re.compile(r"\^\[([^\]]+)\]\+\$")


def _in_words(field: FieldInfo | None, problem: Any) -> str:
    """What should be given instead, with the whole range of a number."""
    kind, context = problem["type"], problem.get("ctx", {})
    limits = {key: context[key] for key in _LIMITS if key in context}
    if limits:
        for constraint in () if field is None else field.metadata:
            limits |= {key: value for key in _LIMITS if (value := getattr(constraint, key, None)) is not None}
        words = [text.format(_number(limits[key])) for key, text in _LIMITS.items() if key in limits]
        return f"give a number {' and '.join(words)}"
    if kind == "string_pattern_mismatch":
        same = _SAME_CHARACTERS.fullmatch(context["pattern"])
        return f"give text of the characters {same[1]} alone" if same else f"give text of the form {context['pattern']}"
    if kind in _WORDS:
        return _WORDS[kind].format(**context)
    return str(problem["msg"]).removeprefix("Value error, ")


def _number(value: float) -> str:
    """As people write it: 0.5, 1, 100,000."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _field_at(model: type[BaseModel], location: Sequence[str]) -> FieldInfo | None:
    """The field that `location` leads to; None inside lists and mappings of plain values, whose limits are not the field's."""
    current: type[BaseModel] | None = model
    field = None
    for part in location:
        if current is not None and part in current.model_fields:
            field = current.model_fields[part]
            current = _nested_model(field.annotation)
        elif current is None or field is None:
            return None
    return field


def _known_keys(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Field names of the (possibly nested) model that `location` leads to; list indices and tags are stepped over."""
    current = model
    for part in location:
        field = current.model_fields.get(part)
        nested = _nested_model(field.annotation) if field is not None else None
        current = nested or current
    return list(current.model_fields)


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, list, tuple, dict, Sequence):
        for argument in get_args(annotation):
            found = _nested_model(argument)
            if found is not None:
                return found
    return None
