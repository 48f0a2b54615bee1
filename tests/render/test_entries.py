"""The shape of the room: each result has one renderer for text and one for JSON."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest

import qemu_svm
from qemu_svm.render import json as json_room
from qemu_svm.render import text as text_room
from qemu_svm.results import Result


def modules(room: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(room.__path__):
        yield import_module(f"{room.__name__}.{found.name}")


def public(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def results() -> dict[str, type[Result]]:
    for found in pkgutil.walk_packages(qemu_svm.__path__, "qemu_svm."):
        if "inside" not in found.name and "__main__" not in found.name:
            import_module(found.name)
    return {kind.verb: kind for kind in Result.__subclasses__()}


RESULTS = results()


@pytest.mark.parametrize("verb", RESULTS)
def test_a_result_has_both_renderers(verb: str) -> None:
    for kind in ("text", "json"):
        module = import_module(f"qemu_svm.render.{kind}.{verb}")
        (taken, *options) = inspect.signature(module.render).parameters.values()
        assert taken.annotation == RESULTS[verb].__name__
        assert kind == "text" or not options
        assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for one in options)


def test_a_renderer_has_one_entry() -> None:
    for room in (text_room, json_room):
        for module in modules(room):
            if "render" in public(module):
                assert public(module) == {"render"}, module
