"""The explorer on a terminal, with textual.

Left the tree, right the values of what is chosen there, below their bytes.  Everything has
a key; colour only repeats what the text says.
"""

from __future__ import annotations

import os
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static, Tree
from textual.widgets.tree import TreeNode

from qemu_svm.errors import SvmStreamError
from qemu_svm.explore.items import DIFFERENCES, FINDINGS, Explorer, Item, Row, rows_of
from qemu_svm.render.escape import printable

_BYTES = 5
"""Rows of bytes."""

_PAGE = 0x100
"""Bytes of guest memory on a page."""

HELP = """\
arrows  move; Enter opens and closes; Tab: tree, values
/  n    search for a name, a text or a number; the next one
g       go to a path (vcpu0.cr3) or an offset (0x98d7c)
b       back to where you were
m       guest memory at the chosen value, as an address
c       copy the path, for svmstream show FILE PATH
f       findings
d  D    next and previous difference (with two files)
q       quit

Of two files the first is A, the second B; != marks values
that differ.
"""


class Ask(ModalScreen[str | None]):
    """One line of input; Escape gives nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "Cancel")]

    def __init__(self, question: str, given: str = "") -> None:
        super().__init__()
        self._question = question
        self._given = given

    def compose(self) -> ComposeResult:
        """One line with the question above it."""
        with Vertical(id="ask"):
            yield Static(Text(self._question))
            yield Input(self._given)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return what was typed."""
        self.dismiss(event.value)


class Words(ModalScreen[None]):
    """A text; any of these keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,enter,q,question_mark", "dismiss(None)", "Close")
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """The text, with a scroll bar if it is long."""
        with VerticalScroll(id="words"):
            yield Static(Text(self._text))


class Memory(ModalScreen[None]):
    """Guest memory around an address, in one world at a time."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,q", "dismiss(None)", "Back"),
        ("w", "world", "World"),
        ("pageup", "move(-1)", "Up"),
        ("pagedown,space", "move(1)", "Down"),
    ]

    def __init__(self, explorer: Explorer, path: str, address: int) -> None:
        super().__init__()
        self._explorer = explorer
        self._path = path
        self._worlds = explorer.worlds(path)
        self._address = address
        self._at = address & ~0xF

    def compose(self) -> ComposeResult:
        """A line that says where, the rows, the keys."""
        with Vertical(id="memory"):
            yield Static(id="where")
            yield Static(id="rows")
            yield Static(Text("w: next world   PageUp, PageDown   Escape: back"))

    def on_mount(self) -> None:
        """Read the first page."""
        self._show()

    def action_world(self) -> None:
        """Take the address in the next address space."""
        self._worlds.append(self._worlds.pop(0))
        self._show()

    def action_move(self, pages: int) -> None:
        """Move by pages; addresses stay in 64 bits."""
        self._at = max(0, min(self._at + pages * _PAGE, (1 << 64) - _PAGE))
        self._show()

    def _show(self) -> None:
        world = self._worlds[0]
        where = f"{world}:{self._at:#x}, from {self._path} = {self._address:#x}"
        self.query_one("#where", Static).update(Text(printable(where)))
        lines = self._explorer.memory(world, self._at, _PAGE, self._path)
        self.query_one("#rows", Static).update(Text("\n").join(lines))


class ExploreApp(App[None]):
    """The explorer; see :mod:`qemu_svm.explore`."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "svmstream"
    CSS = """
    Screen { layout: vertical; }
    #title { height: 1; text-style: reverse; }
    #main { height: 1fr; }
    #tree { width: 30%; min-width: 24; }
    #right { width: 1fr; }
    #values { height: 1fr; }
    #about { height: auto; max-height: 4; }
    #bytes { height: 7; border-top: solid $foreground-muted; }
    #ask, #words { width: 90%; height: auto; max-height: 90%; border: solid $foreground;
                   padding: 0 1; background: $background; }
    #memory { width: 100%; height: 100%; background: $background; padding: 0 1; }
    #rows { height: 1fr; }
    Ask, Words { align: center middle; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("slash", "search", "Search"),
        ("n", "again", "Next"),
        ("g", "go", "Go to"),
        ("b", "return", "Back"),
        ("m", "memory", "Memory"),
        ("c", "copy", "Copy"),
        ("f", "findings", "Findings"),
        ("d", "difference(1)", "Diff"),
        Binding("D", "difference(-1)", "Previous difference", show=False),
        ("question_mark", "help", "Help"),
        ("q,ctrl+c", "quit", "Quit"),
    ]

    def __init__(self, explorer: Explorer) -> None:
        super().__init__()
        self._explorer = explorer
        self._path = ""
        self._rows: list[Row] = []
        self._visited: list[str] = []
        self._wanted = ""
        self._difference = -1

    # What is on the screen.

    def compose(self) -> ComposeResult:
        """Title, tree and values, bytes, keys."""
        yield Static(self._title(), id="title")
        with Horizontal(id="main"):
            yield Tree[Item]("", id="tree")
            with Vertical(id="right"):
                yield DataTable[Text](id="values", cursor_type="row", zebra_stripes=False)
                yield Static(id="about")
        yield Static(id="bytes")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Fill the tree."""
        tree = self.query_one("#tree", Tree)
        tree.show_root = False
        tree.guide_depth = 2
        for item in self._explorer.roots():
            self._add(tree.root, item)
        tree.focus()
        vcpus = [node for node in tree.root.children if _item(node).path.startswith("vcpu")]
        if vcpus:
            vcpus[0].expand()
            self.call_after_refresh(tree.move_cursor, vcpus[0])

    def _title(self) -> Text:
        dump, other = self._explorer.dump, self._explorer.other
        state = "" if dump.complete else " (NOT COMPLETE)"
        text = f"{dump.path}: {dump.machine.name or 'unknown machine'}{state}"
        if other is not None:
            room = max(8, self.size.width // 2 - 6)
            text = "  ".join(
                f"{side}: {_last(one.path, room)}{'' if one.complete else ' (NOT COMPLETE)'}"
                for side, one in (("A", dump), ("B", other))
            )
        return Text(printable(text), no_wrap=True, overflow="ellipsis")

    @staticmethod
    def _add(parent: TreeNode[Item], item: Item) -> TreeNode[Item]:
        return parent.add(Text(item.label, no_wrap=True), item, allow_expand=item.opens)

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[Item]) -> None:
        """Make the next level, once."""
        self._open(event.node)

    def _open(self, node: TreeNode[Item]) -> None:
        if node.children or node.data is None:
            return
        below = self._explorer.children(node.data)
        for item in below:
            self._add(node, item)
        if not below:
            node.allow_expand = False

    def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[Item]) -> None:
        """Show the values of what the cursor is on."""
        item = event.node.data
        if item is None:
            return
        if item.kind in ("finding", "difference"):
            self._show(item.path, item.text)
        else:
            self._show(item.path)

    def on_tree_node_selected(self, event: Tree.NodeSelected[Item]) -> None:
        """Enter on a finding or a difference goes to what it is about."""
        item = event.node.data
        if item is not None and item.kind in ("finding", "difference") and item.path:
            self._goto(item.path)

    def _show(self, path: str, text: str = "", chosen: str = "") -> None:
        self._path = path
        self._rows = self._explorer.rows(path)
        table = self.query_one("#values", DataTable)
        table.clear(columns=True)
        columns: list[tuple[str, list[Text]]] = [
            ("field", [Text(row.name) for row in self._rows]),
            ("value", [row.value for row in self._rows]),
            ("offset", [Text(f"{row.offset:#x}") for row in self._rows]),
        ]
        if self._explorer.other is not None:
            columns[1:2] = [
                ("", [Text("!=" if row.differs else "") for row in self._rows]),
                ("A", [row.value for row in self._rows]),
                ("B", [row.other or Text() for row in self._rows]),
            ]
        for title, cells in columns:
            table.add_column(title, width=max(cell.cell_len for cell in [Text(title), *cells]))
        for line in zip(*(cells for _, cells in columns), strict=True):
            table.add_row(*line)
        self.query_one("#about", Static).update(Text(text or self._explorer.about(path)))
        at = next((n for n, row in enumerate(self._rows) if row.path == chosen), 0)
        if self._rows:
            table.move_cursor(row=at)
        if chosen and self._rows:
            row = self._rows[at]
            self._show_bytes(row.path, row.offset, row.size)
            return
        value = self._explorer.value(path)
        self._show_bytes(path, *((0, 0) if value is None else (value.offset, value.size)))

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the bytes of the row, and what the field is."""
        if self.focused is event.data_table and 0 <= event.cursor_row < len(self._rows):
            row = self._rows[event.cursor_row]
            self.query_one("#about", Static).update(Text(self._explorer.about(row.path)))
            self._show_bytes(row.path, row.offset, row.size)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Enter on a structure opens it."""
        row = self._rows[event.cursor_row]
        value = self._explorer.value(row.path)
        if value is not None and value.children:
            self._remember()
            self._show(row.path)

    def _show_bytes(self, path: str, offset: int, size: int) -> None:
        found = self._explorer.bytes_around(offset, size, _BYTES)
        area = self.query_one("#bytes", Static)
        if found is None:
            area.update(Text(""))
            return
        marked = range(found.at, found.at + found.size)
        title = Text(printable(f"{path}: {found.size} bytes at {found.at:#x}"), no_wrap=True)
        area.update(Text("\n").join([title, *rows_of(found.data, found.start, marked)]))

    # What the keys do.

    def _chosen(self) -> str:
        table = self.query_one("#values", DataTable)
        if self.focused is table and 0 <= table.cursor_row < len(self._rows):
            return self._rows[table.cursor_row].path
        return self._path

    def _remember(self) -> None:
        here = self._chosen()
        if here and (not self._visited or self._visited[-1] != here):
            self._visited.append(here)

    def _goto(self, path: str) -> None:
        try:
            place = self._explorer.canonical(path)
        except SvmStreamError as error:
            self.notify(printable(str(error)), severity="warning", markup=False)
            return
        self._remember()
        self._land(place)

    def _land(self, place: str) -> None:
        value = self._explorer.value(place)
        table = self.query_one("#values", DataTable)
        if value is not None and value.children:
            self._show(place)
        else:
            self._show(self._explorer.parent(place), chosen=place)
        table.focus()

    def action_go(self) -> None:
        """Ask for a path or an offset, and go there."""

        def go(given: str | None) -> None:
            if given:
                self._goto(given)

        self.push_screen(Ask("Path, or offset such as 0x98d7c:"), go)

    def action_search(self) -> None:
        """Ask for a text or a number, and go to the first place that has it."""

        def search(given: str | None) -> None:
            if given:
                self._wanted = given
                self.action_again()

        self.push_screen(Ask("Search for a name, a text or a number:", self._wanted), search)

    def action_again(self) -> None:
        """Go to the next place that has what was searched for."""
        if not self._wanted:
            self.action_search()
            return
        found = next(self._explorer.search(self._wanted, self._chosen()), None)
        if found is None:
            self.notify(f"nothing has '{printable(self._wanted)}'", markup=False)
        else:
            self._remember()
            self._land(found)

    def action_return(self) -> None:
        """Return to the place before the last jump."""
        if self._visited:
            self._land(self._visited.pop())

    def action_memory(self) -> None:
        """Show guest memory at the value."""
        path = self._chosen()
        value = self._explorer.value(path)
        if value is None or not isinstance(value.value, int) or isinstance(value.value, bool):
            self.notify("choose a number first: Tab goes to the values", markup=False)
            return
        self.push_screen(Memory(self._explorer, path, value.value & (1 << 64) - 1))

    def action_copy(self) -> None:
        """Copy the path to the terminal's clipboard, and say it."""
        path = self._chosen()
        if path:
            self.copy_to_clipboard(path)
            self.notify(f"copied: {printable(path)}", markup=False)

    def action_findings(self) -> None:
        """Open the findings in the tree."""
        self._reveal(FINDINGS)

    def action_difference(self, step: int) -> None:
        """Go to the next or previous difference."""
        found = [one.path for one in self._explorer.compared]
        if not found:
            self.notify("no differences" if self._explorer.other else "give two files to compare",
                        markup=False)  # fmt: skip
            return
        self._difference = (self._difference + step) % len(found)
        self._reveal(DIFFERENCES, self._difference)

    def _reveal(self, group: str, index: int = 0) -> None:
        tree = self.query_one("#tree", Tree)
        for node in tree.root.children:
            if _item(node).label == group:
                self._open(node)
                node.expand()
                chosen = node.children[index] if node.children else node
                tree.focus()
                self.call_after_refresh(tree.move_cursor, chosen)

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Words(HELP))

    def on_resize(self, _event: events.Resize) -> None:
        """Fit the title; say it where there is no room."""
        self.query_one("#title", Static).update(self._title())
        if self.size.width < 60 or self.size.height < 16:
            self.notify("the terminal is small: 80 columns and 24 rows are better", markup=False)


def _last(path: str, room: int) -> str:
    name = os.path.basename(path)
    return name if len(name) <= room else f"…{name[1 - room :]}"


def _item(node: TreeNode[Item]) -> Item:
    return node.data or Item("", "")
