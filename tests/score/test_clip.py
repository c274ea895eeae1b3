"""The tower against open_clip's, its pixels against torchvision's, and random weights."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import normalize as torchvision_normalize

from dali_aesthetic.score.checkpoints import from_open_clip
from dali_aesthetic.score.clip import VisionTower, normalize
from dali_aesthetic.score.spec import TowerSpec, spec_of
from dali_aesthetic.score.weights import random_tower_state


def _pixels(spec: TowerSpec, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, spec.image_size, spec.image_size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-vit-quickgelu", "ViT-B-32", "ViT-B-32-quickgelu"])
def test_tower_equals_open_clip(tiny: str, name: str) -> None:
    torch.manual_seed(0)
    reference = open_clip.create_model(name, pretrained=None).eval()
    spec = spec_of(name)
    tower = VisionTower.from_state(spec, from_open_clip(reference.state_dict()))
    images_NCHW = normalize(_pixels(spec, 2), spec)
    with torch.inference_mode():
        expected, found = reference.encode_image(images_NCHW), tower(images_NCHW)
    assert found.shape == (2, spec.embed_dim)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_gelu_and_quick_gelu_differ(tiny_spec: TowerSpec) -> None:
    state = random_tower_state(tiny_spec)
    images_NCHW = normalize(_pixels(tiny_spec, 1), tiny_spec)
    plain = VisionTower.from_state(tiny_spec, state)(images_NCHW)
    quick = VisionTower.from_state(tiny_spec.with_quick_gelu(True), state)(images_NCHW)
    assert (plain - quick).abs().max() > 1e-4


def test_normalize_gives_torchvisions_bits(tiny_spec: TowerSpec) -> None:
    pixels = _pixels(tiny_spec, 3)
    expected = torchvision_normalize(
        pixels.permute(0, 3, 1, 2).float().div(255), list(tiny_spec.mean), list(tiny_spec.std)
    )
    assert torch.equal(normalize(pixels, tiny_spec), expected)
    assert torch.equal(normalize(pixels, tiny_spec, torch.float16), expected.half())


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 31, 32, 3), (32, 32, 3)])
def test_normalize_refuses_pixels_of_another_shape(tiny_spec: TowerSpec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"tiny-vit takes uint8 pixels \[N, 32, 32, 3\]"):
        normalize(torch.zeros(shape, dtype=torch.uint8), tiny_spec)


def test_random_weights_depend_on_the_seed_alone(tiny_spec: TowerSpec) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (random_tower_state(tiny_spec, seed) for seed in (1, 1, 2))
    VisionTower.from_state(tiny_spec, first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["projection"], other["projection"])
    # Golden: the same bits on any machine.
    assert first["class_embedding"][:3].tolist() == [
        -0.0823095440864563,
        0.06521768122911453,
        -0.012903346680104733,
    ]
