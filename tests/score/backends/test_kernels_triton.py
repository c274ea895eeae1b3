"""The Triton kernels against float32 torch: on a GPU, and without one in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    # Torch imports Triton, whose own functions are bound to a GPU or to the interpreter at that moment.
    pytest.skip(
        "without a GPU test_kernels_interpreted.py runs this in a process of its own", allow_module_level=True
    )

from dali_aesthetic.score.backends.folding import fold_pixels, padded_patch, softmax_scale  # noqa: E402
from dali_aesthetic.score.backends.kernels import attention, class_block, embed, layernorm  # noqa: E402
from dali_aesthetic.score.clip import normalize  # noqa: E402
from dali_aesthetic.score.spec import TowerSpec  # noqa: E402

DEVICE = torch.device("cuda" if GPU else "cpu")
EPS = 1e-5
BATCHES = [1, 7, 255, 256, 257, 1019] if GPU else [1, 3]
HEADS, SIZE, PATCHES = (16, 64, 256) if GPU else (2, 16, 32)
WIDTH = HEADS * SIZE


def poisoned(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """A buffer of NaNs, which shows elements that no kernel wrote."""
    return torch.full(shape, float("nan"), dtype=torch.float32, device=DEVICE).to(dtype)


def noise(*shape: int, outliers: bool, seed: int = 0) -> Tensor:
    """Normal float16 values; with outliers, a few columns 30 times larger and every 97th row 20 times."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    values = torch.randn(*shape, generator=generator, device=DEVICE)
    if outliers:
        values[..., ::61] *= 30
        values.view(-1, shape[-1])[::97] *= 20
    return values.half()


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected; NaN stays NaN."""
    return float((out.float() - expected.float()).norm() / expected.float().norm())


def packed(images: int, outliers: bool, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """qkv of patches, of `dtype`, and of class tokens, float16."""
    qkv = noise(images * (PATCHES + 1), 3 * WIDTH, outliers=outliers)
    qkv[:, :WIDTH] *= softmax_scale(SIZE)
    return qkv[: images * PATCHES].to(dtype), qkv[images * PATCHES :].contiguous()


def buffers(images: int, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """For the attention outputs of patches and class tokens."""
    return poisoned(images * PATCHES, WIDTH, dtype=dtype), poisoned(images, WIDTH)


# NumPy, and so the interpreter, has no bfloat16.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16] if GPU else [torch.float16])
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("images", BATCHES)
def test_attention_equals_softmax(images: int, outliers: bool, dtype: torch.dtype) -> None:
    (qkv, qkv_class), (out, out_class) = packed(images, outliers, dtype), buffers(images, dtype)
    attention.attend(qkv, qkv_class, out, out_class, HEADS)
    for start in range(0, images, 64):
        here = slice(start, start + 64)
        rows = slice(start * PATCHES, (start + 64) * PATCHES)
        expected, expected_class = attention.reference(qkv[rows], qkv_class[here], HEADS)
        assert relative_error(out[rows], expected) < (2e-3 if dtype == torch.float16 else 1e-2)
        assert relative_error(out_class[here], expected_class) < 2e-3


def test_attention_repeats_bit_for_bit() -> None:
    images = BATCHES[-1]
    qkv, first = packed(images, outliers=False), buffers(images)
    attention.attend(*qkv, *first, HEADS)
    for _ in range(5 if GPU else 1):
        attention.attend(*qkv, *(again := buffers(images)), HEADS)
        assert all(map(torch.equal, first, again))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="float8 stores need a GPU")
def test_attention_saturates_float8() -> None:
    qkv, (out, out_class) = packed(3, outliers=False), buffers(3, torch.float8_e4m3fn)
    attention.attend(*qkv, out, out_class, HEADS, 1e4)
    expected, expected_class = attention.reference(*qkv, HEADS)
    assert relative_error(out, (expected * 1e4).clamp(-448, 448)) < 0.04
    assert relative_error(out_class, expected_class) < 2e-3, "class tokens are not scaled"


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("width", [64, 96, 1024])
@pytest.mark.parametrize("rows", [1, 7, 257])
def test_normalize_rows_equals_layer_norm(rows: int, width: int, outliers: bool) -> None:
    x = noise(rows, width, outliers=outliers)
    out = poisoned(rows, width)
    layernorm.normalize_rows(x, out, EPS)
    expected = torch.nn.functional.layer_norm(x.float(), (width,), eps=EPS)
    assert float((out.float() - expected).abs().max()) < 0.01 * float(expected.abs().max())
    assert relative_error(out, expected) < 1e-3


@pytest.mark.parametrize("width", [64, 96])
def test_normalize_rows_adds_the_addend_first(width: int) -> None:
    x, addend = noise(7, width, outliers=False), 3 * noise(width, outliers=False, seed=1).float()
    out = poisoned(7, width, dtype=torch.float32)
    layernorm.normalize_rows(x, out, EPS, addend_W=addend)
    expected = torch.nn.functional.layer_norm(x.float() + addend, (width,), eps=EPS)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_normalize_rows_takes_strided_rows() -> None:
    x = noise(5, 9, 64, outliers=False)
    out = poisoned(5, 64, dtype=torch.float32)
    layernorm.normalize_rows(x[:, 0], out, EPS)
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(x[:, 0].float(), (64,), eps=EPS))


@pytest.mark.parametrize("outliers", [False, True])
def test_row_moments_undo_a_layer_norm(outliers: bool) -> None:
    x = noise(33, 1024, outliers=outliers)
    scale, shift = (poisoned(33, dtype=torch.float32) for _ in range(2))
    layernorm.row_moments(x, scale, shift, EPS)
    expected = torch.nn.functional.layer_norm(x.float(), (1024,), eps=EPS)
    torch.testing.assert_close(x.float() * scale[:, None] - shift[:, None], expected, rtol=1e-3, atol=1e-3)


def tiny_spec() -> TowerSpec:
    """A tower of two by two patches of 14 pixels."""
    return TowerSpec(
        name="tiny", image_size=28, patch_size=14, width=64, layers=2, heads=2, mlp_width=128, embed_dim=32,
        quick_gelu=True,
    )  # fmt: skip


@pytest.mark.parametrize("images", [1, 7])
def test_patchify_and_folded_weights_equal_the_convolution(images: int) -> None:
    spec = tiny_spec()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 28, 28, 3), dtype=torch.uint8, generator=generator).to(DEVICE)
    weight = torch.randn(64, 3, 14, 14, generator=generator)
    folded, bias = fold_pixels(weight, spec)
    rows = poisoned(images * 4, padded_patch(14))
    embed.patchify(pixels, rows, 14)
    out = rows.double().cpu() @ folded.T + bias
    normalized = normalize(pixels, spec).double().cpu()
    expected = torch.nn.functional.conv2d(normalized, weight.double(), stride=14).flatten(2).transpose(1, 2)
    torch.testing.assert_close(out, expected.reshape(-1, 64), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("images", [1, 7])
def test_assemble_equals_ln_pre_and_the_next_norm(images: int) -> None:
    patches = noise(images * 4, 64, outliers=True)
    generator = torch.Generator(DEVICE).manual_seed(1)
    positions, gain, bias = (
        torch.randn(*shape, generator=generator, device=DEVICE) for shape in [(5, 64), (64,), (64,)]
    )
    tokens, normed = ((poisoned(images * 4, 64), poisoned(images, 64)) for _ in range(2))
    embed.assemble(patches, positions, gain, bias, tokens, normed, EPS)
    joined = torch.cat([torch.zeros(images, 1, 64, device=DEVICE), patches.float().view(images, 4, 64)], 1)
    expected = torch.nn.functional.layer_norm(joined + positions, (64,), gain, bias, EPS)
    torch.testing.assert_close(tokens[0].float(), expected[:, 1:].flatten(0, 1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tokens[1].float(), expected[:, 0], rtol=1e-3, atol=1e-3)
    for rows, unit in zip(tokens, normed, strict=True):
        again = torch.nn.functional.layer_norm(rows.float(), (64,), eps=EPS)
        torch.testing.assert_close(unit.float(), again, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("images", BATCHES[:3])
def test_class_attention_equals_softmax(images: int, outliers: bool) -> None:
    tokens = noise(images, PATCHES + 1, WIDTH, outliers=outliers)
    asks = noise(images, HEADS, WIDTH, outliers=False, seed=1) * 0.1
    out = poisoned(images, HEADS, WIDTH)
    patches, classes = tokens[:, 1:].flatten(0, 1).contiguous(), tokens[:, 0].contiguous()
    class_block.class_attention(asks, patches, classes, out)
    scores = asks.float() @ tokens.float().transpose(1, 2)
    expected = torch.softmax(scores * 0.6931471805599453, dim=-1) @ tokens.float()
    assert relative_error(out, expected) < 2e-3
