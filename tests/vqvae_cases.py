"""Tiny VQ-VAEs for the discs of `image_vae_cases`: grids of 2x2 codes."""

from zoo.vqvae import VQVAE

TINY = VQVAE(width=8, layers=1, codes=12, latent=3, revive=0.1)
FSQ = VQVAE(width=8, layers=1, quantiser="fsq", levels=(4, 3))
