"""CPU models as QEMU has them: held against a real QEMU, and parsed."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from qemu_svm.errors import PlanError
from qemu_svm.x86.cpu_models import AS_SAVED, FEATURES, MODELS, parse, words
from qemu_svm.x86.cpuid import FEATURES as CHECKED
from qemu_svm.x86.cpuid import Cpuid

SAVED = Cpuid()


def answers(commands: list[dict[str, Any]]) -> list[Any]:
    """What a QEMU without a machine answers."""
    program = shutil.which("qemu-system-x86_64")
    assert program is not None
    lines = "".join(json.dumps(one) + "\n" for one in ({"execute": "qmp_capabilities"}, *commands))
    done = subprocess.run(
        [program, "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"],
        input=lines + '{"execute": "quit"}\n', capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    return [one["return"] for one in replies if "return" in one][1:-1]


@pytest.mark.qemu
def test_models_have_the_features_that_qemu_gives_them() -> None:
    (definitions,) = answers([{"execute": "query-cpu-definitions"}])
    names = sorted({one["name"] for one in definitions} & set(MODELS))
    assert len(names) > 25
    expand = "query-cpu-model-expansion"
    asked = [
        {"execute": expand, "arguments": {"type": "full", "model": {"name": name}}}
        for name in names
    ]
    for name, answer in zip(names, answers(asked), strict=True):
        props = answer["model"]["props"]
        assert MODELS[name] == {one for one in FEATURES if props.get(one) is True}, name


def test_every_word_is_a_feature_of_the_model() -> None:
    assert set(FEATURES.values()) <= CHECKED
    for name in (*MODELS, *FEATURES):
        assert name.partition("-v")[0] in words()


@pytest.mark.parametrize(
    ("text", "has", "lacks", "width"),
    [
        ("EPYC", {"npt", "x2apic"}, {"svm"}, 40),
        ("EPYC,+svm", {"svm"}, set(), 40),
        ("EPYC-Rome , svm=on , -umip", {"svm"}, {"umip"}, 40),
        ("EPYC-Rome,+nrip_save,phys-bits=48", {"nrips"}, set(), 48),
        ("host", SAVED.features, set(), 40),
        ("max,svm=off", set(), {"svm"}, 40),
        ("kvm64", {"lm"}, {"npt", "xsave"}, 40),
    ],
)
def test_what_is_parsed(text: str, has: set[str], lacks: set[str], width: int) -> None:
    cpuid = parse(text, SAVED)
    assert has <= cpuid.features
    assert not lacks & cpuid.features
    assert cpuid.maxphyaddr == width


@pytest.mark.parametrize(
    ("text", "what", "near"),
    [
        ("epyc", "unknown CPU model", "EPYC"),
        ("", "unknown CPU model", AS_SAVED[0]),
        ("EPYC,+smv", "CPU feature 'smv'", "svm"),
        ("EPYC,svm", "is not \\+svm", ""),
        ("EPYC,svm=perhaps", "is not \\+svm", ""),
        ("EPYC,phys-bits=9", "32 to 52", ""),
        ("EPYC,phys-bits=" + "9" * 5000, "32 to 52", ""),
        ("EPYC,+phys-bits", "32 to 52", ""),
        ("EPYC,", "CPU feature ''", "svm"),
    ],
)
def test_what_is_refused(text: str, what: str, near: str) -> None:
    with pytest.raises(PlanError, match=what) as error:
        parse(text, SAVED)
    assert len(str(error.value)) < 300
    assert not near or near in error.value.near
