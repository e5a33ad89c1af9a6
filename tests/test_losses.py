"""Loss terms against references, their schedules, and where their gradients go."""

import pytest
import tiny
import torch
from torch.nn import functional

from dsnb import vae
from dsnb.config import Training, Vae, replace
from dsnb.vae.losses import voxel_terms
from dsnb.vae.networks import build

SETTINGS = Vae(kl=0.01, training=Training(volumes=100))


def test_the_kl_is_that_of_the_reference():
    """Claim: the closed form equals torch's KL between Gaussians, element by element."""
    generator = torch.Generator().manual_seed(0)
    z_mean, z_logvar = torch.randn(2, 50, generator=generator)
    posterior = torch.distributions.Normal(z_mean, (0.5 * z_logvar).exp())
    wanted = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(vae.kl_divergence(z_mean, z_logvar), wanted)


def test_the_kl_term_is_nats_a_volume():
    """Claim: it sums over a volume's latents and averages over volumes."""
    z_mean, z_logvar = torch.full((4, 2, 3, 3, 3), 2.0), torch.zeros(4, 2, 3, 3, 3)
    assert vae.kl_term(z_mean, z_logvar, SETTINGS, 0).item() == pytest.approx(0.01 * 54 * 2)


def test_free_bits_leave_small_elements_alone():
    """Claim: an element below the free nats has no gradient; one above keeps its whole cost."""
    z_mean = torch.tensor([[0.5, 3.0]], requires_grad=True)
    settings = replace(SETTINGS, free_bits=1.0)
    term = vae.kl_term(z_mean, torch.zeros(1, 2), settings, 0)
    term.backward()
    assert term.item() == pytest.approx(0.01 * (1.0 + 4.5))
    torch.testing.assert_close(z_mean.grad, torch.tensor([[0.0, 0.03]]))


def test_the_kl_rises_over_its_share_of_the_volumes():
    """Claim: the weight rises from 0, linearly, and is whole after the share of the warm-up."""
    z_mean, settings = torch.ones(1, 10), replace(SETTINGS, kl_warmup=0.2)
    terms = [
        vae.kl_term(z_mean, torch.zeros(1, 10), settings, seen).item() for seen in (0, 5, 20, 90)
    ]
    assert terms == pytest.approx([0, 0.0125, 0.05, 0.05])


def test_voxel_terms_are_means_over_the_support():
    """Claim: 0.1 off inside the support is an L1 of 0.095 and a squared error of 0.01 times 2."""
    support = torch.zeros(1, 1, 4, 4, 4)
    support[..., :2] = 1
    given = torch.rand(3, 1, 4, 4, 4) * support
    terms = voxel_terms(given + 0.1 * support, given, support, mse=2.0)
    assert terms["l1"].item() == pytest.approx(0.095, rel=1e-4)
    assert terms["mse"].item() == pytest.approx(0.02, rel=1e-4)


def test_rounding_does_not_decide_the_gradient_of_a_voxel():
    """Claim: processes stay together: a voxel right but for rounding pulls with almost no force."""
    given, support = torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 2, 2)
    forces = []
    for error in (1e-7, -1e-7, 0.05):
        drawn = (given + error).requires_grad_()
        voxel_terms(drawn, given, support, mse=0.0)["l1"].backward()
        forces.append(drawn.grad.sum().item())
    assert max(map(abs, forces[:2])) < 1e-4 and forces[2] == pytest.approx(1)


@pytest.fixture
def model():
    """Return a VAE with a critic."""
    settings = replace(tiny.STUDY.vae, adversarial=0.5)
    return build(settings, torch.full(tiny.SHAPE, 0.5).numpy())


def terms_of(model, given):
    """Return drawn volumes and both adversarial terms."""
    drawn = model.reconstruct(given)
    return drawn, vae.adversarial_terms(model.critic, drawn, given, 0.5)


def slopes(model, term) -> tuple[set, set]:
    """Return the names of VAE and of critic weights with a gradient other than zero."""
    model.zero_grad()
    term.backward()
    hit = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    critic = {name for name in hit if name.startswith("critic.")}
    return hit - critic, critic


def test_adversarial_gradients_stay_where_they_belong(model):
    """Claim: the VAE's term moves no critic weight, the critic's term no VAE weight; both move."""
    given = torch.rand(2, 1, *tiny.SHAPE)
    of_vae, of_critic = slopes(model, terms_of(model, given)[1]["adversarial"])
    assert of_vae and not of_critic
    of_vae, of_critic = slopes(model, terms_of(model, given)[1]["critic"])
    assert of_critic and not of_vae


def test_adversarial_terms_are_least_squares(model):
    """Claim: fooled verdicts are pulled to 1; of the critic, real ones to 1 and drawn ones to 0."""
    given = torch.rand(2, 1, *tiny.SHAPE)
    drawn, terms = terms_of(model, given)
    real, fake = (functional.leaky_relu(model.critic(v)[-1], 0.05) for v in (given, drawn))
    torch.testing.assert_close(terms["adversarial"], 0.5 * (fake - 1).square().mean())
    wanted = 0.5 * ((real - 1).square().mean() + fake.square().mean())
    torch.testing.assert_close(terms["critic"], wanted)


def test_one_step_down_each_term_helps_its_owner(model):
    """Claim: the critic learns to tell the two apart, and the VAE to please it: signs are right."""
    given = torch.rand(2, 1, *tiny.SHAPE)
    for name in ("critic", "adversarial"):
        before = terms_of(model, given)[1][name]
        model.zero_grad()
        before.backward()
        with torch.no_grad():
            for weights in model.parameters():
                if weights.grad is not None:
                    weights -= 1e-3 * weights.grad
        assert terms_of(model, given)[1][name] < before
