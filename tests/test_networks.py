"""Every architecture with every latent: shapes, support, sameness, and the sign of `morph`."""

import numpy as np
import pytest
import tiny
import torch
from monai.networks.utils import pixelunshuffle
from torch import nn

from dsnb import checkpoints, rivals, vae
from dsnb.config import Vae, replace
from dsnb.space import GRIDS

KINDS = [(kind, latent) for kind in ("lean", "morph") for latent in
         ("quarter", "eighth", "pooled", "flat")] + [("monai", "quarter")]  # fmt: skip
SMALL = Vae(width=8, widths=(8, 8, 8), blocks=1, channels=2, residual_scale=0.2)


def ball(side: int = 32, radius: float = 8) -> np.ndarray:
    """Return a soft-edged ball, (side, side, side), 0 to 0.8."""
    offset = np.indices((side,) * 3) - (side - 1) / 2
    return (0.8 / (1 + np.exp(np.sqrt((offset**2).sum(0)) - radius))).astype(np.float32)


def make(kind: str = "lean", latent: str = "quarter", shape=tiny.SHAPE, **changes) -> nn.Module:
    """Build a reduced VAE around a box of brain; its `morph` has another template than the mean."""
    mean = np.zeros(shape, np.float32)
    mean[3:-3, 3:-3, 3:-3] = 0.6
    settings = replace(SMALL, architecture=kind, latent=latent, **changes)
    return vae.build(settings, mean, 0.5 * mean + 0.1)


def latent_shape(latent: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    sides = {"quarter": [side // 4 for side in shape], "eighth": [side // 8 for side in shape]}
    return (*sides.get(latent, (4, 4, 4) if latent == "pooled" else (1, 1, 1)),)


@pytest.mark.parametrize("kind, latent", KINDS)
def test_shapes_and_agreement(kind, latent):
    """Claim: latents have the shape of their name; reconstruct is decode after encode, fp32."""
    model, given = make(kind, latent).eval(), torch.rand(2, 1, *tiny.SHAPE)
    with torch.no_grad():
        z_mean, z_logvar = model.encode(given)
        drawn = model.decode(z_mean)
        assert torch.equal(drawn, model.reconstruct(given))
        assert torch.equal(drawn, model.draw(z_mean)[0])
    assert z_mean.shape == z_logvar.shape == (2, 2, *latent_shape(latent, tiny.SHAPE))
    assert drawn.shape == given.shape and drawn.dtype == z_logvar.dtype == torch.float32
    assert not torch.equal(z_mean[0], z_mean[1])
    if kind == "morph":
        assert set(model.draw(z_mean)[1]) == {"rough"}


@pytest.mark.parametrize("kind, latent", KINDS)
def test_shapes_on_the_small_grid(kind, latent):
    """Claim: the shapes hold on the study's grid, whose eighth is not a cube."""
    shape = GRIDS["small"].shape
    model = make(kind, latent, shape, widths=(8, 8, 8)).eval()
    with torch.no_grad():
        z_mean, _ = model.encode(torch.rand(1, 1, *shape))
        assert z_mean.shape == (1, 2, *latent_shape(latent, shape))
        assert model.decode(z_mean).shape == (1, 1, *shape)


@pytest.mark.parametrize("kind, latent", KINDS)
def test_outside_the_support_nothing_is_drawn(kind, latent):
    """Claim: outside the support the mean volume stands; inside, the network draws."""
    model = make(kind, latent)
    if kind == "morph":  # an untrained one draws its template everywhere; shade stays inside
        drawn = model.decode(torch.randn(2, 2, *latent_shape(latent, tiny.SHAPE)))
        torch.testing.assert_close(drawn, model.template.expand_as(drawn), atol=1e-5, rtol=0)
        nn.init.ones_(model.decoder[-1].bias[-1:])  # coarse intensity alone
        drawn = model.decode(torch.zeros(1, 2, *latent_shape(latent, tiny.SHAPE)))
        torch.testing.assert_close(drawn - model.template, 0.2 * model.support)
        return
    volumes = model.decode(torch.randn(2, 2, *latent_shape(latent, tiny.SHAPE)))
    outside = (model.support == 0).expand_as(volumes)
    mean = model.mean_volume.expand_as(volumes)
    assert outside.any() and torch.equal(volumes[outside], mean[outside])
    assert (volumes - mean)[~outside].abs().mean() > 1e-3
    assert model.support.sum() > (model.mean_volume > 0.05).sum()  # dilated


@pytest.mark.parametrize("kind, latent", KINDS)
def test_no_layer_depends_on_its_batch(kind, latent):
    """Claim: there is no BatchNorm, whose statistics ranks would not share, in VAE or critic."""
    model = make(kind, latent, adversarial=0.1)
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    given = torch.rand(2, 1, *tiny.SHAPE)
    with torch.no_grad():
        both, alone = model.reconstruct(given), model.reconstruct(given[1:])
        torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)
        both, alone = model.critic(given)[-1], model.critic(given[1:])[-1]
        torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lean", "morph", "monai"])
def test_the_seed_makes_the_weights(kind):
    """Claim: weights depend on the seed alone, not on what drew random numbers before."""
    first = make(kind, adversarial=0.1).state_dict()
    torch.rand(7)
    assert checkpoints.identical(dict(first), dict(make(kind, adversarial=0.1).state_dict()))
    other = make(kind, adversarial=0.1, training=replace(SMALL.training, seed=2)).state_dict()
    assert not checkpoints.identical(dict(first), dict(other))


@pytest.mark.parametrize("kind, latent", KINDS)
def test_recomputed_activations_change_nothing(kind, latent):
    """Claim: `recompute` trades time for memory alone: same loss, same gradients."""
    given, found = torch.rand(1, 1, *tiny.SHAPE), []
    for recompute in (False, True):
        model = make(kind, latent, recompute=recompute)
        if kind == "morph":  # untrained, its last layer is zero and hides all others
            nn.init.normal_(model.decoder[-1].weight, std=0.01, generator=torch.manual_seed(0))
        loss = (model.reconstruct(given) - given).square().mean()
        loss.backward()
        touched = model.posterior(given).chunk(2, 1)[0].sum()  # the encoder of `monai`, too
        touched.backward()
        found.append({"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()})
    idle = {name for name, slope in found[0].items() if slope is None}
    assert not {name for name in idle if "log_sigma" not in name}
    for name in set(found[0]) - idle:
        torch.testing.assert_close(found[0][name], found[1][name], msg=name)


def test_recomputing_keeps_less():
    """Claim: with `recompute` the residual blocks keep no activations for the backward pass."""
    kept = []
    for recompute in (False, True):
        model, sizes = make(blocks=3, recompute=recompute), []
        pack = torch.autograd.graph.saved_tensors_hooks(
            lambda part, sizes=sizes: sizes.append(part.numel()) or part, lambda part: part
        )
        with pack:
            model.reconstruct(torch.rand(1, 1, *tiny.SHAPE))
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


def test_the_latent_is_local_and_in_place():
    """Claim: folding keeps positions: a change in one corner moves the latents of that corner."""
    model = vae.build(replace(SMALL, blocks=0), np.zeros((32, 32, 32)))
    volume = torch.zeros(1, 1, 32, 32, 32)
    changed = volume.clone()
    changed[..., :4, :4, 28:] = 0.1
    gap = (model.encode(changed)[0] - model.encode(volume)[0]).abs().amax(1)[0]
    assert np.unravel_index(int(gap.argmax()), gap.shape) == (0, 0, 7)


def test_the_departure_is_seen_and_drawn_around_the_mean():
    """Claim: `departure` centres and scales what is seen; without it raw volumes are seen."""
    model, plain = make(), make(departure=False)
    assert checkpoints.identical(dict(model.state_dict()), dict(plain.state_dict()))
    given = torch.rand(1, 1, *tiny.SHAPE)
    seen = (given - model.mean_volume) / 0.2
    torch.testing.assert_close(model.encode(given)[0], plain.encode(seen)[0])
    z = torch.randn(1, 2, 4, 4, 4)
    torch.testing.assert_close(plain.decode(z), model.depart(z))
    wanted = model.mean_volume + 0.2 * model.support * model.depart(z)
    torch.testing.assert_close(model.decode(z), wanted)


def planted(velocity: np.ndarray) -> tuple[nn.Module, torch.Tensor]:
    """Return a `morph` around a ball whose decoder draws a velocity (3, 16, 16, 16), and a z."""
    model = vae.build(replace(SMALL, architecture="morph"), ball(), ball())
    folded = pixelunshuffle(torch.as_tensor(velocity, dtype=torch.float32)[None], 3, 2)
    drawn = torch.cat([folded, torch.zeros_like(folded[:, :1])], dim=1)
    model.features = lambda z: drawn
    return model, torch.zeros(1, 2, 8, 8, 8)


def test_a_planted_shift_moves_the_template_against_the_field():
    """Claim: the field says where each voxel of the person reads in the template, in voxels."""
    velocity = np.zeros((3, 16, 16, 16))
    velocity[1] = 1.5  # half-resolution voxels: 3 voxels
    model, z = planted(velocity)
    torch.testing.assert_close(model.displacement(z)[0][0, 1].mean(), torch.tensor(3.0))
    drawn = model.decode(z)[0, 0].numpy()
    np.testing.assert_allclose(drawn[:, :-3], ball()[:, 3:], atol=1e-4)


@pytest.mark.parametrize("rate", [-0.15, 0.15])
def test_a_planted_growth_has_the_volume_it_says(rate):
    """Claim: velocity r x offset scales the ball by e^-3r, and the Jacobian has that value."""
    velocity = rate * (np.indices((16, 16, 16)) - 7.5)
    model, z = planted(velocity)
    drawn, field = model.decode(z)[0, 0].numpy(), model.displacement(z)[0][0].numpy()
    assert drawn.sum() / ball().sum() == pytest.approx(np.exp(-3 * rate), rel=0.06)
    middle = rivals.log_determinant(field, 1.0)[12:20, 12:20, 12:20]
    np.testing.assert_allclose(middle, 3 * rate, atol=0.03)  # above 0: the template is larger


def test_roughness_is_that_of_the_velocity():
    """Claim: a uniform velocity costs nothing, a slope s along one axis costs s^2 times it."""
    uniform, z = planted(np.ones((3, 16, 16, 16)))
    assert float(uniform.draw(z)[1]["rough"]) == 0
    sloped = np.zeros((3, 16, 16, 16))
    sloped[0] = 0.3 * np.arange(16)
    rough = planted(sloped)[0].draw(z)[1]["rough"]
    assert float(rough) == pytest.approx(SMALL.roughness * 0.3**2 / 3, rel=1e-4)


def test_a_code_of_wild_scale_stays_finite():
    """Claim: the log-variance is held in a range whose exponential fp32 knows."""
    model = make()
    z_mean, z_logvar = model.encode(1e6 * torch.randn(1, 1, *tiny.SHAPE))
    assert z_logvar.min() >= -20 and z_logvar.max() <= 10
    assert torch.isfinite(vae.kl_divergence(z_mean, z_logvar)).all()
