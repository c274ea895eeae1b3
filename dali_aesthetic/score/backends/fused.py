"""The tower as eight kernels a block: matrix products by QuACK with fused epilogues, Triton between them.

The weights are changed by exact algebra in float64 and rounded once (`folding.py`); the last block is
computed for the class token only. Where patches are not in float16, class tokens have a float16 path of their
own (`class_stream.py`).

Shape legend: N images, L tokens, P = L - 1 patches, R = N * L or N * P rows, W width, F MLP width, K values
of a patch, D embedding, H scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dali_aesthetic.score.backends import folding
from dali_aesthetic.score.backends.class_stream import ClassStream
from dali_aesthetic.score.backends.folding import FoldedBlock
from dali_aesthetic.score.backends.kernels import attention, class_block, embed, layernorm
from dali_aesthetic.score.backends.kernels.gemm import Gemm
from dali_aesthetic.score.backends.plain import DTYPES
from dali_aesthetic.score.backends.workspace import Workspace
from dali_aesthetic.score.clip import LAYER_NORM_EPS, Block, VisionTower, check_pixels
from dali_aesthetic.score.head import HeadBank


class FusedBackend:
    """See `Backend`. Batches of any size are cut into parts of at most the workspace's number of images.

    Kernels are launched one by one, not replayed from a CUDA graph: while a replayed graph runs, the CUDA
    calls of every other thread wait for its end. Beside a graph of fp8 the decoder gave 190 images/s, beside
    launches 11,100, and a batch runs long enough to hide its few hundred launches.
    """

    def __init__(
        self, encoder: FusedEncoder, heads: HeadBank, work: Workspace, precision: str, name: str = "fused"
    ) -> None:
        self.name, self.precision = name, precision
        self.spec, self.head_names = encoder.spec, heads.names
        self._encoder, self._heads, self._work = encoder, heads, work

    @torch.inference_mode()
    def __call__(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        check_pixels(images_NHWC, self.spec)
        parts = [self._score(part) for part in torch.split(images_NHWC.contiguous(), self._work.images)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([scores for scores, _ in parts]), torch.cat([embeddings for _, embeddings in parts])

    def _score(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        work = self._work.first(len(images_NHWC))
        self._encoder.patchify(images_NHWC, work)
        embeddings_ND = self._encoder.encode(work)
        return self._heads(embeddings_ND), embeddings_ND


def build(
    tower: VisionTower, heads: HeadBank, device: torch.device, precision: str, batch_size: int
) -> FusedBackend:
    """A fused fp16 or bf16 backend. With bf16 the class tokens are still float16."""
    dtype = DTYPES[precision]
    tower = tower.float().to(device)
    blocks = folding.fold_all_but_the_last(tower)
    apart = None if dtype == torch.float16 else ClassStream(blocks)
    trunk = DeferredNorms(blocks, batch_size * tower.spec.tokens, device, dtype, apart)
    work = Workspace.make(tower.spec, batch_size, device, dtype)
    return FusedBackend(FusedEncoder(tower, trunk), heads.float().to(device), work, precision)


class Trunk(Protocol):
    """All blocks but the last. Updates the residual stream in `work.tokens_RW` in place.

    It leaves the tokens after the last block's first norm in `work.normed_RW`, in float16. `wants_normed`
    says whether it also reads the first block's normalised input from there.
    """

    wants_normed: bool

    def __call__(self, work: Workspace) -> None: ...


class FusedEncoder:
    """Pixels to embeddings, with `trunk` for all blocks but the last.

    Patch embedding, last block and projection are float16 whatever the trunk is.
    """

    def __init__(self, tower: VisionTower, trunk: Trunk) -> None:
        """The tower is float32 and on the GPU; nothing of it is kept."""
        self.spec, self.trunk = tower.spec, trunk
        patch, patch_bias = folding.fold_pixels(tower.patch_embed.weight, tower.spec)
        self._patch_KW = patch.half().T
        self._positions_LW = folding.fold_positions(tower, patch_bias).float()
        self._gain_W, self._bias_W = tower.ln_pre.weight.float(), tower.ln_pre.bias.float()
        last = tower.blocks[-1]
        assert isinstance(last, Block)
        self._last = class_block.ClassBlock(folding.fold_block(last), tower.spec.quick_gelu)
        projection, bias = folding.fold_projection(tower)
        self._projection_DW, self._projection_bias_D = projection.float(), bias.float()

    def patchify(self, images_NHWC: Tensor, work: Workspace) -> None:
        """The pixels as rows in `work.wide`: the only read of the caller's tensor."""
        embed.patchify(images_NHWC, self._patches(work)[0], self.spec.patch_size)

    def encode(self, work: Workspace) -> Tensor:
        """Embeddings [N, D] float32, not normalised, of the rows that `patchify` wrote."""
        rows_RK, embedded_RW = self._patches(work)
        torch.mm(rows_RK, self._patch_KW, out=embedded_RW)
        tokens, normed = work.split(work.tokens_RW), work.split(work.normed_RW)
        table, gain, bias = self._positions_LW, self._gain_W, self._bias_W
        start = normed if self.trunk.wants_normed else None
        embed.assemble(embedded_RW, table, gain, bias, tokens, start, LAYER_NORM_EPS)
        self.trunk(work)
        ended = work.split(work.normed_RW.view(torch.float16))
        class_NW = self._last(tokens[1], *ended, LAYER_NORM_EPS).float()
        unit_NW = torch.nn.functional.layer_norm(class_NW, class_NW.shape[1:], eps=LAYER_NORM_EPS)
        return torch.addmm(self._projection_bias_D, unit_NW, self._projection_DW.T)

    def _patches(self, work: Workspace) -> tuple[Tensor, Tensor]:
        """Patch rows [N * P, K] and their products [N * P, W], float16, both in `wide`."""
        rows, columns = work.images * (self.spec.tokens - 1), self._patch_KW.shape[0]
        flat, end = work.wide.view(torch.float16), rows * columns
        embedded = flat[end : end + rows * self.spec.width].view(rows, self.spec.width)
        return flat[:end].view(rows, columns), embedded


class DeferredNorms:
    """The `Trunk` without a LayerNorm pass: `LN(h) W = (h W) / sigma - (sum of W) mean / sigma`.

    The products that write the residual stream also write each row's sums; those that read it apply
    them in their epilogue. Class tokens are rows like any other, or have their own path, `apart`.
    """

    wants_normed = False

    def __init__(
        self,
        blocks: Sequence[FoldedBlock],
        rows: int,
        device: torch.device,
        dtype: torch.dtype,
        apart: ClassStream | None = None,
    ) -> None:
        self._heads, self._apart = blocks[0].heads, apart
        self._blocks = [self._gemms(block, dtype) for block in blocks]
        tiles = -(-blocks[0].q.shape[1] // self._blocks[0][1].tile.n)
        self._sums_RT = [torch.empty(rows * tiles, device=device) for _ in range(2)]
        self._moments_R = [torch.empty(rows, device=device) for _ in range(2)]

    @staticmethod
    def _gemms(block: FoldedBlock, dtype: torch.dtype) -> tuple[Gemm, Gemm, Gemm, Gemm]:
        qkv, fc1 = block.qkv.to(dtype), block.fc1.to(dtype)
        # Sums of the rounded weights: the mean must cancel against what the product really adds up.
        return (
            Gemm("normed_linear", qkv, b=block.qkv_bias.float(), ws=qkv.double().sum(1).float()),
            Gemm("linear_residual_moments", block.proj.to(dtype), b=block.proj_bias.float()),
            Gemm("normed_linear_quick_gelu", fc1, b=block.fc1_bias.float(), ws=fc1.double().sum(1).float()),
            Gemm("linear_residual_moments", block.fc2.to(dtype), b=block.fc2_bias.float()),
        )

    def __call__(self, work: Workspace) -> None:
        patches, class_NW = work.split(work.tokens_RW)
        h = work.tokens_RW if self._apart is None else patches
        attended = work.normed_RW[: len(h)]
        rows, width = h.shape
        scale_R, shift_R = (moment[:rows] for moment in self._moments_R)
        norm = {"rs": scale_R[None], "rm": shift_R[None]}
        layernorm.row_moments(h, scale_R, shift_R, LAYER_NORM_EPS)
        for index, (qkv, proj, fc1, fc2) in enumerate(self._blocks):
            sums = [
                each[: rows * (each.numel() // len(self._moments_R[0]))].view(rows, -1)
                for each in self._sums_RT
            ]
            named = {"total": sums[0], "squares": sums[1]}
            qkv(h, packed := work.scratch(rows, 3 * width), **norm)
            self._attend(index, work, packed, attended, class_NW)
            proj(attended, h, h, **named)
            layernorm.fold_moments(sums[0], sums[1], scale_R, shift_R, width, LAYER_NORM_EPS)
            fc1(h, hidden := work.scratch(rows, fc1.channels_out), **norm)
            fc2(hidden, h, h, **named)
            layernorm.fold_moments(sums[0], sums[1], scale_R, shift_R, width, LAYER_NORM_EPS)
        for tokens, normed in zip(
            work.split(work.tokens_RW), work.split(work.normed_RW.view(torch.float16)), strict=True
        ):
            layernorm.normalize_rows(tokens, normed, LAYER_NORM_EPS)

    def _attend(
        self, index: int, work: Workspace, packed: Tensor, attended: Tensor, class_NW: Tensor
    ) -> None:
        heads = self._heads
        if self._apart is None:
            (qkv, qkv_class), (out, out_class) = work.split(packed), work.split(attended)
            attention.attend(qkv, qkv_class, out, out_class, heads)
        else:
            self._apart(index, class_NW, lambda qkv, out: attention.attend(packed, qkv, attended, out, heads))


class NormPasses:
    """The `Trunk` with a pass over the residual stream before each of the two products that read it.

    `observe` is called with block, product and the patches of the product's input.
    """

    wants_normed = True

    def __init__(self, blocks: Sequence[FoldedBlock], dtype: torch.dtype) -> None:
        self._heads = blocks[0].heads
        self._blocks = [
            (
                Gemm("linear", block.qkv.to(dtype), b=block.qkv_bias.float()),
                Gemm("linear_residual", block.proj.to(dtype), b=block.proj_bias.float()),
                Gemm("linear_quick_gelu", block.fc1.to(dtype), b=block.fc1_bias.float()),
                Gemm("linear_residual", block.fc2.to(dtype), b=block.fc2_bias.float()),
            )
            for block in blocks
        ]
        self.observe: Callable[[int, str, Tensor], None] | None = None

    def __call__(self, work: Workspace) -> None:
        h, normed = work.tokens_RW, work.normed_RW
        rows, width = h.shape

        def observe(index: int, site: str, tokens: Tensor) -> None:
            if self.observe is not None:
                self.observe(index, site, work.split(tokens)[0])

        for index, (qkv, proj, fc1, fc2) in enumerate(self._blocks):
            observe(index, "qkv", normed)
            qkv(normed, packed := work.scratch(rows, 3 * width))
            attention.attend(*work.split(packed), *work.split(normed), self._heads)
            observe(index, "proj", normed)
            proj(normed, h, h)
            layernorm.normalize_rows(h, normed, LAYER_NORM_EPS)
            observe(index, "fc1", normed)
            fc1(normed, hidden := work.scratch(rows, fc1.channels_out))
            observe(index, "fc2", hidden)
            fc2(hidden, h, h)
            layernorm.normalize_rows(h, normed, LAYER_NORM_EPS)
