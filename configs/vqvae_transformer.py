"""A Transformer over the codes of a VQ-VAE, 49 tokens of 512 symbols a digit of MNIST.

python train.py configs/vqvae.py
python train.py configs/vqvae_transformer.py
python sample.py runs/vqvae_transformer --n 64
"""

from zoo import Optimizer, Run
from zoo.data.images import ImageTokens
from zoo.transformer_lm import TransformerLM

run = Run(
    family=TransformerLM(layers=4, heads=5, width=160, context=49),
    data=ImageTokens(tokens="codes", codec="runs/vqvae"),
    optimizer=Optimizer(
        name="muon", learning_rate=4e-3, warmup_steps=200, weight_decay=0.1, clip_norm=1.0, ema_decay=0.999
    ),
    steps=3000,
    batch_size=64,
    log_every=50,
    eval_every=1000,
    save_every=500,
    sample_every=1000,
)
