"""Write what the installed command brings along: manual pages, and completion for shells.

    shell_files.py DIRECTORY

They are written as a prefix has them: share/man/man1, share/bash-completion/completions,
share/zsh/site-functions and share/fish/vendor_completions.d. The build runs it (setup.py).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import get_completion_class

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qemu_svm import __version__
from qemu_svm.cli import cli
from qemu_svm.cli.verbs import Verb, Verbs

PROGRAM = "svmstream"
SHELLS = {
    "bash": "share/bash-completion/completions/svmstream",
    "zsh": "share/zsh/site-functions/_svmstream",
    "fish": "share/fish/vendor_completions.d/svmstream.fish",
}
EXIT_STATUS = """\
0 clean, 1 findings, 2 usage, 3 unreadable or truncated input, 4 something is missing in the
environment, 5 refused by the target, 130 interrupted."""
_WORDS = """\
# Bash splits words at colons: here they are split at blanks, and of an answer only what
# follows the last colon is new.
_svmstream_words() {
    local line="${COMP_LINE:0:COMP_POINT}"
    local -a COMP_WORDS
    read -ra COMP_WORDS <<< "$line"
    [[ "$line" == *[[:space:]] ]] && COMP_WORDS+=("")
    local COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
    local word="${COMP_WORDS[COMP_CWORD]}"
    _svmstream_completion "$@"
    [[ "$word" == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}")
    return 0
}
"""


def commands(
    group: Verbs = cli, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The program, every group and every verb, with the words that call it."""
    yield above, group
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, Verbs):
            yield from commands(found, (*above, name))
        else:
            yield (*above, name), found


def roff(text: str) -> str:
    """Text as troff takes it for text."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a help text; those after a line with ``\\b`` keep their lines."""
    for part in re.split(r"\n\s*\n", text.strip()):
        if part.lstrip().startswith("\b"):
            yield ".PP\n.nf\n" + roff(part.lstrip().removeprefix("\b").strip("\n")) + "\n.fi"
        else:
            yield ".PP\n" + roff(" ".join(part.split()))


def page(words: tuple[str, ...], command: click.Command) -> str:
    """The manual page of a command, as troff source."""
    name = "-".join((PROGRAM, *words))
    context = click.Context(
        command, info_name=" ".join((PROGRAM, *words)), help_option_names=["-h", "--help"]
    )
    short = command.get_short_help_str(200).rstrip(".")
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        f'.TH {name.upper()} 1 "" "svmstream {__version__}" "svmstream"',
        ".SH NAME",
        f"{roff(name)} \\- {roff(short)}",
        ".SH SYNOPSIS",
        f".B {roff(context.command_path)}\n{roff(usage)}",
        ".SH DESCRIPTION",
        *paragraphs(command.help or ""),
        *paragraphs(command.epilog or ""),
    ]
    if isinstance(command, Verbs):
        for task, verbs in command.tasks.items():
            lines += [f".SH {roff(task.upper())}"]
            for verb, about in verbs.items():
                lines += [".TP", f".B {roff(verb)}", roff(about)]
    given = [one for one in command.get_params(context) if isinstance(one, click.Option)]
    records = [one.get_help_record(context) for one in given]
    lines += [".SH OPTIONS"]
    for record in filter(None, records):
        lines += [".TP", f".B {roff(record[0])}", roff(record[1])]
    assert isinstance(command, Verb | Verbs)
    lines += [".SH EXAMPLES", ".nf", *(roff(line) for line in command.examples), ".fi"]
    lines += [".SH EXIT STATUS", roff(EXIT_STATUS), ".SH SEE ALSO"]
    others = [above for above, one in commands() if above != words and isinstance(one, Verbs)]
    if isinstance(command, Verbs):
        others = [(*words, verb) for verb in command.list_commands(context)]
    lines += [", ".join(f"\\fB{roff('-'.join((PROGRAM, *one)))}\\fR(1)" for one in others)]
    return "\n".join(lines) + "\n"


def completion(shell: str) -> str:
    """The script that a shell loads to complete the command's words."""
    made = get_completion_class(shell)
    assert made is not None
    source = made(cli, {}, PROGRAM, "_SVMSTREAM_COMPLETE").source()
    if shell == "bash":
        setup = "_svmstream_completion_setup() {"
        before, _, after = source.partition(setup)
        after = after.replace("-F _svmstream_completion", "-F _svmstream_words")
        source = f"{before}{_WORDS}\n{setup}{after}"
    return source.strip() + "\n"


def write(root: Path) -> None:
    """Write all files below a directory."""
    files = {f"share/man/man1/{'-'.join((PROGRAM, *w))}.1": page(w, c) for w, c in commands()}
    files |= {path: completion(shell) for shell, path in SHELLS.items()}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
