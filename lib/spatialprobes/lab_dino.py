"""lab-dino: a second tower that never saw a word or a label, trained by self-distillation (DINO, Caron et al. 2021, section 3).

A student is to say of one view of a picture what its teacher, the moving average of itself, says of another. Views are crops,
mirrored half of the time, a little brighter or darker: what they share is which things are there. Knows nothing of the zoo.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from spatialprobes.lab_batches import PERSPECTIVE, normalise
from spatialprobes.lab_models import HEADS, INITIALIZER_RANGE, TOWER_DEPTH, WIDTH
from spatialprobes.worlds.lab import WORLD, draw_with_patches, scene

if TYPE_CHECKING:
    from jaxtyping import Float

PROTOTYPES, BOTTLENECK = 256, 64
STUDENT, TEACHER = 0.1, 0.04  # temperatures
MOMENTUM, CENTRE_MOMENTUM = 0.99, 0.9
LEAST = 0.5  # side of a view, in that of the picture
VIEWS = 2


def model(seed: int) -> Dinov2Model:
    """Untrained DINOv2 with the width, depth and patches of lab-clip's tower."""
    torch.manual_seed(seed)
    return Dinov2Model(
        Dinov2Config(
            hidden_size=WIDTH, num_hidden_layers=TOWER_DEPTH, num_attention_heads=HEADS, mlp_ratio=2, image_size=WORLD.size,
            patch_size=WORLD.patch, initializer_range=INITIALIZER_RANGE, use_mask_token=False,
        )
    )  # fmt: skip


def images() -> BitImageProcessorPil:
    """As lab-clip's: to 48 x 48, pixels to [-1, 1]."""
    half, side = [0.5, 0.5, 0.5], WORLD.size
    size = {"height": side, "width": side}
    return BitImageProcessorPil(size={"shortest_edge": side}, crop_size=size, image_mean=half, image_std=half)


class Pictures(Dataset):
    """A scene's picture and what its patches show, which only the card's measures look at; two views are drawn with each."""

    def __init__(self, seed: int, count: int):
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, labels, _ = draw_with_patches(scene(self.seed, index, PERSPECTIVE))
        return image, labels, np.random.default_rng([self.seed, index, 1]).random((VIEWS, 6))

    @staticmethod
    def collate(items: list) -> dict[str, Tensor]:
        shown, labels, chance = (torch.from_numpy(np.stack(part)) for part in zip(*items, strict=True))
        pictures = normalise(shown.numpy())
        seen = torch.cat([views(pictures, chance[:, view].float()) for view in range(VIEWS)])
        return {"pixel_values": seen, "patch_labels": labels}


def views(pictures: Float[Tensor, "n 3 side side"], chance: Float[Tensor, "n 6"]) -> Float[Tensor, "n 3 side side"]:
    """One view of each picture; chance, uniform in [0, 1]: its size, place across and down, mirroring, contrast, brightness."""
    share = LEAST + (1 - LEAST) * chance[:, 0]
    across, down = ((2 * chance[:, i] - 1) * (1 - share) for i in (1, 2))
    mirrored = torch.where(chance[:, 3] < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(share)
    affine = torch.stack([torch.stack([share * mirrored, zero, across], 1), torch.stack([zero, share, down], 1)], 1)
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    cut = F.grid_sample(pictures, grid, align_corners=False, padding_mode="border")
    contrast, brightness = 0.8 + 0.4 * chance[:, 4], 0.3 * (chance[:, 5] - 0.5)
    return cut * contrast[:, None, None, None] + brightness[:, None, None, None]


class SelfDistillation(nn.Module):
    """Student and teacher, each a tower with a head to prototypes; the teacher follows the student at every step of training."""

    def __init__(self, tower: Dinov2Model):
        super().__init__()
        self.student = nn.ModuleDict({"tower": tower, "projection": _projection()})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(PROTOTYPES))

    def forward(self, pixel_values: Float[Tensor, "view_n 3 side side"], patch_labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of each view's prototypes under the student against the other's under the teacher."""
        if self.training:
            self._follow()
        said = _prototypes(self.student, pixel_values) / STUDENT
        with torch.no_grad():
            told = _prototypes(self.teacher, pixel_values)
            target = F.softmax((told - self.centre) / TEACHER, dim=-1)
            if self.training:
                self.centre.lerp_(told.mean(0), 1 - CENTRE_MOMENTUM)
        other = target.roll(len(target) // VIEWS, 0)
        return {"loss": -(other * F.log_softmax(said, dim=-1)).sum(-1).mean()}

    @torch.no_grad()
    def _follow(self) -> None:
        for mine, its in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(its, 1 - MOMENTUM)


def _projection() -> nn.Sequential:
    inner = [nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, BOTTLENECK), _Unit()]
    return nn.Sequential(*inner, _Prototypes())


class _Prototypes(nn.Module):
    """Cosines with the prototypes, which keep length 1: were they free to shrink, all views would come to be called alike."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(PROTOTYPES, BOTTLENECK))

    def forward(self, x: Tensor) -> Float[Tensor, "n prototype"]:
        return F.linear(x, F.normalize(self.weight, dim=-1))


class _Unit(nn.Module):
    """Vectors to length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


def _prototypes(side: nn.ModuleDict, pixel_values: Tensor) -> Float[Tensor, "n prototype"]:
    return side["projection"](side["tower"](pixel_values).pooler_output)


@torch.no_grad()
def seen(tower: Dinov2Model, data: Pictures, among: int = 100) -> dict[str, tuple[int, int]]:
    """{what: (right, asked)}: whether the other view of a picture is the nearest of 100; what patches of objects show, read
    linearly (least squares on the first half of the pictures, counted on the other)."""
    right = asked = 0
    features, labels = [], []
    for start in range(0, len(data) // among * among, among):
        items = [data[i] for i in range(start, start + among)]
        batch = data.collate(items)
        one, other = F.normalize(tower(batch["pixel_values"]).pooler_output, dim=-1).chunk(VIEWS)
        right += int(((one @ other.T).argmax(1) == torch.arange(among)).sum())
        asked += among
        whole = normalise(np.stack([item[0] for item in items]))
        features.append(tower(whole).last_hidden_state[:, 1:].flatten(0, 1))
        labels.append(batch["patch_labels"].flatten())
    x, y = torch.cat(features), torch.cat(labels)
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    half = len(x) // 2
    weights = torch.linalg.lstsq(x[:half], F.one_hot(y[:half], int(y.max()) + 1).float()).solution
    shown = y[half:] > 0
    hit = ((x[half:] @ weights).argmax(1) == y[half:])[shown]
    return {f"other view among {among}": (right, asked), "object patches (linear readout)": (int(hit.sum()), len(hit))}
