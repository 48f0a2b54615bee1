"""Help: by task, with examples that are accepted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from qemu_svm.cli import cli
from qemu_svm.cli.verbs import Verb, Verbs
from tests.conftest import Run


def commands(group: Verbs = cli, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every verb, and of every group."""
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*above, name)
        found = group.get_command(context, name)
        if isinstance(found, Verbs):
            yield from commands(found, (*above, name))


def command_of(words: tuple[str, ...]) -> click.Command:
    found: click.Command = cli
    for word in words:
        assert isinstance(found, Verbs)
        inner = found.get_command(click.Context(found), word)
        assert inner is not None
        found = inner
    return found


def examples(words: tuple[str, ...]) -> Iterator[list[str]]:
    """The command lines of ours in a verb's examples: pipes and redirections are the shell's."""
    made = command_of(words)
    assert isinstance(made, Verb | Verbs)
    assert made.examples, words
    for line in made.examples:
        for part in re.split(r"\s(?:\||<|>|2>&1)\s", line):
            if part.startswith("svmstream "):
                yield shlex.split(part)[1:]


ALL = list(commands())


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_examples_are_accepted(words: tuple[str, ...]) -> None:
    found = list(examples(words))
    assert found
    for args in found:
        at, command, rest = click.Context(cli, info_name="svmstream"), cli, list(args)
        while isinstance(command, Verbs):
            _, inner, rest = command.resolve_command(at, rest)
            assert inner is not None
            at, command = click.Context(inner, info_name=inner.name, parent=at), inner
        assert command.name in args
        try:
            command.make_context(command.name, rest, parent=at.parent)
        except click.BadParameter as error:
            # Of the user: what is in the cache, and a file that is opened at once.
            if not re.search("not in the cache|No such file|does not exist", error.message):
                raise


@pytest.mark.parametrize("words", [(), *ALL], ids=" ".join)
def test_help_of_a_verb(words: tuple[str, ...], command: Run) -> None:
    done = command("help", *words)
    assert done.returncode == 0
    assert done.stdout == command(*words, "--help").stdout
    assert all(len(line) <= 80 for line in done.stdout.decode().splitlines()), words
    assert done.stdout.startswith(f"Usage: svmstream {' '.join(words)}".strip().encode())


def test_help_is_by_task(command: Run) -> None:
    lines = command("--help").stdout.decode().splitlines()
    tasks = [line for line in lines if re.match(r"[A-Z].*:$", line)]
    assert tasks[:3] == ["Look:", "Judge:", "Memory:"]
    assert lines.index("Look:") + 1 == next(
        number for number, line in enumerate(lines) if line.startswith("  inspect ")
    )
    verbs = cli.list_commands(click.Context(cli))
    for name in verbs:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1


def test_help_of_what_is_not_there(command: Run) -> None:
    for words, message in (
        (("inspekt",), b"Did you mean inspect or inside?"),
        (("check", "more"), b"'svmstream check' has no verb 'more'"),
        (("mem", "raed"), b"Did you mean read"),
    ):
        done = command("help", *words)
        assert (done.returncode, done.stdout) == (2, b"")
        assert message in done.stderr
