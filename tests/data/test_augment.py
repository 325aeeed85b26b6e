"""Augmentation: the paper's probabilities and ranges, each operation's pixels, where chance comes from."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from prrfl.data.augment import SMOOTHINGS, Augmentation, gaussian_blur, median_blur
from prrfl.errors import ConfigError

NOTHING = Augmentation(flip_p=0, brightness_p=0, smooth_p=0, affine_p=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=4, size=24):
    return torch.randint(0, 256, (n, 3, size, size), generator=generator(9), dtype=torch.uint8)


def augmented(how, pixels, seed=0):
    return how(pixels, how.draw(pixels.shape, generator(seed)), torch.arange(len(pixels)))


def test_draws_follow_the_paper():
    n = 40_000
    draws = Augmentation().draw((n, 3, 2, 2), generator())
    four_sigma = 4 * 0.5 / n**0.5

    def share(condition):
        return condition.float().mean().item()

    bright = draws.brightness != 0
    assert share(bright) == pytest.approx(0.75, abs=four_sigma)
    assert 50.9 < draws.brightness.abs().max() <= 51
    for kind, wanted in (("median", 0.7 / 3), ("gaussian", 0.7 / 3), ("noise", 0.7 / 3), ("none", 0.3)):
        chosen = [k for k, name in enumerate(SMOOTHINGS) if name.startswith(kind)]
        assert share(torch.isin(draws.smoothing, torch.tensor(chosen))) == pytest.approx(
            wanted, abs=four_sigma
        )
    for name, wanted in {"median 3": 3, "median 5": 3, "gaussian 3": 2, "gaussian 5": 4}.items():
        taken = share(draws.smoothing == SMOOTHINGS.index(name))
        assert taken == pytest.approx(0.7 * wanted / 18, abs=four_sigma)
    variance = draws.noise_sd[draws.noise_sd > 0] ** 2
    assert 5 <= variance.min() < 5.1
    assert 29.9 < variance.max() <= 30.001
    assert variance.mean().item() == pytest.approx(17.5, abs=0.5)
    linear, shift = draws.affine[:, :, :2], draws.affine[:, :, 2]
    moved = shift.abs().sum(1) > 0
    assert share(moved) == pytest.approx(0.85, abs=four_sigma)
    assert 0.198 < shift.abs().max() <= 0.2  # a tenth of the side, in coordinates that run from -1 to 1
    determinant = torch.linalg.det(linear)
    assert share(determinant < 0) == pytest.approx(0.5, abs=four_sigma)  # exactly one of the two flips
    scale = determinant.abs() ** -0.5
    assert 0.9 <= scale.min() < 0.901
    assert 1.099 < scale.max() <= 1.1001
    angle = torch.atan2(linear[:, 0, 1].abs(), linear[:, 0, 0].abs()).rad2deg()
    assert 14.9 < angle.max() <= 15.001
    for axis in (0, 1):
        assert share(linear[:, axis, axis] < 0) == pytest.approx(0.5, abs=four_sigma)


def test_same_generator_same_bits_and_nothing_else_is_touched():
    batch = images(32)
    before, state = batch.clone(), torch.get_rng_state()
    first, second = (augmented(Augmentation(), batch, 3) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, augmented(Augmentation(), batch, 4))
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 <= first.min() <= first.max() <= 255


def test_no_operation_leaves_the_pixels():
    torch.testing.assert_close(augmented(NOTHING, images()), images().float(), atol=1e-3, rtol=0)


def test_flips_are_exact():
    both = Augmentation(flip_p=1, brightness_p=0, smooth_p=0, affine_p=0)
    torch.testing.assert_close(augmented(both, images()), images().float().flip(2, 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [3, 5])
def test_blurs_against_scipy(size):
    pixels = images()
    wanted = ndimage.median_filter(pixels.numpy(), size=(1, 1, size, size), mode="nearest")
    np.testing.assert_array_equal(median_blur(pixels, size).numpy(), wanted)
    row = np.array({3: [1, 2, 1], 5: [1, 4, 6, 4, 1]}[size], dtype=float)
    wanted = pixels.double().numpy()
    for axis in (2, 3):
        wanted = ndimage.correlate1d(wanted, row / row.sum(), axis, mode="mirror")
    np.testing.assert_allclose(gaussian_blur(pixels.float(), size).numpy(), wanted, atol=1e-3)


def test_a_median_before_brightness_is_one_after_it():
    both = Augmentation(flip_p=0, brightness_p=1, smooth_p=1, affine_p=0)
    pixels = images(60)
    draws = both.draw(pixels.shape, generator(5))
    result = both(pixels, draws, torch.arange(60))
    brighter = (pixels.float() + draws.brightness.view(-1, 1, 1, 1)).clamp(0, 255)
    for size in (3, 5):
        (rows,) = (draws.smoothing == SMOOTHINGS.index(f"median {size}")).nonzero(as_tuple=True)
        assert len(rows) > 3
        wanted = ndimage.median_filter(brighter[rows].numpy(), size=(1, 1, size, size), mode="nearest")
        np.testing.assert_allclose(result[rows].numpy(), wanted, atol=1e-3)


def test_an_image_is_changed_alike_in_whatever_batch_it_comes():
    pixels, how = images(40), Augmentation()
    draws = how.draw(pixels.shape, generator(1))
    whole = how(pixels, draws, torch.arange(40))
    for rows in torch.randperm(40, generator=generator(2)).split(7):
        torch.testing.assert_close(how(pixels[rows], draws, rows), whole[rows], atol=1e-4, rtol=0)


def test_noise_has_the_drawn_variance():
    grey = torch.full((64, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = Augmentation(flip_p=0, brightness_p=0, affine_p=0, smooth_p=1, noise_variance=(20, 20))
    draws = noisy.draw(grey.shape, generator())
    result = noisy(grey, draws, torch.arange(64))[draws.noise_sd > 0] - 128
    assert len(torch.unique(draws.noise_at)) > 60  # each image takes its own window of the field
    assert not torch.equal(result[0], result[1])
    assert result.var().item() == pytest.approx(20, rel=0.03)
    assert result.mean().item() == pytest.approx(0, abs=0.1)


def test_rotation_and_scale_against_scipy_with_a_black_border():
    plain = images(8, 32)
    turned = Augmentation(flip_p=0, brightness_p=0, smooth_p=0, affine_p=1, shift=0)
    draws = turned.draw(plain.shape, generator(2))
    result = turned(plain, draws, torch.arange(8))
    centre = np.array([15.5, 15.5])
    for k in range(8):
        (xx, xy), (yx, yy) = draws.affine[k, :, :2].tolist()
        matrix = np.array([[yy, yx], [xy, xx]])  # rows first, as arrays have it
        for channel in range(3):
            wanted = ndimage.affine_transform(
                plain[k, channel].float().numpy(),
                matrix, offset=centre - matrix @ centre, order=1, mode="grid-constant",
            )  # fmt: skip
            np.testing.assert_allclose(result[k, channel].numpy(), wanted, atol=0.05)
    larger = Augmentation(flip_p=0, brightness_p=0, smooth_p=0, affine_p=1, shift=0.1)
    white = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8)
    assert augmented(larger, white)[:, :, [0, -1]].min() == 0


def test_brightness_is_clipped():
    bright = Augmentation(flip_p=0, brightness_p=1, smooth_p=0, affine_p=0)
    draws = bright.draw(images().shape, generator())
    wanted = (images().float() + draws.brightness.view(-1, 1, 1, 1)).clamp(0, 255)
    torch.testing.assert_close(bright(images(), draws, torch.arange(4)), wanted, atol=1e-3, rtol=0)


def test_other_inputs_are_refused():
    with pytest.raises(ConfigError, match="float32"):
        augmented(Augmentation(), torch.rand(2, 3, 8, 8))
