"""Masked diffusion of the codes of a VQ-VAE, 49 tokens of 512 symbols a digit of MNIST.

python train.py configs/vqvae.py
python train.py configs/vqvae_masked_diffusion.py
python sample.py runs/vqvae_masked_diffusion --n 64 --steps 49
"""

from zoo import Optimizer, Run
from zoo.data.images import ImageTokens
from zoo.masked_diffusion import MaskedDiffusion

run = Run(
    family=MaskedDiffusion(layers=4, heads=5, width=160, context=49),
    data=ImageTokens(tokens="codes", codec="runs/vqvae"),
    optimizer=Optimizer(
        name="muon", learning_rate=4e-3, warmup_steps=200, weight_decay=0.1, clip_norm=1.0, ema_decay=0.999
    ),
    steps=3000,
    batch_size=64,
    log_every=50,
    eval_every=1000,
    eval_batches=8,
    save_every=500,
    sample_every=1000,
)
