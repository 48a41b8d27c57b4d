"""A flow of the latents of a VQ-VAE, 7x7 vectors a digit of MNIST, by class.

python train.py configs/vqvae.py
python train.py configs/latent_flow.py
python sample.py runs/latent_flow --n 64 --label 3
"""

from zoo import Optimizer, Run
from zoo.data.images import Images
from zoo.flow_matching import FlowMatching

run = Run(
    family=FlowMatching(network="dit", patch=1, width=128, heads=4, layers=6),
    data=Images(codec="runs/vqvae"),
    optimizer=Optimizer(
        learning_rate=1e-3, warmup_steps=200, final_fraction=0.05, weight_decay=0.0, clip_norm=1.0, ema_decay=0.9995
    ),
    steps=20_000,
    batch_size=64,
    log_every=100,
    eval_every=2500,
    save_every=1000,
    sample_every=2500,
)
