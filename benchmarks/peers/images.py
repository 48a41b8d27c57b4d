"""Times training of image models and sampling from a diffusion model by PyTorch on the CPU, in float32.

    python benchmarks/peers/images.py torch {ddpm_train|ddpm_sample|dcgan|vae}

ddpm: diffusers' UNet2DModel for 32x32, with its DDPM training loss, and its DDIM sampler with 50 steps. dcgan: the
networks of DCGAN for 64x64 in torch.nn. vae: dense layers of 784-400-20 units. All with Adam, on random images. Prints
one JSON line.
"""

import sys

import torch
import torch.nn.functional as F
from timing import THREADS, emit, timed
from torch import nn


def parameters(*models):
    return sum(p.numel() for model in models for p in model.parameters())


def unet():
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(64, 128, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )


def ddpm_train(batch=16):
    from diffusers import DDPMScheduler

    model, noising = unet(), DDPMScheduler(1000)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)

    def step():
        x, t = torch.rand(batch, 3, 32, 32) * 2 - 1, torch.randint(0, 1000, (batch,))
        eps = torch.randn_like(x)
        loss = F.mse_loss(model(noising.add_noise(x, eps, t), t).sample, eps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step, batch, parameters(model)


def ddpm_sample(batch=8):
    from diffusers import DDIMScheduler

    model, sampler = unet().eval(), DDIMScheduler(1000, clip_sample=True)

    @torch.no_grad()
    def step():
        sampler.set_timesteps(50)
        x = torch.randn(batch, 3, 32, 32)
        for t in sampler.timesteps:
            x = sampler.step(model(x, t).sample, t, x).prev_sample

    return step, batch, parameters(model)


def dcgan(batch=64):
    def up(i, o, stride=2, padding=1):
        return nn.ConvTranspose2d(i, o, 4, stride, padding, bias=False)

    def down(i, o, stride=2, padding=1):
        return nn.Conv2d(i, o, 4, stride, padding, bias=False)

    gen, disc = [up(100, 512, 1, 0)], [down(3, 64), nn.LeakyReLU(0.2)]
    for width in (512, 256, 128):
        gen += [nn.BatchNorm2d(width), nn.ReLU(), up(width, width // 2)]
    gen = nn.Sequential(*gen, nn.BatchNorm2d(64), nn.ReLU(), up(64, 3), nn.Tanh())
    for width in (64, 128, 256):
        disc += [down(width, 2 * width), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
    disc = nn.Sequential(*disc, down(512, 1, 1, 0))
    gen_optimizer, disc_optimizer = (torch.optim.Adam(m.parameters(), 2e-4, (0.5, 0.999)) for m in (gen, disc))
    one, zero = torch.ones(batch), torch.zeros(batch)

    def loss(x, truth):
        return F.binary_cross_entropy_with_logits(disc(x).view(-1), truth)

    def step():
        x, fake = torch.rand(batch, 3, 64, 64) * 2 - 1, gen(torch.randn(batch, 100, 1, 1))
        disc_optimizer.zero_grad(set_to_none=True)
        loss(x, one).backward()
        loss(fake.detach(), zero).backward()
        disc_optimizer.step()
        gen_optimizer.zero_grad(set_to_none=True)
        gen_loss = loss(fake, one)
        gen_loss.backward()
        gen_optimizer.step()
        gen_loss.item()

    return step, batch, parameters(gen, disc)


def vae(batch=128):
    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
            self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

        def forward(self, x):
            mean, log_variance = self.encoder(x).chunk(2, -1)
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
            distortion = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
            kl = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum()
            return (distortion + kl) / x.shape[0]

    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step():
        loss = model((torch.rand(batch, 784) > 0.5).float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return step, batch, parameters(model)


CASES = {"ddpm_train": ddpm_train, "ddpm_sample": ddpm_sample, "dcgan": dcgan, "vae": vae}


def main(program, case):
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    step, batch, count = CASES[case]()
    timing = timed(step, warm=1, min_n=2)
    emit(program, f"images {case}", "images/s", batch, timing, params=count, batch=batch)


if __name__ == "__main__":
    main(*sys.argv[1:])
