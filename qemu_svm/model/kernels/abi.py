"""Numbers of distributions that stand for a stable update, and the newest updates known.

Sources: the changelogs of Debian's linux 5.10.262-1 and 6.1.192-3 ("Bump ABI to …"; from
2025 on every upload has its own number, which the names of the packages confirm);
``/proc/version_signature`` in public logs for Ubuntu; kernel.org's last update of a
series that ended, the newest one read here of a series that goes on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from types import MappingProxyType

_DEBIAN: Mapping[str, Mapping[int, tuple[int, int]]] = {
    "5.10": {
        1: (4, 5), 2: (9, 9), 3: (12, 13), 4: (19, 19), 5: (24, 26), 6: (28, 28), 7: (38, 40),
        8: (46, 46), 9: (70, 70), 10: (84, 84), 11: (92, 92), 12: (103, 103), 13: (106, 106),
        14: (113, 113), 15: (120, 120), 16: (127, 127), 17: (136, 136), 18: (140, 140),
        19: (148, 149), 20: (158, 158), 21: (162, 162), 22: (178, 178), 23: (179, 179),
        24: (179, 179), 25: (191, 191), 26: (197, 197), 27: (205, 205), 28: (209, 209),
        29: (216, 216), 30: (218, 218), 31: (221, 221), 32: (223, 223), 33: (226, 226),
        34: (234, 234), 35: (237, 237), 36: (244, 244), 37: (247, 247), 38: (249, 249),
        39: (251, 251), 40: (251, 251), 41: (251, 251), 42: (251, 251), 43: (251, 251),
        44: (257, 257), 45: (259, 259), 46: (262, 262),
    },
    "6.1": {
        1: (4, 4), 2: (7, 7), 3: (8, 8), 4: (11, 11), 5: (12, 12), 6: (15, 15), 7: (20, 20),
        8: (25, 25), 9: (27, 27), 10: (37, 38), 11: (38, 38), 12: (52, 52), 13: (55, 55),
        14: (64, 64), 15: (66, 66), 16: (67, 67), 17: (69, 69), 18: (76, 76), 19: (82, 82),
        20: (85, 85), 21: (90, 90), 22: (94, 94), 23: (98, 99), 24: (106, 106), 25: (106, 106),
        26: (112, 112), 27: (115, 115), 28: (119, 119), 29: (123, 123), 30: (124, 124),
        31: (128, 128), 32: (129, 129), 33: (133, 133), 34: (135, 135), 35: (137, 137),
        36: (139, 139), 37: (140, 140), 38: (147, 147), 39: (148, 148), 40: (153, 153),
        41: (158, 158), 42: (159, 159), 43: (162, 162), 44: (164, 164), 45: (170, 170),
        46: (170, 170), 47: (170, 170), 48: (172, 172), 49: (174, 174), 50: (176, 176),
        51: (177, 177), 52: (180, 180), 53: (187, 187), 54: (190, 190), 55: (192, 192),
        56: (192, 192), 57: (192, 192),
    },
}  # fmt: skip
"""Debian's ABI number: the first and the last stable update that carried it."""

_UBUNTU: Mapping[str, Mapping[int, int]] = {
    "5.15": {25: 30, 79: 111, 91: 131, 97: 136, 100: 143, 136: 178, 138: 178, 139: 178},
    "6.5": {14: 3},
    "6.8": {31: 1, 40: 12},
}
"""Ubuntu's ABI number: the stable update, of some."""

_OWN_COUNT = 1000

NEWEST: Mapping[str, int] = MappingProxyType(
    {
        "5.8": 18, "5.9": 16, "5.10": 262, "5.11": 22, "5.12": 19, "5.13": 19, "5.14": 21,
        "5.15": 209, "5.16": 20, "5.17": 15, "5.18": 19, "5.19": 17, "6.0": 19, "6.1": 192,
        "6.2": 16, "6.3": 13, "6.4": 16, "6.5": 13, "6.6": 151, "6.7": 12, "6.8": 12, "6.9": 12,
        "6.10": 14, "6.11": 11, "6.12": 118, "6.13": 12, "6.14": 11, "6.15": 11, "6.16": 12,
        "6.17": 13, "6.18": 56, "6.19": 14, "7.0": 13, "7.1": 13, "7.2": 13, "7.3": 4,
    }
)  # fmt: skip
"""The newest stable update of each series that the tables know; series in their order."""


def debian(series: str, number: int) -> tuple[int, int]:
    """The stable updates that carried an ABI number of Debian's; 0, 0 if it is not known.

    A number above those known is at least the last one known; that of a backport
    ("6.1.0-0.deb11.50") is that of the release it was made from ("6.1.0-50").
    """
    known = _DEBIAN.get(series, {})
    if number in known:
        return known[number]
    below = max((one for one in known if one < number), default=0)
    return (known[below][1], NEWEST[series] + 1) if below else (0, 1)


def ubuntu(series: str, number: int) -> tuple[bool, int]:
    """Whether the stable update of an ABI number of Ubuntu's is known, and the update.

    Between two that are known it is that of the lower one; kernels of clouds count from
    1000 on their own, so that they are at least the first one.
    """
    known = sorted(_UBUNTU.get(series, {}).items())
    place = bisect_right([one for one, _ in known], number) if number < _OWN_COUNT else 1
    if not known or not place:
        return False, 0
    nearest, update = known[place - 1]
    return nearest == number, update
