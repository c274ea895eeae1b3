"""The CLIP image tower, written to be read: the reference every fast path is tested against.

Shape legend: N images, S pixels, P patch, L tokens, Q queries, W width, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dali_aesthetic.score.spec import TowerSpec

LAYER_NORM_EPS = 1e-5


class Block(nn.Module):
    """One pre-norm transformer block: attention, then an MLP, each added to the tokens."""

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.quick_gelu = spec.quick_gelu
        self.ln_1 = nn.LayerNorm(spec.width, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(spec.width, 3 * spec.width)
        self.proj = nn.Linear(spec.width, spec.width)
        self.ln_2 = nn.LayerNorm(spec.width, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(spec.width, spec.mlp_width)
        self.fc2 = nn.Linear(spec.mlp_width, spec.width)

    def forward(self, tokens_NLW: Tensor) -> Tensor:
        """Tokens in, tokens out, [N, L, W]."""
        q, k, v = self.qkv(self.ln_1(tokens_NLW)).chunk(3, dim=-1)
        return self._attend_and_mix(tokens_NLW, q, k, v)

    def class_token(self, tokens_NLW: Tensor) -> Tensor:
        """The first token of `forward`, [N, 1, W]: the others are only looked at, not computed."""
        normed_NLW = self.ln_1(tokens_NLW)
        width = tokens_NLW.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(normed_NLW[:, :1], weight[:width], bias[:width])
        k, v = F.linear(normed_NLW, weight[width:], bias[width:]).chunk(2, dim=-1)
        return self._attend_and_mix(tokens_NLW[:, :1], q, k, v)

    def _attend_and_mix(self, tokens_NQW: Tensor, q_NQW: Tensor, k_NLW: Tensor, v_NLW: Tensor) -> Tensor:
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q_NQW, k_NLW, v_NLW))
        attended_NQW = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        tokens_NQW = tokens_NQW + self.proj(attended_NQW)
        hidden = self.fc1(self.ln_2(tokens_NQW))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else F.gelu(hidden)
        mixed: Tensor = tokens_NQW + self.fc2(hidden)
        return mixed


class VisionTower(nn.Module):
    """A CLIP ViT. Equal to open_clip's `encode_image` (fp32, to 1e-5), with q, k, v in one matrix.

    Build it with `from_state`; the constructor leaves the parameters to torch's own random values.
    """

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = nn.Conv2d(3, spec.width, spec.patch_size, stride=spec.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(spec.width))
        self.positional_embedding = nn.Parameter(torch.empty(spec.tokens, spec.width))
        self.ln_pre = nn.LayerNorm(spec.width, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.ln_post = nn.LayerNorm(spec.width, eps=LAYER_NORM_EPS)
        self.projection = nn.Parameter(torch.empty(spec.width, spec.embed_dim))

    @classmethod
    def from_state(cls, spec: TowerSpec, state: Mapping[str, Tensor]) -> VisionTower:
        """A frozen float32 tower that takes over the tensors of `state`, named as its own parameters.

        Raises RuntimeError (torch's) where a name is missing or unknown or a shape is another one.
        """
        # On the meta device: no second copy of the weights, and torch's global generator stays untouched.
        with torch.device("meta"):
            tower = cls(spec)
        tower.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
        return tower.requires_grad_(False).eval()

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Embeddings [N, D], not normalised, in the dtype of the weights, of `normalize`d images."""
        patches_NLW = self.patch_embed(images_NCHW).flatten(2).transpose(1, 2)
        class_N1W = self.class_embedding.expand(patches_NLW.shape[0], 1, -1)
        tokens_NLW = torch.cat([class_N1W, patches_NLW], dim=1) + self.positional_embedding
        tokens_NLW = self.ln_pre(tokens_NLW)
        *blocks, last = self.blocks
        for block in blocks:
            tokens_NLW = block(tokens_NLW)
        assert isinstance(last, Block)
        class_NW = self.ln_post(last.class_token(tokens_NLW)[:, 0])
        embeddings_ND: Tensor = class_NW @ self.projection
        return embeddings_ND


class Normalize(nn.Module):
    """From pixels to what the tower takes: `(x / 255 - mean) / std`, in float32, rounded once to `dtype`.

    In this order it gives the bits of torchvision's ToTensor and Normalize.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: TowerSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        # Buffers, so that a batch costs no copy to the device; float32 whatever the tower computes in.
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32).view(3, 1, 1))

    def forward(self, images_NHWC: Tensor) -> Tensor:
        """[N, 3, S, S] in `dtype` from uint8 RGB [N, S, S, 3]."""
        images_NCHW = images_NHWC.permute(0, 3, 1, 2).contiguous().float()
        return images_NCHW.div(255).sub(self.mean).div(self.std).to(self.dtype)


def check_pixels(images_NHWC: Tensor, spec: TowerSpec) -> None:
    """Raises ValueError for pixels that are not uint8 [N, S, S, 3] of the tower's size."""
    size = spec.image_size
    if images_NHWC.dtype != torch.uint8 or tuple(images_NHWC.shape[1:]) != (size, size, 3):
        raise ValueError(
            f"{spec.name} takes uint8 pixels [N, {size}, {size}, 3], not {images_NHWC.dtype} "
            f"{list(images_NHWC.shape)}"
        )


def pad_to(count: int, images_NHWC: Tensor) -> Tensor:
    """The images and black ones behind them, `count` in all."""
    return F.pad(images_NHWC, (0, 0, 0, 0, 0, 0, 0, count - len(images_NHWC)))


def normalize(images_NHWC: Tensor, spec: TowerSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """`Normalize` as a function, on the pixels' own device, with their shape and dtype checked."""
    check_pixels(images_NHWC, spec)
    normalized: Tensor = Normalize(spec, dtype).to(images_NHWC.device)(images_NHWC)
    return normalized
