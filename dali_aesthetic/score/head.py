"""Aesthetic heads: from a unit CLIP embedding to a score, as published and folded into one dot product.

Shape legend: N images, D embedding, H heads, A of them affine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LINEAR_KEY = re.compile(r"(?:(?P<prefix>.*?)\.)?(?P<index>\d+)\.(?P<what>weight|bias)")
_LAION_LINEAR = (0, 2, 4, 6, 7)
_LAION_RELU = (0, 3, 6, 9, 11)
"""Where improved-aesthetic-predictor's `train_predictor.py` puts its Linears, without and with ReLUs."""
_LAION_H14_NSFW = (0, 3, 6, 9, 12, 15, 16)
"""CLIP-based-NSFW-Detector's `h14_nsfw_model.py`: ReLUs in the gaps, and no sigmoid at the end."""
_LAION_NSFW_KEY = re.compile(r"(?P<prefix>)linear_(?P<index>\d+)\.(?P<what>weight|bias)")
_Layers = dict[int, tuple[Tensor, Tensor]]
_LAION_NSFW_NORM = {"norm.mean", "norm.variance"}
"""CLIP-based-NSFW-Detector's heads for ViT-L/14 and ViT-B/32 as ported to PyTorch (its issue 7)."""


class HeadMLP(nn.Module):
    """A head as it was trained: linear layers, with or without ReLUs between them and a sigmoid at the end.

    The reference for the folded head, and the implementation of a head that can't be folded.
    """

    def __init__(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        relu: bool | Sequence[bool],
        sigmoid: bool = False,
    ) -> None:
        """`layers` are weights [out, in] and biases [out]. Raises ValueError where they don't chain.

        `relu` says for each layer but the last whether a ReLU follows it; a bool holds for all of them.
        """
        super().__init__()
        gaps = len(layers) - 1
        self.relus = (relu,) * gaps if isinstance(relu, bool) else tuple(relu)
        self.sigmoid = sigmoid
        if not _chained(layers):
            shapes = ", ".join(f"{list(weight.shape)} + {list(bias.shape)}" for weight, bias in layers)
            raise ValueError(f"the layers {shapes} don't lead from an embedding to one score")
        self.weights = nn.ParameterList(w.detach() for w, _ in layers).requires_grad_(False)
        self.biases = nn.ParameterList(b.detach() for _, b in layers).requires_grad_(False)

    @property
    def embed_dim(self) -> int:
        """Length of the embeddings it takes."""
        return int(self.weights[0].shape[1])

    @property
    def affine(self) -> bool:
        """Whether it reduces to one dot product and a constant, whatever its number of layers."""
        return not any(self.relus) and not self.sigmoid

    def forward(self, unit_ND: Tensor) -> Tensor:
        """Scores [N] of L2-normalised embeddings, in the dtype of the weights."""
        hidden = unit_ND
        for weight, bias, relu in zip(self.weights, self.biases, (*self.relus, False), strict=True):
            hidden = F.linear(hidden, weight, bias)
            hidden = hidden.relu() if relu else hidden
        return hidden[:, 0].sigmoid() if self.sigmoid else hidden[:, 0]

    def fold(self) -> tuple[Tensor, Tensor]:
        """`w` [D] and `b` [] in float64 with `forward(e) = w.e + b`. Raises ValueError if not affine."""
        if not self.affine:
            raise ValueError("a head with ReLUs or a sigmoid can't be folded")
        w, b = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        for weight, bias in reversed(list(zip(self.weights, self.biases, strict=True))):
            b = b + w @ bias.cpu().double()
            w = w @ weight.cpu().double()
        return w[0], b[0]


def _chained(layers: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether each layer fits the output of the one before, and the last has one output."""
    if any(weight.ndim != 2 or bias.shape != weight.shape[:1] for weight, bias in layers):
        return False
    taken = [weight.shape[1] for weight, _ in layers]
    return [weight.shape[0] for weight, _ in layers] == [*taken[1:], 1]


@dataclass(frozen=True, slots=True)
class Head:
    """A head and the name of its scores."""

    name: str
    mlp: HeadMLP


class HeadBank(nn.Module):
    """Any number of heads on one embedding, in the order given; the affine ones folded."""

    w_AD: Tensor
    b_A: Tensor

    def __init__(self, heads: Sequence[Head], embed_dim: int) -> None:
        """Raises ValueError for no head, two of a name, or one for embeddings of another length."""
        super().__init__()
        if not heads:
            raise ValueError("no head: name at least one, such as laion-v2")
        for head in heads:
            if head.mlp.embed_dim != embed_dim:
                raise ValueError(
                    f"head {head.name!r} takes embeddings of {head.mlp.embed_dim} numbers, the encoder gives "
                    f"{embed_dim}: take a head trained for this encoder (laion-v2 and laion-v1 exist for "
                    "ViT-L-14, laion-v1 also for ViT-B-32 and ViT-B-16) or the encoder that the head was "
                    "trained for"
                )
        self.names = tuple(head.name for head in heads)
        if len(set(self.names)) < len(heads):
            raise ValueError(f"heads {list(self.names)}: two go by one name; rename the file of one")
        folded = [head.mlp.fold() for head in heads if head.mlp.affine]
        nothing = torch.empty(0, embed_dim, dtype=torch.float64)
        self.register_buffer("w_AD", torch.cat([nothing, *(w[None] for w, _ in folded)]).float())
        self.register_buffer("b_A", torch.cat([nothing[:, 0], *(b[None] for _, b in folded)]).float())
        self.others = nn.ModuleList(head.mlp.float() for head in heads if not head.mlp.affine)
        by_kind = sorted(range(len(heads)), key=lambda index: not heads[index].mlp.affine)
        self._columns = [by_kind.index(index) for index in range(len(heads))]

    def forward(self, embeddings_ND: Tensor) -> Tensor:
        """Scores [N, H], float32, on each head's own scale, of embeddings of any dtype and length."""
        unit_ND = F.normalize(embeddings_ND.float(), dim=-1)
        # Not a matmul: TF32, where a process has switched it on, would cost three digits of the score.
        folded_NA = (unit_ND[:, None] * self.w_AD).sum(-1) + self.b_A
        scores_NH = torch.cat([folded_NA, *(head(unit_ND)[:, None] for head in self.others)], dim=1)
        in_order = self._columns == list(range(len(self._columns)))
        return scores_NH if in_order else scores_NH[:, self._columns]


def head_from_state(state: Mapping[str, Tensor], relu: bool | None = None) -> HeadMLP:
    """The head of a checkpoint: `w, b`, one Linear's `weight, bias`, a Sequential of Linears, or LAION's NSFW
    head as ported to PyTorch (`norm.mean, norm.variance, linear_1.weight, …`; a probability).

    `relu` says whether ReLUs fill the gaps of the Sequential; None infers it from the layout, which works
    for LAION's own layouts and a single layer. Raises ValueError for anything else.
    """
    if set(state) >= _LAION_NSFW_NORM:
        return _laion_nsfw(state)
    if set(state) == {"w", "b"}:
        layers = {0: (state["w"].reshape(1, -1), state["b"].reshape(-1))}
    elif set(state) == {"weight", "bias"}:
        layers = {0: (state["weight"], state["bias"])}
    else:
        layers = _linears(state, _LINEAR_KEY, "a linear head or an MLP of Linears")
    indices = sorted(layers)
    in_gaps = _has_relu(layers) if relu is None else relu
    # A Linear right after a Linear leaves no room for an activation, whatever the other gaps hold.
    relus = [in_gaps and after - before > 1 for before, after in pairwise(indices)]
    return HeadMLP([layers[index] for index in indices], relus)


def _laion_nsfw(state: Mapping[str, Tensor]) -> HeadMLP:
    """Keras's input normalisation, folded into the first layer, then Linears with ReLUs, then a sigmoid."""
    others = {name: tensor.double() for name, tensor in state.items() if name not in _LAION_NSFW_NORM}
    by_index = _linears(others, _LAION_NSFW_KEY, "LAION's NSFW head, though it has norm.mean")
    layers = [by_index[index] for index in sorted(by_index)]
    mean, std = state["norm.mean"].double().flatten(), state["norm.variance"].double().flatten().sqrt()
    weight, bias = layers[0]
    if not weight.shape[1:] == mean.shape == std.shape:
        sizes = (
            f"norm.mean {list(mean.shape)}, norm.variance {list(std.shape)}, {list(weight.shape)} of weights"
        )
        raise ValueError(f"not LAION's NSFW head: {sizes} don't fit together")
    weight = weight / std
    layers[0] = (weight, bias - weight @ mean)
    return HeadMLP(layers, relu=True, sigmoid=True)


def _linears(state: Mapping[str, Tensor], key: re.Pattern[str], what: str) -> _Layers:
    """Weights and biases by the index in their names. Raises ValueError, saying that it is not `what`."""
    parts: dict[int, dict[str, Tensor]] = {}
    prefixes = set()
    for name, tensor in state.items():
        match = key.fullmatch(name)
        if match is None or tensor.ndim != (2 if match["what"] == "weight" else 1):
            raise ValueError(f"not {what}: it has {name} {list(tensor.shape)}")
        parts.setdefault(int(match["index"]), {})[match["what"]] = tensor
        prefixes.add(match["prefix"])
    if len(prefixes) != 1 or any(set(part) != {"weight", "bias"} for part in parts.values()):
        raise ValueError(f"not {what}: it has {', '.join(state) or 'no tensor'}")
    return {index: (part["weight"], part["bias"]) for index, part in parts.items()}


def _has_relu(indices: Mapping[int, object]) -> bool:
    """Whether the gaps between the Linears of a Sequential hold ReLUs. Raises ValueError if unclear."""
    found = tuple(sorted(indices))
    if found in (_LAION_RELU, _LAION_H14_NSFW):
        return True
    if found == _LAION_LINEAR or found == tuple(range(found[0], found[0] + len(found))):
        return False
    raise ValueError(
        f"the file doesn't say what lies between its Linears (at {', '.join(map(str, found))} of the "
        "Sequential): append :relu or :linear to its path"
    )
