"""Heads: the published ones on real embeddings, folding, layouts, and several heads on one embedding."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dali_aesthetic.score.checkpoints import read_tensors
from dali_aesthetic.score.head import Head, HeadBank, HeadMLP, head_from_state
from dali_aesthetic.score.weights import load_head, random_head_state

LAION_V2_RATINGS = [1.655, 2.359, 3.070, 3.672, 4.238, 4.701, 5.073, 5.365, 5.577, 5.747]
LAION_V1_RATINGS = [-2.458, -0.138, 1.895, 3.585, 5.100, 6.470, 7.787, 9.048, 10.226, 11.304]
"""Scores of the mean embeddings of images rated 0 to 9, computed in float64 from the published files."""


def _embeddings(heads_dir: Path) -> Tensor:
    return torch.from_numpy(np.load(heads_dir / "rating_embeddings_vit_l_14.npy")).float()


def _sequential(*layers: nn.Module, prefix: str = "layers.") -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in nn.Sequential(*layers).state_dict().items()}


def _reference(head: HeadMLP, unit_ND: Tensor) -> Tensor:
    return head.double()(unit_ND.double())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sac+logos+ava1-l14-linearMSE.pth", LAION_V2_RATINGS),
        ("sa_0_4_vit_l_14_linear.pth", LAION_V1_RATINGS),
    ],
)
def test_real_heads_on_real_embeddings(heads_dir: Path, name: str, expected: list[float]) -> None:
    head, file = load_head(str(heads_dir / name), "ViT-L-14", 768, None)
    embeddings_ND = _embeddings(heads_dir)
    scores_N1 = HeadBank([head], 768)(37 * embeddings_ND)
    assert scores_N1[:, 0].tolist() == pytest.approx(expected, abs=6e-4)
    torch.testing.assert_close(
        scores_N1[:, 0].double(), _reference(head.mlp, embeddings_ND), atol=1e-5, rtol=0
    )
    assert len(file.sha256) == 64


def test_folding_the_real_mlp_is_exact(heads_dir: Path) -> None:
    head = head_from_state(read_tensors(heads_dir / "sac+logos+ava1-l14-linearMSE.pth"))
    w, b = head.fold()
    assert w.norm().item() == pytest.approx(17.996, abs=1e-3)
    assert b.item() == pytest.approx(5.2366, abs=1e-4)
    embeddings_ND = _embeddings(heads_dir).double()
    torch.testing.assert_close(embeddings_ND @ w + b, _reference(head, embeddings_ND), atol=1e-10, rtol=0)


def test_the_published_relu_head_is_not_folded(heads_dir: Path) -> None:
    head, _ = load_head(str(heads_dir / "ava+logos-l14-reluMSE.pth"), "ViT-L-14", 768, None)
    assert not head.mlp.affine
    with pytest.raises(ValueError, match="can't be folded"):
        head.mlp.fold()


def test_the_name_finds_the_file_in_the_model_dir(heads_dir: Path) -> None:
    head, file = load_head("laion-v2", "ViT-L-14", 768, heads_dir)
    assert head.name == "laion-v2"
    assert file.sha256 == "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
    assert load_head("laion-v1", "ViT-B-32-quickgelu", 512, heads_dir)[0].mlp.embed_dim == 512


def test_several_heads_keep_their_order() -> None:
    torch.manual_seed(0)
    relu = HeadMLP([(torch.randn(8, 16), torch.randn(8)), (torch.randn(1, 8), torch.randn(1))], relu=True)
    linear = [HeadMLP([(torch.randn(1, 16), torch.randn(1))], relu=False) for _ in range(2)]
    mlps = [linear[0], relu, linear[1]]
    unit_ND = nn.functional.normalize(torch.randn(5, 16), dim=-1)
    bank = HeadBank([Head(f"h{i}", mlp) for i, mlp in enumerate(mlps)], 16)
    scores_NH = bank(unit_ND)
    assert bank.names == ("h0", "h1", "h2")
    assert scores_NH.dtype == torch.float32
    for column, mlp in enumerate(mlps):
        torch.testing.assert_close(
            scores_NH[:, column].double(), _reference(mlp, unit_ND), atol=1e-5, rtol=1e-5
        )


def test_a_bank_without_an_affine_head() -> None:
    layers = [(torch.ones(2, 4), torch.zeros(2)), (torch.ones(1, 2), torch.zeros(1))]
    scores_NH = HeadBank([Head("relu", HeadMLP(layers, relu=True))], 4)(
        torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0]])
    )
    assert scores_NH[:, 0].tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    "state",
    [
        {"w": torch.arange(4.0), "b": torch.tensor(1.0)},
        {"w": torch.arange(4.0)[None], "b": torch.tensor([1.0])},
        {"weight": torch.arange(4.0)[None], "bias": torch.tensor([1.0])},
        {"head.0.weight": torch.arange(4.0)[None], "head.0.bias": torch.tensor([1.0])},
    ],
)
def test_linear_heads_of_any_layout(state: dict[str, Tensor]) -> None:
    w, b = head_from_state(state).fold()
    assert (w.tolist(), b.item()) == ([0, 1, 2, 3], 1)


def test_relus_are_inferred_from_the_layout_or_must_be_named() -> None:
    two_with_a_gap = _sequential(nn.Linear(4, 3), nn.Identity(), nn.Linear(3, 1))
    assert head_from_state(_sequential(nn.Linear(4, 3), nn.Linear(3, 1))).affine
    with pytest.raises(ValueError, match="append :relu or :linear"):
        head_from_state(two_with_a_gap)
    assert not head_from_state(two_with_a_gap, relu=True).affine
    assert head_from_state(two_with_a_gap, relu=False).affine


def test_the_suffix_of_a_path_names_the_activation(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(_sequential(nn.Linear(4, 3), nn.Identity(), nn.Linear(3, 1)), path)
    with pytest.raises(ValueError, match="append :relu or :linear"):
        load_head(str(path), "ViT-B-32", 4, None)
    (relu, file), (linear, _) = (
        load_head(f"{path}:{kind}", "ViT-B-32", 4, None) for kind in ("relu", "linear")
    )
    assert (file.name, file.path) == ("mine.pth:relu", str(path))
    assert (relu.name, relu.mlp.affine, linear.mlp.affine) == ("mine", False, True)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"layers.0.weight": torch.zeros(3, 4)},
        {"layers.0.weight": torch.zeros(3), "layers.0.bias": torch.zeros(3)},
        {"backbone.conv.weight": torch.zeros(3, 3)},
    ],
)
def test_other_state_dicts_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="not a linear head or an MLP"):
        head_from_state(state)


@pytest.mark.parametrize("shapes", [[(3, 4), (1, 2)], [(2, 4)]])
def test_layers_that_do_not_chain_are_refused(shapes: list[tuple[int, int]]) -> None:
    layers = [(torch.zeros(shape), torch.zeros(shape[0])) for shape in shapes]
    with pytest.raises(ValueError, match="don't lead from an embedding to one score"):
        HeadMLP(layers, relu=False)


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.zeros(4), "bias": torch.zeros(1)},
        {"weight": torch.zeros(1, 4, 1, 1), "bias": torch.zeros(1)},
        {"weight": torch.zeros(1, 4), "bias": torch.tensor(0.0)},
        {"w": torch.zeros(4), "b": torch.zeros(2)},
        {"0.weight": torch.zeros(3, 4), "0.bias": torch.zeros(2), "1.weight": torch.zeros(1, 3)}
        | {"1.bias": torch.zeros(1)},
    ],
)
def test_weights_and_biases_of_other_shapes_are_refused_by_name(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "mine.pt"
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"mine\.pt.*don't lead from an embedding to one score"):
        load_head(str(path), "ViT-L-14", 4, None)


def test_a_head_for_another_encoder_is_refused() -> None:
    head = Head("mine", head_from_state(random_head_state(768)))
    with pytest.raises(
        ValueError, match=r"'mine' takes embeddings of 768 numbers, the encoder gives 512: take"
    ):
        HeadBank([head], 512)
    with pytest.raises(
        ValueError, match="laion-v2' was trained on embeddings of ViT-L-14, not of 'ViT-B-32'"
    ):
        load_head("laion-v2", "ViT-B-32", 512, None)


def test_two_heads_of_one_name_are_refused() -> None:
    head = Head("mine", head_from_state(random_head_state(8)))
    with pytest.raises(ValueError, match="two go by one name"):
        HeadBank([head, head], 8)


class _LaionNsfw(nn.Module):
    """LAION's NSFW head for ViT-L/14 as it was published for PyTorch, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Module()
        self.norm.register_buffer("mean", torch.randn(16))
        self.norm.register_buffer("variance", torch.rand(16) + 0.1)
        for index, (inner, outer) in enumerate([(16, 8), (8, 32), (32, 12), (12, 1)], start=1):
            setattr(self, f"linear_{index}", nn.Linear(inner, outer))

    def forward(self, unit_ND: Tensor) -> Tensor:
        hidden = (unit_ND - self.norm.mean) / self.norm.variance.sqrt()
        for index in (1, 2, 3):
            hidden = getattr(self, f"linear_{index}")(hidden).relu()
        return self.linear_4(hidden).sigmoid()


def test_laions_nsfw_head_gives_a_probability(tmp_path: Path) -> None:
    torch.manual_seed(1)
    nsfw = _LaionNsfw()
    torch.save(nsfw.state_dict(), tmp_path / "clip_autokeras_binary_nsfw.pth")
    given = ["random:0", f"punsafe={tmp_path / 'clip_autokeras_binary_nsfw.pth'}"]
    heads = [load_head(head, "ViT-L-14", 16, None)[0] for head in given]
    unit_ND = nn.functional.normalize(torch.randn(50, 16), dim=-1)
    bank = HeadBank(heads, 16)
    assert bank.names == ("random:0", "punsafe")
    scores_N = bank(unit_ND)[:, 1]
    torch.testing.assert_close(scores_N, nsfw(unit_ND)[:, 0].detach(), atol=1e-6, rtol=0)
    assert 0 < scores_N.min() < scores_N.max() < 1


def test_laions_h14_nsfw_head_has_no_relu_between_its_last_layers() -> None:
    torch.manual_seed(2)
    widths = [16, 12, 24, 12, 8, 6]
    modules: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        modules += [nn.Linear(inner, outer), nn.ReLU(), nn.Dropout(0.2)]
    published = nn.Sequential(*modules, nn.Linear(6, 4), nn.Linear(4, 1)).eval()
    state = {f"layers.{name}": tensor for name, tensor in published.state_dict().items()}
    unit_ND = nn.functional.normalize(torch.randn(50, 16), dim=-1)
    for relu in (None, True):
        head = head_from_state(state, relu)
        torch.testing.assert_close(head(unit_ND), published(unit_ND)[:, 0].detach(), atol=1e-6, rtol=1e-5)
    assert head.relus == (True, True, True, True, True, False)


def test_a_file_that_only_starts_like_laions_nsfw_head_is_refused() -> None:
    state = _LaionNsfw().state_dict()
    with pytest.raises(ValueError, match="it has extra"):
        head_from_state({**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"norm.mean \[15\].* don't fit together"):
        head_from_state({**state, "norm.mean": torch.zeros(15)})
    del state["linear_2.bias"]
    with pytest.raises(ValueError, match=r"it has linear_1.weight, linear_1.bias, linear_2.weight, linear_3"):
        head_from_state(state)


def test_a_head_of_w_and_b_with_a_given_name(tmp_path: Path) -> None:
    w = torch.randn(8)
    save_file({"w": w, "b": torch.tensor([2.0])}, tmp_path / "mine.safetensors")
    head, file = load_head(f"pwatermark={tmp_path / 'mine.safetensors'}", "ViT-B-32", 8, None)
    unit_ND = nn.functional.normalize(torch.randn(5, 8), dim=-1)
    assert (head.name, file.name) == ("pwatermark", "mine.safetensors")
    torch.testing.assert_close(HeadBank([head], 8)(unit_ND)[:, 0], unit_ND @ w + 2)
