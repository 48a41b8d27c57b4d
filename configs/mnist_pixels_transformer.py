"""A Transformer over the pixels of MNIST's digits in 256 grey levels, 784 tokens a digit.

python train.py configs/mnist_pixels_transformer.py
python sample.py runs/mnist_pixels_transformer --n 16
"""

from zoo import Optimizer, Run
from zoo.data.images import ImageTokens
from zoo.transformer_lm import TransformerLM

run = Run(
    family=TransformerLM(layers=4, heads=4, width=96, context=784),
    data=ImageTokens(tokens="pixels"),
    optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, weight_decay=0.1, clip_norm=1.0, ema_decay=0.99),
    steps=3000,
    batch_size=16,
    log_every=20,
    eval_every=500,
    eval_batches=40,
    save_every=250,
    sample_every=1000,
)
