"""A class-conditional diffusion model of MNIST's handwritten digits.

python train.py configs/ddpm.py
"""

from zoo import Optimizer, Run
from zoo.data.images import Images
from zoo.ddpm import DDPM

run = Run(
    family=DDPM(
        channels=(32, 64, 64), layers=1, attention=(7,), groups=8, schedule="cosine", prediction="v", min_snr=5.0
    ),
    data=Images(),
    optimizer=Optimizer(
        learning_rate=1e-3, warmup_steps=200, final_fraction=0.05, weight_decay=0.0, clip_norm=1.0, ema_decay=0.999
    ),
    steps=5000,
    batch_size=64,
    log_every=50,
    eval_every=500,
    eval_batches=16,
    save_every=500,
    sample_every=500,
)
