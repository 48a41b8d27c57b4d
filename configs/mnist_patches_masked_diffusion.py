"""Masked diffusion of patches of MNIST's digits in black and white, 98 tokens of 256 symbols a digit.

python train.py configs/mnist_patches_masked_diffusion.py
python sample.py runs/mnist_patches_masked_diffusion --n 64 --steps 98
python sample.py runs/mnist_patches_masked_diffusion --n 8 --image digit.png --mask mask.png

95 minutes on one CPU core with other work beside it. The bound on the test images is 82.64 +- 0.21 nats (16 times t an
image), 4.2 % above the exact figure of the Transformer over the same patches, which is as large.
"""

from zoo import Optimizer, Run
from zoo.data.images import ImageTokens
from zoo.masked_diffusion import MaskedDiffusion

run = Run(
    family=MaskedDiffusion(layers=4, heads=5, width=160, context=98),
    data=ImageTokens(tokens="patches", patch=(2, 4)),
    optimizer=Optimizer(
        name="muon", learning_rate=4e-3, warmup_steps=200, weight_decay=0.1, clip_norm=1.0, ema_decay=0.999
    ),
    steps=5000,
    batch_size=64,
    log_every=50,
    eval_every=1000,
    eval_batches=8,
    save_every=500,
    sample_every=1000,
)
