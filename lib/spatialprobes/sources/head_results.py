"""Result files of the attention study's corner heads (its experiment 3): one folder a corner, ``head_diff_stats_{corner}``.

The LLaVA script leaves, layer by layer, how often each head was among the three that changed most, the size of each pair's
change, and a text of gaps; the Qwen2-VL script the counts, and for every pair which heads were among the top k. Both write into
the same folders under names that are partly the same: what both wrote is refused, for no one can tell whose counts are whose.
Layers count from 1 in the files' names and from 0 here; heads count from 0 in both. Knows files and arrays, no figures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from spatialprobes.sources.arrays import read_npy, write_npy
from spatialprobes.sources.text_lines import FIXED, existing_folder, files_in, read_lines, short
from spatialprobes.tables import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Layout = Literal["llava", "qwen2"]
CORNERS = ("topleft", "topright", "bottomleft", "bottomright")
PREFIX = "head_diff_stats_"
MAX_ARRAY = 500_000_000  # bytes; 32 layers x 32 heads x 100 pairs are 0.4 MB
LAYERED = re.compile(r"layer_([1-9]\d{0,3})_(?:top([1-9]\d{0,3})_counts\.npy|(diff_abs)\.npy|(diff_gap_stats)\.txt)")
CUBE, GRID, SHAPE = "count_LHN.npy", "count_LH.npy", "count_shape.txt"
GAPS = ("top1_mean", "top2_mean", "top3_mean", "top4_mean", "median_mean",
        "top1_minus_median_mean", "top1_minus_top4_mean", "top1_minus_top2_mean")  # fmt: skip
SHAPED = re.compile(r"count_LHN shape \[L,H,N\] = \((\d{1,9}), (\d{1,9}), (\d{1,9})\)")
LISTED = re.compile(r"layer_indices \(0-based\) = \[(\d{1,4}(?:, \d{1,4}){0,1999})\]")
SLACK = 2e-6  # of gaps: they stand to 6 decimals, of a mean that may be of float32


@dataclass(frozen=True, eq=False)
class HeadResults:
    """What one corner's folder holds.

    corner: "" where the folder's name tells none. layout: whose files they are; None for counts alone, which both write alike.
    topk: heads counted a layer and pair. counts: [layer, head, count]. changes: by layer, the size of the change of each pair and
    head; empty for Qwen2-VL, which keeps none. members: by layer, whether a head was among the top k of a pair; empty for LLaVA.
    gaps: [layer, *GAPS]. pairs: how many, None where no file says. problems: what could not be read, a line each that begins with
    the file.
    """

    corner: str
    layout: Layout | None
    topk: int
    counts: pd.DataFrame
    changes: dict[int, Float[np.ndarray, "pair head"]] = field(default_factory=dict)
    members: dict[int, Bool[np.ndarray, "head pair"]] = field(default_factory=dict)
    gaps: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["layer", *GAPS]))
    pairs: int | None = None
    problems: list[str] = field(default_factory=list)


def read(folder: str | Path) -> HeadResults:
    """One corner's results.

    Damaged files, and files that contradict others, are named in problems and left out; the rest is read.

    Raises FileNotFoundError or NotADirectoryError; ValueError where nothing can be read, and where both scripts' files lie in the
    folder: by their names, by layers or numbers of heads that one model cannot have, or by counts of different k.
    """
    folder = existing_folder(folder)
    corner = folder.name.removeprefix(PREFIX)
    names = list(files_in(folder))
    layered = {name: found for name in names if (found := LAYERED.fullmatch(name))}
    llava = [name for name, found in layered.items() if found[3] or found[4]]
    qwen2 = [name for name in (CUBE, GRID, SHAPE) if name in names]
    if llava and qwen2:
        raise ValueError(f"{folder}: files of both scripts, {llava[0]} (LLaVA) and {qwen2[0]} (Qwen2-VL): whose are the counts?")
    found = _Found(folder)
    for name, match in sorted(layered.items(), key=lambda one: int(one[1][1])):
        layer = int(match[1]) - 1
        if match[2]:
            found.take_counts(name, layer, int(match[2]))
        elif match[3]:
            found.take_changes(name, layer)
        else:
            found.take_gaps(name, layer)
    if qwen2:
        found.take_cube(set(qwen2))
    found.check_one_model()
    if not (found.counts or found.changes or found.members):
        raise ValueError(f"{folder}: no result file that can be read" + (f"; {found.problems[0]}" if found.problems else ""))
    layout = "llava" if llava else "qwen2" if qwen2 else None
    return found.results(corner if corner in CORNERS else "", layout)


def write(results: HeadResults, folder: str | Path) -> list[Path]:
    """Write a corner's results as the script of their layout does, into `folder`, figures aside; what is read is equal.

    Raises ValueError for a layout that is neither, for members that are not there for every layer counted, and where a file of
    the other script lies in the folder.
    """
    folder = Path(folder)
    if results.layout not in ("llava", "qwen2"):
        raise ValueError(f"layout {results.layout!r}: 'llava' or 'qwen2', whose files are to be written")
    foreign = {"qwen2": r"layer_\d+_diff_.*", "llava": r"count_(LHN|LH)\.npy|count_shape\.txt"}[results.layout]
    if folder.is_dir() and (there := [name for name in files_in(folder) if re.fullmatch(foreign, name)]):
        raise ValueError(f"{folder}: {there[0]} of the other script lies there; write elsewhere")
    written = []
    for layer, rows in results.counts.groupby("layer"):
        row = rows.sort_values("head")["count"].to_numpy(np.int64)
        written.append(write_npy(folder / f"layer_{layer + 1}_top{results.topk}_counts.npy", row))
    for layer, array in results.changes.items():
        written.append(write_npy(folder / f"layer_{layer + 1}_diff_abs.npy", array))
    for row in results.gaps.to_dict("records"):
        lines = "".join(f"{key}={row[key]:.6f}\n" for key in GAPS)
        written.append(write_atomically(folder / f"layer_{int(row['layer']) + 1}_diff_gap_stats.txt", lines.encode()))
    return written + (_write_cube(results, folder) if results.layout == "qwen2" else [])


def _write_cube(results: HeadResults, folder: Path) -> list[Path]:
    layers = sorted(int(layer) for layer in results.counts["layer"].unique())
    if not layers or set(layers) != set(results.members):
        raise ValueError(f"members of layers {sorted(results.members)}, counts of {layers}: both of the same are needed")
    cube = np.stack([results.members[layer] for layer in layers]).astype(np.uint8)
    shape = ", ".join(map(str, cube.shape))
    size = ", ".join(f"{name}={count}" for name, count in zip("LHN", cube.shape, strict=True))
    lines = [f"count_LHN shape [L,H,N] = ({shape})", size, f"topk={results.topk}", f"layer_indices (0-based) = {layers}"]
    return [
        write_npy(folder / CUBE, cube),
        write_npy(folder / GRID, cube.sum(axis=2).astype(np.int32)),
        write_atomically(folder / SHAPE, "".join(f"{line}\n" for line in lines).encode()),
    ]


def of_changes(
    changes: dict[int, Float[np.ndarray, "pair head"]], layout: Layout, *, corner: str = "", topk: int = 3
) -> HeadResults:
    """The results of a layout from signed or absolute changes by layer, counted as in the study.

    Counted are the top k of |change| of each pair and layer. Ties go as NumPy's sort has them, as in the study. Raises
    ValueError for an unknown layout, layers of different shape, none, or with a NaN, and topk of none or of more heads than there
    are (4 for the gaps of LLaVA).
    """
    if layout not in ("llava", "qwen2"):
        raise ValueError(f"layout {layout!r} is unknown; 'llava' or 'qwen2'")
    shapes = {np.shape(array) for array in changes.values()}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 2 or not shape[0]:
        raise ValueError(f"changes of shapes {sorted(shapes)}; one [pair, head] for every layer is wanted")
    if unknown := [layer for layer, array in changes.items() if not np.isfinite(array).all()]:
        raise ValueError(f"changes of layer {unknown[0]} hold a NaN or an infinity: which are the largest is unknown")
    least = 4 if layout == "llava" else 1
    if isinstance(topk, bool) or not 1 <= topk <= shape[1] or shape[1] < least:
        raise ValueError(f"topk={topk} of {shape[1]} heads; 1 to all of at least {least}")
    sizes = {layer: np.abs(np.asarray(array)) for layer, array in sorted(changes.items())}
    members = {}
    for layer, array in sizes.items():
        chosen = np.zeros(shape, bool)
        np.put_along_axis(chosen, np.argsort(array, axis=1)[:, -topk:], True, axis=1)
        members[layer] = chosen.T
    counts = _counts({layer: one.sum(axis=1) for layer, one in members.items()})
    if layout == "qwen2":
        return HeadResults(corner, "qwen2", topk, counts, members=members, pairs=shape[0])
    gaps = pd.DataFrame([{"layer": layer, **gaps_of(array)} for layer, array in sizes.items()])
    return HeadResults(corner, "llava", topk, counts, changes=sizes, gaps=gaps, pairs=shape[0])


def gaps_of(changes: Float[np.ndarray, "pair head"]) -> dict[str, float]:
    """The study's `GAPS`: means over pairs of the largest changes, of the median head's, and of what lies between."""
    ordered = np.sort(np.asarray(changes, np.float64), axis=1)
    top = {f"top{i}": ordered[:, -i].mean() for i in (1, 2, 3, 4)}
    means = top | {"median": np.median(ordered, axis=1).mean()}
    found = {f"{name}_mean": float(value) for name, value in means.items()}
    return found | {f"top1_minus_{name}_mean": float(means["top1"] - means[name]) for name in ("median", "top4", "top2")}


def _counts(by_layer: dict[int, Int[np.ndarray, " head"]]) -> pd.DataFrame:
    rows = [(layer, head, int(count)) for layer in sorted(by_layer) for head, count in enumerate(by_layer[layer])]
    return pd.DataFrame(rows, columns=["layer", "head", "count"])


class _Found:
    """What has been read of a folder so far."""

    def __init__(self, folder: Path):
        self.folder, self.problems = folder, []
        self.counts: dict[int, np.ndarray] = {}
        self.k: dict[int, int] = {}
        self.changes: dict[int, np.ndarray] = {}
        self.members: dict[int, np.ndarray] = {}
        self.gaps: dict[int, dict[str, float]] = {}

    def take_counts(self, name: str, layer: int, k: int) -> None:
        array = self._array(name, 1)
        if array is None:
            return
        if array.dtype.kind not in "iu" or (array < 0).any():
            self.problems.append(f"{name}: {array.dtype} with values from {array.min()}; counts are whole numbers from 0")
        elif (total := sum(array.tolist())) % k or not total:
            self.problems.append(f"{name}: counts that sum to {total}, which is no multiple of {k} heads a pair")
        elif array.max() > total // k:
            self.problems.append(f"{name}: a head counted {array.max()} times in {total // k} pairs")
        elif layer in self.counts:
            raise ValueError(f"{self.folder}: {name} and counts of the top {self.k[layer]} of that layer: of two runs")
        else:
            self.counts[layer], self.k[layer] = array.astype(np.int64), k

    def take_changes(self, name: str, layer: int) -> None:
        array = self._array(name, 2)
        if array is None:
            return
        if array.dtype.kind != "f" or not np.isfinite(array).all() or (array < 0).any():
            self.problems.append(
                f"{name}: {array.dtype}, or a value that is negative or not finite; sizes of changes are neither"
            )
        else:
            self.changes[layer] = array

    def take_gaps(self, name: str, layer: int) -> None:
        try:
            lines = [line.partition("=") for line in read_lines(self.folder / name)]
            if [key for key, _, _ in lines] != list(GAPS):
                raise ValueError(f"keys {', '.join(key for key, _, _ in lines)[:200]}; {', '.join(GAPS)} are the study's")
            if wrong := [value for _, _, value in lines if not re.fullmatch(FIXED % 6, value)]:
                raise ValueError(f"{wrong[0][:40]!r} is no number with 6 decimals")
            self.gaps[layer] = {key: float(value) for key, _, value in lines}
        except (ValueError, OSError) as error:
            self.problems.append(f"{name}: {short(error, self.folder / name)}")

    def take_cube(self, there: set[str]) -> None:
        """The Qwen2-VL script's three files; the counts of single layers are held against them."""
        if missing := [name for name in (CUBE, SHAPE) if name not in there]:
            self.problems.append(
                f"{missing[0]}: missing beside {sorted(there)[0]}; which heads and layers it is about is unknown"
            )
            return
        cube = self._array(CUBE, 3)
        try:
            shape, k, layers = self._shape()
        except (ValueError, OSError) as error:
            self.problems.append(f"{SHAPE}: {short(error, self.folder / SHAPE)}")
            return
        if cube is None:
            return
        if cube.shape != shape or cube.dtype.kind not in "iub" or not np.isin(cube, (0, 1)).all():
            self.problems.append(
                f"{CUBE}: {cube.dtype} of shape {cube.shape}, or other values than 0 and 1; {SHAPE} says {shape}"
            )
            return
        if (cube.sum(axis=1) != k).any():
            self.problems.append(f"{CUBE}: a pair with other than {k} heads in a layer's top {k}")
            return
        grid = self._array(GRID, 2) if GRID in there else None
        if grid is not None and (grid.shape != shape[:2] or (grid != cube.sum(axis=2)).any()):
            self.problems.append(f"{GRID}: is not the sum of {CUBE} over pairs")
        totals = dict(zip(layers, cube.sum(axis=2, dtype=np.int64), strict=True))
        for layer, own in self.counts.items():
            if layer not in totals or self.k[layer] != k or own.shape != totals[layer].shape or (own != totals[layer]).any():
                name = f"layer_{layer + 1}_top{self.k[layer]}_counts.npy"
                raise ValueError(f"{self.folder}: {name} is not what {CUBE} sums to: files of two runs, perhaps of both models")
        self.members = {layer: one.astype(bool) for layer, one in zip(layers, cube, strict=True)}
        self.counts, self.k = totals, dict.fromkeys(layers, k)

    def _shape(self) -> tuple[tuple[int, int, int], int, list[int]]:
        """Shape, top k and layers (from 0). Raises ValueError for what is not as the script writes it."""
        lines = read_lines(self.folder / SHAPE)
        patterns = (SHAPED, re.compile(r"L=(\d+), H=(\d+), N=(\d+)"), re.compile(r"topk=([1-9]\d{0,3})"), LISTED)
        found = [pattern.fullmatch(line) for pattern, line in zip(patterns, lines, strict=False)]
        if len(lines) != len(patterns) or None in found:
            raise ValueError("not the four lines of the study's script")
        shape, layers = tuple(map(int, found[0].groups())), [int(layer) for layer in found[3][1].split(", ")]
        if found[1].groups() != found[0].groups() or len(layers) != shape[0] or len(set(layers)) != len(layers):
            raise ValueError(
                f"shape {shape}, sizes {', '.join(found[1].groups())} and {len(layers)} layers contradict one another"
            )
        return shape, int(found[2][1]), layers

    def check_one_model(self) -> None:
        """Layers of one model have the same heads, and one run the same pairs. Raises ValueError for more than one model's."""
        heads = {layer: len(one) for layer, one in self.counts.items()} | {i: one.shape[1] for i, one in self.changes.items()}
        apart = [
            layer for layer in self.counts if layer in self.changes and len(self.counts[layer]) != self.changes[layer].shape[1]
        ]
        if len(set(heads.values())) > 1 or apart:
            sizes = sorted({*heads.values(), *(len(one) for one in self.counts.values())})
            raise ValueError(f"{self.folder}: layers of {' and '.join(map(str, sizes))} heads: results of more than one model")
        if len(set(self.k.values())) > 1:
            raise ValueError(
                f"{self.folder}: counts of the top {' and '.join(map(str, sorted(set(self.k.values()))))}: of two runs"
            )
        pairs = {len(one) for one in self.changes.values()} | {one.shape[1] for one in self.members.values()}
        pairs |= {int(one.sum()) // self.k[layer] for layer, one in self.counts.items()}
        if len(pairs) > 1:
            raise ValueError(f"{self.folder}: results of {' and '.join(map(str, sorted(pairs)))} pairs: of two runs")
        for layer in [layer for layer in self.changes if layer in self.counts]:
            self._hold_against_changes(layer)

    def _hold_against_changes(self, layer: int) -> None:
        """Drops counts and gaps that the changes contradict; where heads tie, either may have been counted."""
        changes, k = self.changes[layer], self.k[layer]
        name = f"layer_{layer + 1}_"
        least = np.sort(changes, axis=1)[:, -k, None]
        surely, perhaps = (changes > least).sum(axis=0), (changes >= least).sum(axis=0)
        if ((self.counts[layer] < surely) | (self.counts[layer] > perhaps)).any():
            self.problems.append(f"{name}top{k}_counts.npy: not the counts of {name}diff_abs.npy; left out")
            del self.counts[layer]
        if layer in self.gaps:
            own = gaps_of(changes) if changes.shape[1] >= 4 else {}
            if any(abs(own.get(key, np.inf) - value) > SLACK + 1e-5 * abs(value) for key, value in self.gaps[layer].items()):
                self.problems.append(f"{name}diff_gap_stats.txt: not the gaps of {name}diff_abs.npy; left out")
                del self.gaps[layer]

    def results(self, corner: str, layout: Layout | None) -> HeadResults:
        sizes = [len(one) for one in self.changes.values()] + [one.shape[1] for one in self.members.values()]
        sizes += [int(one.sum()) // self.k[layer] for layer, one in self.counts.items()]
        gaps = pd.DataFrame([{"layer": layer, **own} for layer, own in self.gaps.items()], columns=["layer", *GAPS])
        k = next(iter(self.k.values()), 3)
        arrays = {"changes": self.changes, "members": self.members}
        pairs = sizes[0] if sizes else None
        return HeadResults(corner, layout, k, _counts(self.counts), **arrays, gaps=gaps, pairs=pairs, problems=self.problems)

    def _array(self, name: str, dimensions: int) -> np.ndarray | None:
        """The array of a file, or None with a problem noted."""
        try:
            array = read_npy(self.folder / name, MAX_ARRAY)
        except (ValueError, OSError) as error:
            self.problems.append(f"{name}: {short(error, self.folder / name)}")
            return None
        if array.ndim != dimensions or not array.size:
            self.problems.append(f"{name}: shape {array.shape}; {dimensions} dimensions, none of them empty, are wanted")
            return None
        return array
