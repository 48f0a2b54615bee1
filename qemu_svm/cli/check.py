"""``svmstream check FILE``."""

from __future__ import annotations

import click

from qemu_svm.cli import EXIT_FINDINGS, common, output
from qemu_svm.errors import PlanError
from qemu_svm.findings.rules import RULES
from qemu_svm.model.profiles import profiles, released


@click.command(
    "check",
    epilog="Examples: svmstream check dump.bin; svmstream check dump.bin --kernel 5.10 --kernel "
    "6.1 --qemu 7.2; svmstream check --explain SV-03",
)
@click.argument("file", metavar="FILE", required=False)
@common.json_option
@common.limit_option
@click.option("--kernel", "kernel_names", multiple=True,
              help="The destination's kernel: a release or uname -r (6.12.118, 5.15.0-91-generic, "
              "6.1), or auto for this host's; may be repeated. Default: all.")  # fmt: skip
@click.option("--to", "destination", metavar="RELEASE", help="The same, for one destination.")
@click.option("--from", "origin", metavar="RELEASE", help="The source's kernel.")
@click.option("--qemu", "qemu_version", metavar="VERSION", help="The destination's QEMU.")
@click.option("--no-npt", is_flag=True, help="The destination's host has npt=0.")
@click.option("--maxphyaddr", default=40, show_default=True, help="Guest address width.")
@click.option("--fail-on", type=click.Choice(["warning", "error"]), default="error",
              show_default=True, help="From which severity on the exit status is 1.")  # fmt: skip
@click.option("--rules", "list_rules", is_flag=True, help="List all rules.")
@click.option("--explain", "explain_id", metavar="ID",
              help="Explain a rule, a CVE number or a commit of KVM.")  # fmt: skip
def command(
    *,
    file: str | None,
    as_json: bool,
    kernel_names: tuple[str, ...],
    destination: str | None,
    origin: str | None,
    qemu_version: str | None,
    no_npt: bool,
    maxphyaddr: int,
    fail_on: str,
    list_rules: bool,
    explain_id: str | None,
) -> int:
    """Tell which kernels would accept the nested state in the stream FILE.

    Restores the stream in a model of every kernel, in QEMU's order, and looks
    for parts that contradict each other and for known bugs.
    """
    if list_rules or explain_id:
        return _rules(explain_id, as_json=as_json)
    if file is None:
        raise click.UsageError("Missing argument 'FILE'.")
    from qemu_svm.findings.check import check
    from qemu_svm.findings.qemus import qemu_plan
    from qemu_svm.findings.results import CheckReport

    plan = qemu_plan(qemu_version) if qemu_version else None
    if destination is not None and kernel_names:
        raise click.UsageError("--to and --kernel name the same thing; use one of them.")
    if destination is not None:
        kernel_names = (destination,)
    source = profiles(origin)[0] if origin is not None else None
    chosen = [kernel for name in kernel_names for kernel in profiles(name)] or released()
    with common.opened(file) as machine:
        found = check(
            machine,
            chosen,
            plan=plan,
            qemu=qemu_version,
            source=source,
            maxphyaddr=maxphyaddr,
            npt=not no_npt,
        )
        output.show(CheckReport(machine, found), as_json=as_json)
        unreadable = common.told(machine)
    if unreadable:
        return unreadable
    bad = {"error"} if fail_on == "error" else {"error", "warning"}
    return EXIT_FINDINGS if any(f.severity in bad for f in found.findings) else 0


def _rules(rule: str | None, *, as_json: bool) -> int:
    from qemu_svm.findings.results import RuleList

    if rule is None:
        output.show(RuleList(tuple(RULES.values())), as_json=as_json)
    elif rule in RULES:
        output.show(RuleList((RULES[rule],)), as_json=as_json)
    else:
        from qemu_svm.findings.fixes import rules_of
        from qemu_svm.model.kernels.table import find

        changes = find(rule)
        if not changes:
            raise PlanError(f"there is no rule, CVE or commit '{rule}'", near=_near(rule))
        named = tuple(RULES[one] for change in changes for one in rules_of(change.id))
        output.show(RuleList(named, changes), as_json=as_json)
    return 0


def _near(rule: str) -> tuple[str, ...]:
    import difflib

    return tuple(difflib.get_close_matches(rule.upper(), RULES, cutoff=0.4)) or tuple(RULES)[:6]
